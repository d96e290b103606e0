"""Entropy, agreement and availability, the gate over them, its two schedulers, its objective."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from fusion_jax.blocks.alignment import AlignedSpace
from fusion_jax.blocks.presence import uniform_weights
from fusion_jax.blocks.unimodal import entropy_share, jensen_shannon
from fusion_jax.errors import FusionError
from fusion_jax.gate import Gate
from fusion_jax.objectives.ma_afs import (
    MAAFSObjective,
    balance_loss,
    calibration_loss,
    consistency_loss,
    ranking_loss,
)
from fusion_jax.schedulers.combined import CombinedScheduler
from fusion_jax.schedulers.ma_afs import MAAFSScheduler
from fusion_jax.signals.agreement import Agreement
from fusion_jax.signals.availability import Availability
from fusion_jax.signals.entropy import Entropy
from fusion_jax.types import Features, FusionWeights, ModelOutput, SchedulerInput
from tests.conftest import NAMES, make_scheduler_input


def with_predictions(logits, present=None):
    """A scheduler's input of which each modality alone predicts the given logits [B, M, K]."""
    rows, num, _ = logits.shape
    present = np.ones((rows, num), bool) if present is None else present

    def predict(subsets):
        parts = jnp.where(subsets[..., None], jnp.asarray(logits, jnp.float32), 0)
        return jnp.sum(parts, axis=-2)

    features = {name: Features(pooled=jnp.zeros((rows, 4))) for name in NAMES[:num]}
    return SchedulerInput(
        features=features,
        present=jnp.asarray(present),
        mask=jnp.ones(rows, bool),
        progress=1.0,
        predict=predict,
    )


def value_of(signal, inputs):
    variables = signal.init(jax.random.key(0), inputs, train=False)
    return np.asarray(signal.apply(variables, inputs, train=False).value)


# Entropy


def test_entropy_of_heads_is_that_of_the_softmax_over_its_largest():
    logits = 3 * np.random.default_rng(0).normal(size=(50, 3, 7))
    expected = entropy(softmax(logits, axis=-1), axis=-1) / np.log(7)
    found = value_of(Entropy(), with_predictions(logits))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_entropy_at_its_ends():
    even, sure = np.zeros((2, 2, 5)), 1e4 * np.eye(5)[None, :2].repeat(2, 0)
    np.testing.assert_allclose(value_of(Entropy(), with_predictions(even)), 1, atol=1e-6)
    np.testing.assert_array_equal(value_of(Entropy(), with_predictions(sure)), 0)
    # One class, one token, nothing valid: nothing is undecided, and nothing is divided by log 1.
    np.testing.assert_array_equal(value_of(Entropy(), with_predictions(np.ones((2, 2, 1)))), 0)
    none = entropy_share(jnp.ones((2, 3)), jnp.zeros((2, 3), bool))
    np.testing.assert_array_equal(none, 0)


