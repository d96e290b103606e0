"""Sums over positions against NumPy, in values and in what XLA makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.compiler import compiler_options
from fusion_jax.reduction import sum_positions


# Around one and two blocks of positions, with and without a rest.
@pytest.mark.parametrize("positions", [1, 6, 7, 13, 14, 15, 20, 21, 50, 196])
def test_a_sum_over_positions_is_that_of_numpy(positions):
    x = np.random.default_rng(positions).normal(size=(3, positions, 5)).astype(np.float32)
    found = jax.jit(sum_positions)(x)
    np.testing.assert_allclose(found, np.sum(np.float64(x), axis=1), rtol=1e-5, atol=1e-5)


def test_a_sum_over_positions_in_float64_stays_there():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 100, 3))
        found = jax.jit(sum_positions)(x)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, x.sum(axis=1), rtol=1e-13, atol=1e-13)


def test_sums_of_several_arrays_at_once_are_those_of_each():
    x = np.random.default_rng(1).normal(size=(4, 2, 30, 3)).astype(np.float32)
    together = jax.jit(jax.vmap(sum_positions))(x)
    apart = [jax.jit(sum_positions)(each) for each in x]
    np.testing.assert_allclose(together, apart, rtol=1e-6, atol=1e-6)


def test_xla_neither_reduces_windows_nor_keeps_what_is_summed():
    def of_squares(x, mean):
        return sum_positions(jnp.square(x - mean))

    x, mean = jnp.ones((2, 3136, 64)), jnp.ones((2, 1, 64))
    options = compiler_options("cpu")
    compiled = jax.jit(of_squares, compiler_options=options).lower(x, mean).compile()
    assert "reduce-window" not in compiled.as_text()
    # A seventh of the map, and small change.
    assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 5
