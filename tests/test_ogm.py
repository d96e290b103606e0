"""OGM's scores and scales against NumPy, and the noise of OGM-GE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.balancing.ogm import OGM
from fusion_jax.balancing.scale_by_modality import scale_by_modality
from fusion_jax.blocks.true_class import discrepancy_ratio
from fusion_jax.errors import FusionError
from fusion_jax.types import Batch, FusionWeights, ModelOutput

NAMES = ("left", "right")


def make_case(num=2, rows=16, valid=13, seed=0):
    """A batch and an output whose presence, after modality dropout, is less than the batch's."""
    generator = np.random.default_rng(seed)
    batch = Batch(
        inputs={f"m{i}": np.zeros((rows, 2), np.float32) for i in range(num)},
        present=np.ones((rows, num), bool),
        target=generator.integers(0, 4, rows).astype(np.int32),
        mask=np.arange(rows) < valid,
        example_id=np.arange(rows),
    )
    present = generator.random((rows, num)) < 0.7
    # The first modality knows the target best, so that there is something to slow down.
    unimodal = generator.normal(size=(rows, num, 4))
    unimodal[np.arange(rows), 0, batch.target] += 3
    output = ModelOutput(
        jnp.zeros((rows, 4)),
        jnp.asarray(unimodal, jnp.float32),
        FusionWeights(jnp.ones((rows, num)) / num, jnp.zeros(rows), {}),
        {},
        jnp.asarray(present),
    )
    return batch, output


def plain_scales(batch, output, alpha):
    """Equations 8 to 10 in NumPy, over present, unpadded rows."""
    unimodal, present = np.asarray(output.unimodal, np.float64), np.asarray(output.present)
    powers = np.exp(unimodal)
    probability = (powers / powers.sum(axis=-1, keepdims=True))[
        np.arange(len(batch.target)), :, batch.target
    ]
    num = present.shape[1]
    scores = [probability[present[:, m] & batch.mask, m].mean() for m in range(num)]
    scales = []
    for m in range(num):
        ratio = scores[m] / np.mean([scores[i] for i in range(num) if i != m])
        scales.append(1 - np.tanh(alpha * ratio) if ratio > 1 else 1)
    return scores, scales


@pytest.mark.parametrize("num", [2, 3])
def test_scales_are_those_of_a_numpy_reference(num):
    batch, output = make_case(num)
    balancer = OGM(alpha=0.3)
    losses, scale, state = balancer.observe(balancer.init(num), batch, output)
    scores, scales = plain_scales(batch, output, 0.3)
    np.testing.assert_allclose(state["score"], scores, rtol=1e-5)
    np.testing.assert_allclose(scale, scales, rtol=1e-4)
    assert scale[0] < 1 and min(scales[1:]) == 1
    np.testing.assert_array_equal(losses, 1)


def test_rows_that_are_padding_or_absent_do_not_count():
    batch, output = make_case()
    other = np.array(output.unimodal)
    other[~np.asarray(output.present)] = np.nan
    other[13:] = 50
    balancer = OGM()
    _, scale, state = balancer.observe(balancer.init(2), batch, output)
    _, again, same = balancer.observe(
        balancer.init(2), batch, output.replace(unimodal=jnp.asarray(other))
    )
    np.testing.assert_array_equal(scale, again)
    np.testing.assert_array_equal(state["score"], same["score"])


def test_ratio_is_to_the_mean_of_the_available_others():
    scores, here = jnp.asarray([0.6, 0.3, 0.1]), jnp.asarray([True, True, True])
    np.testing.assert_allclose(discrepancy_ratio(scores, here), [3, 0.3 / 0.35, 0.1 / 0.45], 1e-4)
    # The absent one has no ratio and is nobody's other.
    found = discrepancy_ratio(scores, jnp.asarray([True, True, False]))
    np.testing.assert_allclose(found, [2, 0.5, 1], rtol=1e-4)
    np.testing.assert_array_equal(discrepancy_ratio(scores, jnp.asarray([True, False, False])), 1)


def scale_of_probabilities(*probabilities, **fields):
    """The scales for modalities that give the true one of two classes these probabilities."""
    batch, output = make_case(len(probabilities))
    logit = np.log(np.asarray(probabilities) / (1 - np.asarray(probabilities)))
    unimodal = np.zeros((16, len(probabilities), 2), np.float32)
    unimodal[:, :, 1] = logit
    output = output.replace(unimodal=jnp.asarray(unimodal))
    balancer = OGM(**fields)
    batch = batch.replace(target=np.ones(16, np.int32))
    return np.asarray(balancer.observe(balancer.init(len(probabilities)), batch, output)[1])


def test_scale_jumps_where_the_ratio_passes_one():
    below, above = (scale_of_probabilities(0.5 + d, 0.5, alpha=0.8) for d in (-1e-3, 1e-3))
    assert below[0] == 1
    assert above[0] == pytest.approx(1 - np.tanh(0.8), abs=5e-3)


def test_strength_zero_is_neutral():
    np.testing.assert_array_equal(scale_of_probabilities(0.9, 0.2, 0.3, alpha=0.0), 1)


def test_window_begins_and_ends():
    batch, output = make_case()
    balancer = OGM(start=2, end=4)
    state, active = balancer.init(2), []
    for _ in range(6):
        _, scale, state = balancer.observe(state, batch, output)
        active.append(bool((scale != 1).any()))
    assert active == [False, False, True, True, False, False]