def test_entropy_of_attention_counts_valid_tokens():
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(6, 5, 4)).astype(np.float32)
    mask = np.arange(5)[None] < np.array([1, 2, 3, 4, 5, 0])[:, None]
    features = {
        name: Features(pooled=jnp.zeros((6, 4)), tokens=jnp.asarray(x), token_mask=mask)
        for name, x in (("a", tokens), ("b", -tokens))
    }
    inputs = SchedulerInput(features, jnp.ones((6, 2), bool), jnp.ones(6, bool), 1.0)
    signal = Entropy(source="attention")
    variables = signal.init(jax.random.key(0), inputs, train=False)
    found = signal.apply(variables, inputs, train=False).value
    query = np.asarray(variables["params"]["query_a"])
    for row, number in enumerate([1, 2, 3, 4, 5]):
        shares = softmax(tokens[row, :number] @ query / 2)
        expected = entropy(shares) / np.log(number) if number > 1 else 0
        np.testing.assert_allclose(found[row, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(found[5], 0)


def test_wrong_sources_are_refused():
    inputs = make_scheduler_input()
    with pytest.raises(FusionError, match=r"entropy\.source is 'pixels': choose one of"):
        Entropy(source="pixels").init(jax.random.key(0), inputs, train=False)
    with pytest.raises(FusionError, match=r"agreement\.source is 'pixels': choose one of"):
        Agreement(source="pixels").init(jax.random.key(0), inputs, train=False)
    with pytest.raises(FusionError, match="entropy needs a per-example prediction"):
        Entropy().init(jax.random.key(0), inputs.replace(predict=None), train=False)


# Agreement


def test_jensen_shannon_is_that_of_scipy():
    p, q = softmax(3 * np.random.default_rng(0).normal(size=(2, 40, 6)), axis=-1)
    expected = jensenshannon(p, q, axis=-1, base=2) ** 2
    np.testing.assert_allclose(jensen_shannon(p, q), expected, atol=1e-6)
    np.testing.assert_allclose(jensen_shannon(p, p), 0, atol=1e-6)
    far = jensen_shannon(jnp.eye(2)[0], jnp.eye(2)[1])
    np.testing.assert_allclose(far, 1, rtol=1e-6)
    slope = jax.grad(lambda x: jensen_shannon(x, jnp.eye(2)[1]).sum())(jnp.eye(2)[0])
    assert np.isfinite(slope).all()


def test_the_odd_one_out_agrees_least():
    logits = np.zeros((1, 3, 4))
    logits[0, :2, 1], logits[0, 2, 3] = 9, 9
    found = value_of(Agreement(), with_predictions(logits))[0]
    assert found[2] < 0.01 < 0.45 < found[0] == pytest.approx(found[1])
    # Of two, both have the same; alone, a modality agrees with itself.
    present = np.array([[True, False, True], [True, False, False]])
    found = value_of(Agreement(), with_predictions(logits.repeat(2, 0), present))
    np.testing.assert_allclose(found[0, [0, 2]], found[0, 0])
    assert found[0, 0] < 0.01 and found[1, 0] == 1


def test_alignment_brings_pairs_together():
    # One content seen through two random maps: the space must find it again, on other examples.
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(2, 6, 20)).astype(np.float32)

    def draw(rows):
        content = generator.normal(size=(rows, 6)).astype(np.float32)
        features = {
            name: Features(pooled=jnp.asarray(content @ maps[m])) for m, name in enumerate("ab")
        }
        return SchedulerInput(features, jnp.ones((rows, 2), bool), jnp.ones(rows, bool), 0.5)

    space, tx = AlignedSpace(8), optax.adam(1e-2)
    params = space.init(jax.random.key(0), draw(4), train=False)
    state = tx.init(params)

    @jax.jit
    def step(params, state, inputs):
        def loss(params):
            return space.apply(params, inputs, train=True)[1].mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(150):
        params, state, value = step(params, state, draw(64))
    assert value < 0.3 < np.log(64)
    unit, _ = space.apply(params, draw(50), train=False)
    cosine = np.einsum("id,jd->ij", unit[:, 0], unit[:, 1])
    assert (cosine.argmax(axis=1) == np.arange(50)).mean() > 0.9


def test_contrastive_loss_leaves_out_padding_and_absent_rows():
    inputs = make_scheduler_input(rows=12, num=3)
    mask = jnp.arange(12) < 9
    space = AlignedSpace(4)
    params = space.init(jax.random.key(0), inputs, train=False)
    _, loss = space.apply(params, inputs.replace(mask=mask), train=True)
    junk = {
        name: Features(pooled=jnp.where(mask[:, None], value.pooled, 1e3))
        for name, value in inputs.features.items()
    }
    _, other = space.apply(params, inputs.replace(mask=mask, features=junk), train=True)
    np.testing.assert_allclose(loss, other, atol=1e-5)
    assert not np.any(loss[9:]) and np.any(loss[:9])


def test_availability():
    present = np.array([[True, True, False], [True, False, False], [True, True, True]])
    found = value_of(Availability(), with_predictions(np.zeros((3, 3, 2)), present))
    np.testing.assert_allclose(found, np.array([2, 1, 3])[:, None] / 3 * np.ones((1, 3)), rtol=1e-6)


# The gate


def test_gate_comes_in_after_its_warmup():
    inputs = make_scheduler_input(rows=20, num=3)
    gate = Gate(hidden=(8,), warmup=0.2, ramp=0.2, floor=0.1)
    signals = {"one": inputs.noise_level, "two": -(inputs.noise_level**2)}
    variables = gate.init(jax.random.key(0), signals, inputs, train=False)
    params = jax.tree.map(lambda x: x + 0.3, variables["params"])
    params["score"]["kernel"] = jnp.linspace(-3, 3, 8)[:, None]
    equal = uniform_weights(inputs.present)

    def weights(progress, train):
        found, _ = gate.apply(
            {**variables, "params": params},
            signals,
            inputs.replace(progress=progress),
            train=train,
            mutable=True,
        )
        return np.asarray(found)

    for train in (True, False):
        np.testing.assert_array_equal(weights(0.1, train), equal)
    full, half = weights(1.0, False), weights(0.3, False)
    assert np.abs(full - equal).max() > 0.05
    np.testing.assert_allclose(half, 0.5 * full + 0.5 * equal, atol=1e-6)
    # The floor acts in training alone, and is gone at the end.
    np.testing.assert_allclose(weights(0.5, False), full, atol=1e-6)
    assert np.abs(weights(0.5, True) - full).max() > 1e-3


def test_gate_normalises_by_running_statistics_of_present_rows():
    inputs = make_scheduler_input(rows=400, num=2)
    generator = np.random.default_rng(0)
    signal = generator.normal(5.0, 3.0, (400, 2)).astype(np.float32)
    counted = np.asarray(inputs.present & inputs.mask[:, None])
    junk = np.where(counted, signal, 1e6).astype(np.float32)
    gate = Gate(hidden=(4,), decay=0.0)
    variables = gate.init(jax.random.key(0), {"one": signal}, inputs, train=False)
    _, after = gate.apply(variables, {"one": junk}, inputs, train=True, mutable=True)
    for m, name in enumerate(inputs.modalities):
        rows = signal[counted[:, m], m]
        found = after["scheduler"][f"norm_{name}"]
        # Signals enter as logarithms.
        entered = np.sign(rows) * np.log1p(np.abs(rows))
        np.testing.assert_allclose(found["mean"][0], entered.mean(), rtol=1e-4)
        np.testing.assert_allclose(found["square"][0], (entered**2).mean(), rtol=1e-4)


@pytest.mark.parametrize("kind", [MAAFSScheduler, CombinedScheduler])
def test_scheduler_is_small(kind):
    inputs = make_scheduler_input(num=2)
    params = jax.eval_shape(lambda: kind().init(jax.random.key(0), inputs, train=False))["params"]
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    assert sizes["gate"] < 4000


# The objective


def make_output(weights, *, present=None, prediction=None, noise_level=None):
    weights = jnp.asarray(weights, jnp.float32)
    rows, num = weights.shape
    present = jnp.ones((rows, num), bool) if present is None else jnp.asarray(present)
    return ModelOutput(
        prediction=jnp.zeros((rows, 3)) if prediction is None else jnp.asarray(prediction),
        unimodal=jnp.zeros((rows, num, 3)),
        fusion=FusionWeights(weights, jnp.zeros(rows), {}),
        features={},
        present=present,
        noise_level=None if noise_level is None else jnp.asarray(noise_level),
    )


def test_calibration_is_the_divergence_from_who_is_right():
    generator = np.random.default_rng(0)
    present = np.array([[True, True, True], [True, False, True], [False, True, False]])
    weights = generator.uniform(0.1, 1, (3, 3)) * present
    weights /= weights.sum(axis=1, keepdims=True)
    losses = generator.uniform(0, 3, (3, 3)).astype(np.float32)
    found = calibration_loss(weights, losses, present, temperature=0.7)
    for row in range(3):
        here = present[row]
        expected = entropy(softmax(-losses[row, here] / 0.7), weights[row, here])
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    # It is least, 0, where the weights are the shares.
    best = softmax(-losses / 0.7, axis=1)
    np.testing.assert_allclose(calibration_loss(best, losses, temperature=0.7), 0, atol=1e-6)


def test_ranking_counts_what_alone_is_noisy():
    clean = make_output([[0.5, 0.5]] * 4)
    corrupted = make_output(
        [[0.6, 0.4], [0.4, 0.6], [0.7, 0.3], [0.0, 1.0]],
        present=[[True, True]] * 3 + [[False, True]],
        noise_level=[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]],
    )
    found = ranking_loss(corrupted, clean, 0.1)
    # Noisy and heavier: 0.6 - 0.5 + 0.1 x 1/2 x 0.5. Lighter than the margin asks: nothing. Both
    # noisy, or another presence: not compared.
    np.testing.assert_allclose(found, [0.125, 0, 0, 0], atol=1e-6)


