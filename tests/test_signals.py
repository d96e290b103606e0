"""The signals' arithmetic, by hand; and the weights that are made of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import spearmanr

from fusion_jax.blocks.input_statistics import input_statistics
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.frequency import frequency_ratio
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.preprocess.standardise import Standardise
from fusion_jax.schedulers.qmf import QMFScheduler
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import power_weights
from fusion_jax.signals.dependence import Dependence, logit_change
from fusion_jax.signals.energy import Energy
from fusion_jax.signals.frequency_ratio import FrequencyRatio
from fusion_jax.signals.predicted_noise import PredictedNoise, noise_cues
from fusion_jax.tasks.classification import ClassificationHead
from fusion_jax.types import Features, SchedulerInput
from tests.conftest import NAMES, make_features, make_scheduler_input

ROWS, CLASSES = 6, 4


def make_input(num, predict=None, *, rows=ROWS, **fields):
    """Complete, clean, unpadded rows, unless `fields` say otherwise."""
    blank = jnp.zeros((rows, 2))
    given = {
        "features": {f"m{i}": Features(pooled=blank) for i in range(num)},
        "present": jnp.ones((rows, num), bool),
        "mask": jnp.ones(rows, bool),
        "progress": 0.5,
        "predict": predict,
        **fields,
    }
    return SchedulerInput(**given)


def make_table(num, *, rows=ROWS, seed=0):
    """Logits [2^num, rows, CLASSES] for every subset: a model without any structure."""
    shape = (2**num, rows, CLASSES)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def predict_from(table):
    """The model whose logits on subset S of row b are table[sum of 2^m over S, b]."""
    num, rows = int(np.log2(len(table))), table.shape[1]

    def predict(subsets):
        code = jnp.sum(jnp.where(subsets, 2 ** jnp.arange(num).reshape(1, 1, -1), 0), axis=-1)
        return jnp.asarray(table)[code, jnp.arange(rows)[None]]

    return predict


def centred_change(a, b):
    """L1 distance of two sets of logits up to a shift of each."""
    a, b = np.float64(a), np.float64(b)
    difference = (a - a.mean(axis=-1, keepdims=True)) - (b - b.mean(axis=-1, keepdims=True))
    return np.abs(difference).sum(axis=-1)


def shapley_change(table):
    """Mean over all orders of joining of the change that each modality makes: [rows, M]."""
    num = int(np.log2(len(table)))
    orders = list(itertools.permutations(range(num)))
    change = np.zeros((table.shape[1], num))
    for order in orders:
        code = 0
        for m in order:
            change[:, m] += centred_change(table[code | 1 << m], table[code]) / len(orders)
            code |= 1 << m
    return change


def measured(signal, inputs, share, *, train=True):
    """(value of the first row, share afterwards) from a stored share."""
    variables = {"scheduler": {"share": jnp.asarray(share, jnp.float32)}}
    found, changed = jax.jit(
        lambda variables: signal.apply(variables, inputs, train=train, mutable=["scheduler"])
    )(variables)
    value, after = np.asarray(found.value), np.asarray(changed["scheduler"]["share"])
    np.testing.assert_array_equal(value, np.broadcast_to(after, value.shape))
    return after


NOW = Dependence(decay=0.0, margin=0.0)  # the share of this batch, as it is


# Dependence


def test_dependence_of_a_linear_head_by_hand():
    # Logits x_1 W_1 + x_2 W_2 without bias: dropping a modality takes its term away, so the change
    # is the L1 norm of the centred term.
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, ROWS, 3)).astype(np.float32)
    heads = generator.normal(size=(2, 3, CLASSES)).astype(np.float32) * [[[1.0]], [[3.0]]]
    terms = np.einsum("mbd,mdk->mbk", x, heads)

    def predict(subsets):
        return jnp.einsum("sbm,mbk->sbk", subsets.astype(jnp.float32), jnp.float32(terms))

    change = centred_change(terms, np.zeros_like(terms)).T
    np.testing.assert_allclose(
        jax.jit(lambda: logit_change(make_input(2, predict)))(), change, rtol=1e-5
    )
    mean = change.mean(axis=0)
    np.testing.assert_allclose(
        measured(NOW, make_input(2, predict), np.ones(2)), 2 * mean / mean.sum(), rtol=1e-5
    )


def test_dependence_of_two_modalities_leaves_one_out():
    # Codes: 3 both, 1 the first alone, 2 the second alone; nothing at all (0) is not asked for.
    table = make_table(2)
    expected = np.stack([centred_change(table[3], table[i]) for i in (2, 1)], axis=-1)
    table[0] = np.nan
    found = jax.jit(lambda: logit_change(make_input(2, predict_from(table))))()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("num", [3, 4])
def test_dependence_of_more_modalities_is_the_mean_over_orders(num):
    table = make_table(num)
    found = jax.jit(lambda: logit_change(make_input(num, predict_from(table))))()
    np.testing.assert_allclose(found, shapley_change(table), rtol=1e-5)


def test_dependence_ignores_a_shift_of_all_logits():
    table = make_table(3)
    shift = 5 * np.random.default_rng(1).normal(size=(8, ROWS, 1)).astype(np.float32)
    expected = shapley_change(table).mean(axis=0)
    found = measured(NOW, make_input(3, predict_from(table + shift)), np.ones(3))
    np.testing.assert_allclose(found, 3 * expected / expected.sum(), rtol=1e-5)


def test_dependence_is_averaged_over_steps():
    # One class gets 3 from the first and 1 from the second modality: centring scales both alike,
    # so the shares are 2 * 3/4 and 2 * 1/4. Twice with decay 0.75, from (1, 1):
    # 0.75 + 0.25 * 1.5 = 1.125, 0.75 * 1.125 + 0.25 * 1.5 = 1.21875; the other is 2 minus that.
    def predict(subsets):
        return (subsets @ jnp.float32([3, 1]))[..., None] * jnp.float32([1, 0, 0]).reshape(1, 1, 3)

    signal, inputs = Dependence(decay=0.75, margin=0.2), make_input(2, predict)
    once = measured(signal, inputs, [1, 1])
    np.testing.assert_allclose(once, [1.125, 0.875], atol=1e-6)
    twice = measured(signal, inputs, once)
    np.testing.assert_allclose(twice, [1.21875, 0.78125], atol=1e-6)
    # Evaluation recalls.
    np.testing.assert_array_equal(measured(signal, inputs, twice, train=False), twice)


@pytest.mark.parametrize(
    ("num", "expected"),
    # Only the first modality matters: the share is M for it and 0 for the others, clipped to
    # [0.2, M - 0.2].
    [(2, [1.8, 0.2]), (3, [2.8, 0.2, 0.2])],
)
def test_dependence_is_clipped_away_from_none_and_all(num, expected):
    def predict(subsets):
        return subsets[..., :1] * jnp.float32([1, -1]).reshape(1, 1, 2)

    found = measured(Dependence(decay=0.0, margin=0.2), make_input(num, predict), np.ones(num))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dependence_is_measured_on_clean_complete_rows_only():
    rows = 8
    table = make_table(2, rows=rows)
    table[:, 3:] *= 100  # the rows that must not count would turn the result around
    table[3, 3:] = table[1, 3:]
    present, mask, level = np.ones((rows, 2), bool), np.ones(rows, bool), np.zeros((rows, 2))
    level[3, 0] = level[4, 1] = 0.1
    present[5, 0] = present[6, 1] = False
    mask[7] = False
    fields = {"present": jnp.asarray(present), "mask": jnp.asarray(mask)}
    noisy = make_input(2, predict_from(table), rows=rows, noise_level=jnp.float32(level), **fields)
    clean = make_input(2, predict_from(table[:, :3]), rows=3)
    found = measured(NOW, noisy, np.ones(2))
    np.testing.assert_allclose(found, measured(NOW, clean, np.ones(2)), rtol=1e-5)
    # Without a noise level the rows 3 and 4 count as clean.
    unknown = measured(NOW, make_input(2, predict_from(table), rows=rows, **fields), np.ones(2))
    first = make_input(2, predict_from(table[:, :5]), rows=5)
    np.testing.assert_allclose(unknown, measured(NOW, first, np.ones(2)), rtol=1e-5)
    assert np.abs(unknown - found).max() > 0.1


@pytest.mark.parametrize(
    "fields",
    [
        {"noise_level": jnp.ones((ROWS, 2))},
        {"present": jnp.tile(jnp.array([[True, False]]), (ROWS, 1))},
        {"mask": jnp.zeros(ROWS, bool)},
    ],
    ids=["noisy", "incomplete", "padding"],
)
def test_dependence_without_a_clean_row_stays(fields):
    share = np.float32([1.3, 0.7])
    found = measured(
        Dependence(decay=0.5), make_input(2, predict_from(make_table(2)), **fields), share
    )
    np.testing.assert_array_equal(found, share)


def test_dependence_on_a_model_that_ignores_its_inputs_stays():
    inputs = make_input(2, lambda subsets: jnp.ones((*subsets.shape[:-1], CLASSES)))
    share = np.float32([1.3, 0.7])
    np.testing.assert_array_equal(measured(Dependence(decay=0.5), inputs, share), share)


def test_dependence_on_a_single_modality_is_one():
    # The margin would allow [0.2, 0.8] only.
    found = measured(Dependence(decay=0.0), make_input(1, predict_from(make_table(1))), [0.25])
    np.testing.assert_allclose(found, [1], atol=1e-6)


def test_dependence_refuses_too_many_modalities_and_a_missing_prediction():
    variables = {"scheduler": {"share": jnp.ones(9)}}
    inputs = make_input(9, lambda subsets: jnp.ones((*subsets.shape[:-1], CLASSES)))
    with pytest.raises(FusionError, match=r"9 modalities needs 2\^9"):
        Dependence().apply(variables, inputs, train=True, mutable=["scheduler"])
    with pytest.raises(FusionError, match="per-example prediction"):
        variables = {"scheduler": {"share": jnp.ones(2)}}
        Dependence().apply(variables, make_input(2, None), train=True, mutable=["scheduler"])


# Predicted noise


def make_noise_variables(signal, inputs, seed=0):
    """Parameters drawn at random, so that the zero-initialised layer says something."""
    shapes = jax.eval_shape(lambda: signal.init(jax.random.key(0), inputs, train=False))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.float32(0.5 * generator.normal(size=x.shape)), shapes)


def test_predicted_noise_is_trained_on_the_log_of_the_total_scale():
    inputs, signal = make_scheduler_input(rows=12, num=3), PredictedNoise(hidden=8, loss_weight=2.0)
    variables = make_noise_variables(signal, inputs)
    for name in inputs.modalities:  # all outputs above 0, where rho is not cut
        variables["params"][f"scale_{name}"]["bias"] += 3.0
    found = jax.jit(lambda: signal.apply(variables, inputs, train=True))()
    rho, level = np.float64(found.value), np.float64(inputs.noise_level)
    assert (rho > 1).all() and np.ptp(rho) > 0.1
    # Clean is 1 and noise of level l on top makes sqrt(1 + l^2): squared error of the logarithms
    # over the present modalities, times the weight.
    error = (np.log(rho) - np.log(np.sqrt(1 + level**2))) ** 2 * np.asarray(inputs.present)
    np.testing.assert_allclose(found.aux_loss, 2.0 * error.sum(axis=1), rtol=1e-5, atol=1e-6)
    assert (np.asarray(found.aux_loss)[:-1] > 0).all()


def test_predicted_noise_below_clean_is_clean_and_still_learns():
    inputs, signal = make_scheduler_input(rows=12, num=2), PredictedNoise(hidden=8)
    variables = make_noise_variables(signal, inputs)
    for name in inputs.modalities:
        variables["params"][f"scale_{name}"]["bias"] -= 30.0
    found = jax.jit(lambda: signal.apply(variables, inputs, train=True))()
    np.testing.assert_array_equal(found.value, 1)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: signal.apply({"params": p}, inputs, train=True).aux_loss.sum())(
            params
        )

    for name in inputs.modalities:  # the output is far too low: it must rise
        assert gradient(variables["params"])[f"scale_{name}"]["bias"] < -1


@pytest.mark.parametrize(
    ("train", "known"), [(True, False), (False, True)], ids=["level unknown", "evaluation"]
)
def test_predicted_noise_has_no_loss(train, known):
    inputs, signal = make_scheduler_input(), PredictedNoise(hidden=8)
    variables = make_noise_variables(signal, inputs)
    given = inputs if known else inputs.replace(noise_level=None)
    found = jax.jit(lambda: signal.apply(variables, given, train=train))()
    assert not np.any(found.aux_loss)
    other = jax.jit(lambda: signal.apply(variables, inputs, train=True))()
    np.testing.assert_allclose(found.value, other.value, rtol=1e-6)


def test_predicted_noise_starts_equal_for_all_modalities():
    inputs, signal = make_scheduler_input(num=3), PredictedNoise(hidden=8)
    found, _ = jax.jit(lambda: signal.init_with_output(jax.random.key(0), inputs, train=False))()
    np.testing.assert_array_equal(found.value, 1)


def draw_tokens(batches, rows, seed):
    """Tokens [batches, rows, 8, 32] and levels [batches, rows], half of them 0.

    Noise of level l widens the spread of the tokens about a random content by sqrt(1 + l^2).
    """
    generator = np.random.default_rng(seed)
    level = generator.uniform(0, 4, (batches, rows)) * generator.integers(0, 2, (batches, rows))
    scale = 0.3 * np.sqrt(1 + level**2)[..., None, None]
    content = generator.normal(size=(batches, rows, 1, 32))
    tokens = content + scale * generator.normal(size=(batches, rows, 8, 32))
    return tokens.astype(np.float32), level.astype(np.float32)


def test_predicted_noise_learns_the_level():
    signal, tx = PredictedNoise(hidden=16), optax.adam(1e-2)

    def noisy_input(tokens, level):
        features = {"m0": Features(pooled=tokens.mean(axis=1), tokens=tokens)}
        return make_input(1, rows=len(level), features=features, noise_level=level[:, None])

    @jax.jit
    def fit(train, fresh):
        def step(carry, batch):
            params, state = carry
            gradient = jax.grad(
                lambda params: signal.apply(params, noisy_input(*batch), train=True).aux_loss.mean()
            )(params)
            updates, state = tx.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        start = signal.init(jax.random.key(0), noisy_input(*fresh), train=False)
        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), train)
        return signal.apply(params, noisy_input(*fresh), train=False).value

    tokens, level = (x[0] for x in draw_tokens(1, 400, seed=1))
    value = np.asarray(fit(draw_tokens(150, 64, seed=0), (tokens, level)))[:, 0]
    noisy = level > 0
    assert spearmanr(value[noisy], level[noisy]).statistic >= 0.9
    # rho is the total scale, not only its rank: 1 for clean, 3 around level sqrt(8).
    assert np.median(value[~noisy]) == pytest.approx(1, abs=0.15)
    around = np.abs(level - np.sqrt(8)) < 0.5
    assert np.median(value[around]) == pytest.approx(3, rel=0.2)


@pytest.mark.slow
def test_predicted_noise_from_statistics_carries_on_beyond_training():
    # Half of the examples at levels up to 3, as a recipe draws them; then levels up to 12.
    signal, tx = PredictedNoise(mode="statistics"), optax.adam(1e-2)
    generator = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 9, 60))[:, None] * generator.uniform(0.5, 2, (256, 1, 1))

    def inputs_at(level, seed):
        noise = np.random.default_rng(seed).normal(size=waves.shape)
        x = np.float32(waves + 0.3 * level[:, None, None] * noise)
        features = {"m0": Features(np.zeros((256, 2)), statistics=input_statistics(x))}
        return make_input(1, rows=256, features=features, noise_level=np.float32(level[:, None]))

    trained = [
        inputs_at(generator.uniform(0, 3, 256) * generator.integers(0, 2, 256), seed)
        for seed in range(8)
    ]

    def step(carry, batch):
        params, state, norm = carry

        def loss(params):
            variables = {"params": params, "scheduler": norm}
            found, after = signal.apply(variables, batch, train=True, mutable=["scheduler"])
            return found.aux_loss.mean(), after["scheduler"]

        gradient, norm = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(params, updates), state, norm), None

    @jax.jit
    def fit(batches):
        start = signal.init(jax.random.key(0), trained[0], train=False)
        carry = (start["params"], tx.init(start["params"]), start["scheduler"])
        (params, _, norm), _ = jax.lax.scan(step, carry, batches)
        return {"params": params, "scheduler": norm}

    variables = fit(jax.tree.map(lambda *x: jnp.stack(x), *(trained * 60)))
    means = []
    for level in (0, 1, 3, 6, 12):
        given = inputs_at(np.full(256, float(level)), 100)
        means.append(float(signal.apply(variables, given, train=False).value.mean()))
    assert all(a < b for a, b in itertools.pairwise(means)), means
    # Too little (four times the noise is told as 1.5 times it, measured), but it does not saturate.
    assert means[4] > 1.3 * means[2] and means[3] > 1.1 * means[2]
    with pytest.raises(FusionError, match="'m0' have none: give them `statistics="):
        bare = make_input(1, rows=4, features={"m0": Features(np.zeros((4, 2)))})
        signal.init(jax.random.key(0), bare, train=False)


def test_noise_cues_are_log_variances_or_pooled_features_and_token_spread():
    generator = np.random.default_rng(0)
    pooled, log_variance = generator.normal(size=(2, 3, 5)).astype(np.float32)
    tokens = generator.normal(size=(3, 4, 5)).astype(np.float32)
    token_mask = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]], bool)
    np.testing.assert_array_equal(noise_cues(Features(pooled=pooled)), pooled)
    spread = np.log(tokens.var(axis=1) + 1e-6)
    expected = np.concatenate([pooled, spread], axis=1)
    found = jax.jit(noise_cues)(Features(pooled, tokens))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # What is drawn in training is no cue: the code's variance alone is.
    code = Features(pooled, tokens, None, log_variance)
    np.testing.assert_array_equal(noise_cues(code), log_variance)
    counted = zip(tokens, token_mask, strict=True)
    spread = np.stack([np.log(row[valid].var(axis=0) + 1e-6) for row, valid in counted])
    expected = np.concatenate([pooled, spread], axis=1)
    masked = Features(pooled, tokens, token_mask)
    np.testing.assert_allclose(jax.jit(noise_cues)(masked), expected, atol=1e-5)


def test_predicted_noise_of_a_row_without_tokens_is_finite():
    # What an absent text leaves: no token counts. Its NaN would reach every parameter's gradient.
    inputs, signal = make_scheduler_input(rows=6), PredictedNoise(hidden=8)
    name = NAMES[0]
    token_mask = jnp.ones((6, 4), bool).at[0].set(False)
    features = inputs.features[name].replace(token_mask=token_mask)
    inputs = inputs.replace(
        features={**inputs.features, name: features},
        present=inputs.present.at[0].set(jnp.array([False, True])),
    )
    variables = make_noise_variables(signal, inputs)

    def loss(variables):
        found = signal.apply(variables, inputs, train=True)
        return found.aux_loss.sum(), found

    (total, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    assert np.isfinite(total) and np.isfinite(found.value).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# Weights from signals


def closed_form(values, exponents, present):
    """w_m = prod_s values_sm^-exponent_s, over its sum over the present modalities."""
    mass = np.prod(np.float64(values) ** -np.float64(exponents)[:, None, None], axis=0) * present
    return mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-300)


def test_power_weights_follow_their_closed_form_and_its_gradient():
    generator = np.random.default_rng(0)
    values = generator.uniform(0.2, 5, (2, 7, 3)).astype(np.float32)
    present = generator.random((7, 3)) < 0.7
    present[0] = False
    exponents = np.float32([0.5, 1.5])
    c = generator.normal(size=(7, 3)).astype(np.float32)

    @jax.jit
    def run(values, exponents):
        gradient = jax.grad(lambda e: jnp.sum(c * power_weights(values, e, present)))
        return power_weights(values, exponents, present), gradient(exponents)

    found, into_exponents = run(values, exponents)
    np.testing.assert_allclose(found, closed_form(values, exponents, present), atol=1e-6)
    # Central differences of the closed form in double precision.
    for s, step in enumerate(1e-5 * np.eye(2)):
        above, below = (closed_form(values, exponents + d, present) for d in (step, -step))
        slope = (c * (above - below)).sum() / 2e-5
        assert abs(slope) > 1e-2
        np.testing.assert_allclose(into_exponents[s], slope, rtol=1e-4)


def test_power_weights_by_hand():
    # Signals 1 and 4 with exponent 1/2: 1 to 1/2. A second signal 3 and 1 with exponent 1: 1/3 to
    # 1/2, that is 2/5 to 3/5. A value of 0 counts as 1e-6 and stays finite.
    values = np.float32([[[1, 4], [0, 1]], [[3, 1], [1, 1]]])
    found = jax.jit(power_weights)(values, np.float32([0.5, 1]), np.ones((2, 2), bool))
    np.testing.assert_allclose(found, [[0.4, 0.6], [1000 / 1001, 1 / 1001]], atol=1e-6)


def test_features_of_different_names_do_not_share_an_estimator():
    inputs, signal = make_scheduler_input(rows=6), PredictedNoise(hidden=8)
    same = make_features(6, 1)[NAMES[0]]
    inputs = inputs.replace(features=dict.fromkeys(NAMES[:2], same))
    variables = make_noise_variables(signal, inputs)
    value = np.asarray(jax.jit(lambda: signal.apply(variables, inputs, train=False).value)())
    assert np.abs(value[:, 0] - value[:, 1]).max() > 1e-3


# Energy and the scheduler that is made of it


def energies(num=3):
    """An input whose single modalities predict known logits, and their energies by NumPy."""
    logits = np.random.default_rng(0).normal(size=(num, ROWS, CLASSES)).astype(np.float32)

    def predict(subsets):
        chosen = jnp.where(subsets[..., None], jnp.swapaxes(logits, 0, 1)[None], 0)
        return chosen.sum(axis=-2)

    present = jnp.asarray(np.random.default_rng(1).random((ROWS, num)) < 0.7).at[:, 0].set(True)
    inputs = make_input(num, predict, present=present)
    return inputs, logits, np.asarray(present)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_energy_is_the_free_energy_of_each_modality_alone(temperature):
    inputs, logits, present = energies()
    found = Energy(temperature).apply({}, inputs, train=False).value
    expected = -temperature * np.log(np.exp(logits / temperature).sum(axis=-1)).T
    np.testing.assert_allclose(found, np.where(present, expected, 0), rtol=1e-5)
    assert (found != 0).any(axis=0).all() and not np.asarray(found)[~present].any()
    with pytest.raises(FusionError, match="energy needs a per-example prediction"):
        Energy().apply({}, inputs.replace(predict=None), train=False)


def test_qmf_weighs_the_more_confident_modality_more_and_learns_how_much():
    inputs, logits, present = energies()
    scheduler = QMFScheduler()
    confidence = np.log(np.exp(logits).sum(axis=-1)).T

    def weights(scale):
        params = {"params": {"scales": jnp.asarray([scale])}}
        return scheduler.apply(params, inputs, train=True).weights

    mass = np.where(present, np.exp(0.7 * confidence), 0)
    expected = mass / mass.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights(0.7), expected, rtol=1e-5, atol=1e-7)
    gradient = jax.grad(lambda scale: jnp.sum(weights(scale) * confidence))(0.0)
    assert gradient > 0


def test_dependence_is_measured_where_some_are_missing_but_never_where_some_are_noisy():
    inputs = make_scheduler_input(rows=12, num=3)
    pairs = np.array([[True, True, False], [True, False, True], [False, True, True]])
    present = jnp.asarray(np.tile(pairs, (4, 1)))
    level = jnp.where(present, 0.0, 2.0)  # what is missing may have been noisy
    inputs = inputs.replace(present=present, mask=jnp.ones(12, bool), noise_level=level)
    signal = Dependence(decay=0.0)
    variables = signal.init(jax.random.key(0), inputs, train=False)

    def share(**fields):
        given = inputs.replace(**fields)
        _, after = signal.apply(variables, given, train=True, mutable=True)
        return np.asarray(after["scheduler"]["share"])

    change = np.asarray(logit_change(inputs))
    means = np.array([change[present[:, m], m].mean() for m in range(3)])
    np.testing.assert_allclose(share(), np.clip(3 * means / means.sum(), 0.2, 2.8), rtol=1e-5)
    # Every row noisy in something that it has, or with one modality: nothing is measured.
    np.testing.assert_array_equal(share(noise_level=jnp.ones((12, 3))), 1)
    alone = jnp.asarray(np.tile(np.eye(3, dtype=bool), (4, 1)))
    np.testing.assert_array_equal(share(present=alone), 1)
    # One modality is in no row that counts: shares among the others would be too large.
    np.testing.assert_array_equal(share(present=jnp.asarray(pairs[[0] * 12])), 1)


# Frequency ratio


def test_frequency_ratio_is_the_logarithm_of_what_is_given():
    ratio = jnp.asarray([[1.0, 8.0], [0.0, 2.0], [3.0, jnp.inf]])
    present = jnp.ones((3, 2), bool).at[2, 1].set(False)
    inputs = make_input(2, rows=3, present=present, frequency_ratio=ratio)
    found = FrequencyRatio().apply({}, inputs, train=False).value
    expected = np.log([[1, 8], [1e-2, 2], [3, 1]])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_model_measures_frequency_ratios_of_preprocessed_inputs():
    generator = np.random.default_rng(0)
    smooth = np.broadcast_to(np.linspace(-1, 1, 16), (3, 16, 16))[..., None]
    inputs = {
        "a": np.float32(smooth + 0.01 * generator.normal(size=(3, 16, 16, 1))),
        "b": np.float32(generator.normal(size=(3, 32))),
    }
    signal = FrequencyRatio(block=4)
    model = FusionModel(
        encoders={"a": CNNEncoder(widths=(4,), features=4, groups=2), "b": MLPEncoder((4,), 4)},
        scheduler=StaticScheduler(signals=(signal,)),
        fusion=SumFusion(),
        head=ClassificationHead(num_classes=2),
        preprocess={"a": Standardise(mean=0.0, deviation=2.0)},
    )
    present = jnp.ones((3, 2), bool).at[1, 0].set(False)
    output, _ = model.init_with_output(jax.random.key(0), inputs, present, train=False)
    found = output.fusion.signals["FrequencyRatio"]
    expected = np.log(
        [frequency_ratio(inputs["a"] / 2, block=4), frequency_ratio(inputs["b"], block=4)]
    ).T
    expected[1, 0] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[0, 0] > found[0, 1] + 1


def test_frequency_ratio_without_ratios_or_with_too_small_inputs_is_refused():
    with pytest.raises(FusionError, match="a FusionModel measures it"):
        FrequencyRatio().apply({}, make_input(2), train=False)
    with pytest.raises(FusionError, match="'official' is not finite"):
        FrequencyRatio(mode="official").measure_frequency_ratio(jnp.ones((2, 8)))
    model = FusionModel(
        encoders={"tiny": MLPEncoder((4,), 4)},
        scheduler=StaticScheduler(signals=(FrequencyRatio(),)),
        fusion=SumFusion(),
        head=ClassificationHead(num_classes=2),
    )
    with pytest.raises(FusionError, match="the frequency ratio of 'tiny': an input of 5 samples"):
        model.init(
            jax.random.key(0), {"tiny": jnp.ones((2, 5))}, jnp.ones((2, 1), bool), train=False
        )
