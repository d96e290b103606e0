"""max_pool: the form for CPU against Flax, in values, gradients and what is not a number."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.blocks.pooling import max_pool

SHAPES = [(2, 8, 6, 3), (1, 7, 5, 2), (3, 1, 1, 1), (2, 2, 9, 4)]


def by_flax(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def draw(shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_flax_pooling_with_its_gradient(shape, dtype):
    x = draw(shape, dtype)
    expected, pull = jax.vjp(jax.jit(by_flax), x)
    found, own = jax.vjp(jax.jit(max_pool), x)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == dtype
    given = draw(found.shape, dtype, seed=1)
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(
        np.float32(own(given)[0]), np.float32(pull(given)[0]), atol=tolerance, rtol=tolerance
    )


def test_of_equal_values_one_receives_the_gradient():
    x = jnp.zeros((1, 4, 4, 1))
    found, pull = jax.vjp(jax.jit(max_pool), x)
    gradient = pull(jnp.ones_like(found))[0]
    assert float(gradient.sum()) == found.size
    assert set(np.unique(gradient)) == {0.0, 1.0}


@pytest.mark.parametrize("place", [(0, 0), (3, 3), (1, 2)])
def test_what_is_not_a_number_is_passed_on(place):
    x = draw((1, 4, 4, 1)).at[0, *place, 0].set(jnp.nan)
    found = np.asarray(jax.jit(max_pool)(x))
    assert np.isnan(found).any()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(by_flax(x)))


def test_on_cpu_nothing_is_scattered():
    def gradient(form):
        run = jax.jit(jax.grad(lambda x: form(x).sum()))
        return run.lower(draw((2, 16, 16, 8))).compile().as_text()

    assert " scatter(" in gradient(by_flax)
    assert " scatter(" not in gradient(max_pool)


def test_other_platforms_use_their_own_pooling():
    traced = jax.jit(max_pool).trace(draw((2, 8, 8, 4)))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "reduce_window" in text