def test_balance_is_of_the_mean_and_not_of_each_row():
    mask = jnp.asarray([True, True, True, False])
    sharp = make_output([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    np.testing.assert_array_equal(balance_loss(sharp, mask), 0)
    lost = make_output([[0.99, 0.01]] * 4)
    expected = 0.5 - entropy([0.99, 0.01]) / np.log(2)
    np.testing.assert_allclose(balance_loss(lost, mask), expected, rtol=1e-4)
    np.testing.assert_array_equal(balance_loss(lost, jnp.zeros(4, bool)), 0)


def test_consistency_moves_the_corrupted_prediction_alone():
    generator = np.random.default_rng(0)
    clean, noisy = generator.normal(size=(2, 5, 3)).astype(np.float32)
    weights = [[0.5, 0.5]] * 5

    def total(clean, noisy):
        pair = (make_output(weights, prediction=x) for x in (noisy, clean))
        return consistency_loss(*pair).sum()

    expected = entropy(softmax(clean, axis=1), softmax(noisy, axis=1), axis=1).sum()
    np.testing.assert_allclose(total(clean, noisy), expected, rtol=1e-5)
    into_clean, into_noisy = jax.grad(total, argnums=(0, 1))(clean, noisy)
    assert not np.any(into_clean) and np.any(into_noisy)


def test_objective_asks_for_the_views_it_needs():
    assert MAAFSObjective().views == ("corrupted", "clean")
    assert MAAFSObjective(ranking=0.0, consistency=0.0).views == ("corrupted",)
    with pytest.raises(
        FusionError, match=r"config\.objective\.balance is -1: it must be 0 or more"
    ):
        MAAFSObjective(balance=-1).init(2)
    with pytest.raises(FusionError, match="temperature is 0: it must be above 0"):
        MAAFSObjective(temperature=0).init(2)
