"""Dropout: the right rate, and one mask per row wherever the row lies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.axes import DATA_AXIS
from fusion_jax.blocks.dropout import Dropout


@functools.partial(jax.jit, static_argnames="rate")
def dropped(x, rate=0.3, seed=0):
    """Dropout in training, compiled once per shape."""
    return Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate):
    x = np.random.default_rng(0).uniform(1, 2, (64, 20, 25)).astype(np.float32)
    found = np.asarray(dropped(x, rate))
    kept = found != 0
    # Five standard errors of a share of 32000 draws.
    assert abs(1 - kept.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_allclose(found[kept], x[kept] / (1 - rate), rtol=1e-6)


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero():
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(Dropout(0.9).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_dropout_over_devices_is_dropout_of_the_whole_batch():
    x = np.random.default_rng(0).normal(size=(32, 40)).astype(np.float32)
    whole = np.asarray(dropped(x))
    mapped = jax.pmap(dropped, axis_name=DATA_AXIS)(x.reshape(8, 4, 40))
    np.testing.assert_array_equal(np.reshape(mapped, x.shape), whole)


def test_dropout_of_a_row_does_not_depend_on_the_size_of_the_batch():
    x = np.ones((32, 40), np.float32)
    np.testing.assert_array_equal(dropped(x[:5]), np.asarray(dropped(x))[:5])


def test_dropout_differs_between_rows_and_between_keys():
    x = np.ones((32, 40), np.float32)
    found, other = np.asarray(dropped(x)), np.asarray(dropped(x, seed=1))
    assert len(np.unique(found, axis=0)) == 32
    assert (found != other).any(axis=1).all()


def test_dropout_passes_gradient_through_kept_entries_only():
    x = np.ones((32, 40), np.float32)
    gradient = jax.grad(lambda x: dropped(x).sum())(x)
    # Of a sum of x / 0.7 or 0, at x = 1, the gradient is the output itself.
    np.testing.assert_allclose(gradient, dropped(x), rtol=1e-6)


def test_dropout_keeps_the_dtype():
    assert dropped(jnp.ones((4, 5), jnp.bfloat16)).dtype == jnp.bfloat16
