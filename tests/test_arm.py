"""ARM's values against NumPy, and the weights that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from fusion_jax.errors import FusionError
from fusion_jax.schedulers.arm import ARMScheduler, modality_values
from tests.test_signals import make_input, make_table, predict_from


def plain_values(table, num, rows):
    """The formula of the docstring, subset by subset."""
    shares = softmax(np.float64(table), axis=-1)[:, rows]
    whole, left = entropy(shares.mean(axis=1), axis=-1), entropy(shares, axis=-1).mean(axis=1)
    sure, every = shares.max(axis=-1).mean(axis=1), 2**num - 1
    values = []
    for m in range(num):
        alone, rest = 2**m, every - 2**m
        told = (whole[alone] - left[alone]) / whole[every]
        added = (left[rest] - left[every]) / whole[every]
        values.append(sure[every] * told + sure[rest] * max(told - max(added, 0), 0))
    return np.array(values)


@pytest.mark.parametrize("num", [2, 3])
def test_values_are_those_of_a_numpy_reference(num):
    table = 2 * make_table(num, rows=20)
    mask = jnp.arange(20) < 15
    present = jnp.ones((20, num), bool).at[3, 0].set(False)
    inputs = make_input(num, predict_from(table), rows=20, mask=mask, present=present)
    rows = [row for row in range(15) if row != 3]
    expected = plain_values(table, num, rows)
    assert (expected > 0.01).all()
    np.testing.assert_allclose(modality_values(inputs), expected, rtol=1e-4)


def trained(scheduler, inputs, steps):
    variables = scheduler.init(jax.random.key(0), inputs, train=False)
    for _ in range(steps):
        _, variables = scheduler.apply(variables, inputs, train=True, mutable=["scheduler"])
    return variables


def informed(num=2, rows=64):
    """The first modality knows the class, the others guess from a hint."""
    generator = np.random.default_rng(0)
    known = 6 * np.eye(4)[generator.integers(0, 4, rows)]
    parts = [known] + [known / 20 + 0.1 * generator.normal(size=(rows, 4)) for _ in range(num - 1)]

    def predict(subsets):
        stacked = jnp.asarray(np.stack(parts, axis=1), jnp.float32)
        return jnp.sum(jnp.where(subsets[..., None], stacked, 0), axis=-2)

    return make_input(num, predict, rows=rows)


@pytest.mark.parametrize("num", [2, 3])
def test_the_modality_that_tells_least_is_reinforced_within_the_limit(num):
    inputs = informed(num)
    scheduler = ARMScheduler(decay=0.5)
    variables = trained(scheduler, inputs, 20)
    weights = np.asarray(scheduler.apply(variables, inputs, train=False).weights)
    assert (weights == weights[0]).all() and weights[0].argmin() == 0
    # One third against three: the ratio is at its limit on both sides.
    if num == 2:
        np.testing.assert_allclose(weights[0], [0.1, 0.9], atol=1e-5)


def test_a_modality_that_always_says_the_same_counts_for_nothing():
    generator = np.random.default_rng(0)
    known = 6 * np.eye(4)[generator.integers(0, 4, 64)]
    stuck = 6 * np.eye(4)[np.zeros(64, int)]

    def predict(subsets):
        stacked = jnp.asarray(np.stack([known, stuck], axis=1), jnp.float32)
        return jnp.sum(jnp.where(subsets[..., None], stacked, 0), axis=-2)

    values = modality_values(make_input(2, predict, rows=64))
    assert values[1] < 0.05 * values[0]


def test_evaluation_weighs_an_example_the_same_in_any_batch():
    inputs = informed(3)
    variables = trained(ARMScheduler(decay=0.5), inputs, 3)
    other = make_input(3, lambda subsets: jnp.zeros((*subsets.shape[:-1], 4)), rows=5)
    apply = ARMScheduler().apply
    found, alone = (apply(variables, x, train=False).weights for x in (inputs, other))
    np.testing.assert_array_equal(found[:5], alone)
    assert variables["scheduler"]["value"].std() > 0.1


def test_weights_are_equal_before_training_and_go_over_what_is_present():
    inputs = informed(3)
    scheduler = ARMScheduler()
    start = scheduler.init(jax.random.key(0), inputs, train=False)
    np.testing.assert_allclose(scheduler.apply(start, inputs, train=False).weights, 1 / 3)
    variables = trained(ARMScheduler(decay=0.5), inputs, 20)
    present = jnp.ones((64, 3), bool).at[0, 0].set(False).at[1, :2].set(False).at[2].set(False)
    weights = scheduler.apply(variables, inputs.replace(present=present), train=False).weights
    assert weights[0, 0] == 0 and abs(float(weights[0].sum()) - 1) < 1e-6
    np.testing.assert_array_equal(weights[1], [0, 0, 1])
    np.testing.assert_array_equal(weights[2], 0)


def test_a_batch_without_complete_rows_changes_nothing():
    inputs = informed(2)
    inputs = inputs.replace(present=inputs.present.at[:, 0].set(False))
    variables = trained(ARMScheduler(), inputs, 2)
    np.testing.assert_array_equal(variables["scheduler"]["value"], 1)


def test_a_limit_below_one_is_refused():
    with pytest.raises(FusionError, match=r"limit is 0\.5"):
        ARMScheduler(limit=0.5).init(jax.random.key(0), informed(2), train=False)