def test_absent_modality_is_not_scaled_and_the_other_neither():
    batch, output = make_case()
    present = np.array(output.present)
    present[:, 1] = False
    balancer = OGM()
    _, scale, state = balancer.observe(
        balancer.init(2), batch, output.replace(present=jnp.asarray(present))
    )
    np.testing.assert_array_equal(scale, 1)
    assert np.isfinite(state["score"]).all()


def test_scores_are_global_over_devices():
    # 11 of 16 rows are valid: the last two devices hold padding only.
    (batch, output), balancer = make_case(valid=11), OGM(alpha=0.3)
    _, scale, state = balancer.observe(balancer.init(2), batch, output)
    split = jax.tree.map(lambda x: np.reshape(x, (8, -1, *np.shape(x)[1:])), (batch, output))
    mapped = jax.pmap(lambda pair: balancer.observe(balancer.init(2), *pair), axis_name="data")(
        split
    )
    for device in (0, 7):
        np.testing.assert_allclose(mapped[1][device], scale, rtol=1e-5)
        np.testing.assert_allclose(mapped[2]["score"][device], state["score"], rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -1.0}, "config.balancer.alpha is -1.0: it must be 0 or more"),
        ({"alpha": float("nan")}, "config.balancer.alpha is nan"),
        ({"gradient_noise": -1.0}, "config.balancer.gradient_noise is -1.0"),
        ({"start": -1}, "config.balancer.start is -1"),
        ({"gradient_noise": 1.0, "site": "update"}, "use site='gradient'"),
    ],
)
def test_numbers_out_of_range_are_refused(fields, message):
    with pytest.raises(FusionError, match=message):
        OGM(**fields).init(2)


# The noise of OGM-GE


def noisy(scale, *, key=0, noise=1.0, seed=0):
    """Gradients, and what is added to their scaled values."""
    generator = np.random.default_rng(seed)
    # Two arrays of each encoder, equal in shape, so that only their paths tell them apart.
    grads = {
        f"encoders_{name}": {
            "first": {"kernel": jnp.asarray(3 * generator.normal(size=(200, 300)), jnp.float32)},
            "second": {"kernel": jnp.asarray(generator.normal(size=(200, 300)), jnp.float32)},
            "bias": jnp.asarray(generator.normal(size=300), jnp.float32),
        }
        for name in NAMES
    }
    grads["head"] = {"kernel": jnp.ones((4, 3))}
    tx = scale_by_modality(
        lambda path: path[0].removeprefix("encoders_") if path[0] != "head" else None,
        NAMES,
        site="gradient",
    )
    scale = jnp.asarray(scale, jnp.float32)
    extra = {} if key is None else {"noise_key": jax.random.key(key)}
    found, _ = tx.update(
        grads, tx.init(grads), grads, gradient_scale=scale, gradient_noise=noise, **extra
    )
    plain, _ = tx.update(grads, tx.init(grads), grads, gradient_scale=scale)
    return grads, jax.tree.map(lambda a, b: np.asarray(a - b), found, plain)


def test_noise_has_the_deviation_of_the_unscaled_gradient():
    grads, added = noisy([0.25, 1.0])
    for name in ("encoders_left", "encoders_right"):
        for layer in ("first", "second"):
            value = added[name][layer]["kernel"]
            deviation = float(np.std(grads[name][layer]["kernel"]))
            # 60,000 draws: the deviation is known to 0.3 % (one standard error).
            assert np.std(value) == pytest.approx(deviation, rel=0.02)
            assert abs(value.mean()) < 0.02 * deviation
    half = noisy([0.25, 1.0], noise=0.5)[1]["encoders_left"]["first"]["kernel"]
    np.testing.assert_allclose(2 * half, added["encoders_left"]["first"]["kernel"], atol=1e-4)


def test_noise_is_on_modality_specific_arrays_of_several_axes_alone():
    _, added = noisy([0.25, 1.0])
    assert not added["head"]["kernel"].any()
    for name in NAMES:
        assert not added[f"encoders_{name}"]["bias"].any()
        assert added[f"encoders_{name}"]["first"]["kernel"].all()


def test_no_noise_while_nothing_is_scaled():
    _, added = noisy([1.0, 1.0])
    assert not any(leaf.any() for leaf in jax.tree.leaves(added))


def test_noise_is_keyed_by_key_and_path():
    _, added = noisy([0.5, 1.0])
    again, other = noisy([0.5, 1.0])[1], noisy([0.5, 1.0], key=1)[1]
    np.testing.assert_array_equal(jax.tree.leaves(added)[1], jax.tree.leaves(again)[1])
    draws = [
        tree[f"encoders_{name}"][layer]["kernel"].ravel()
        for tree in (added, other)
        for name in NAMES
        for layer in ("first", "second")
    ]
    close = np.abs(np.corrcoef(draws) - np.eye(len(draws)))
    assert close.max() < 0.03


def test_noise_without_a_key_is_refused():
    with pytest.raises(FusionError, match="gradient_noise is given without a noise_key"):
        noisy([0.5, 1.0], key=None)


def test_transformation_refuses_another_site():
    with pytest.raises(FusionError, match="site is 'grad': choose one of"):
        scale_by_modality(lambda path: None, NAMES, site="grad")
