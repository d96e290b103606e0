"""Normal noise is JAX's own, draw by draw, whatever the generator and its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfinv
from scipy.stats import kstest

from fusion_jax.blocks.normal_noise import _inverse_error, normal_noise


@pytest.mark.parametrize("shape", [(), (1,), (7, 5, 3), (100_003,)])
@pytest.mark.parametrize("seed", [0, 2**40 + 5])
def test_normal_noise_is_that_of_jax(seed, shape):
    with jax.enable_x64(seed > 2**32):  # a seed of two words
        key = jax.random.key(seed)
    found = jax.jit(normal_noise, static_argnums=1)(key, shape)
    expected = jax.jit(lambda key: jax.random.normal(key, shape, jnp.float32))(key)
    assert found.dtype == jnp.float32 and found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_inverse_error_function_is_that_of_scipy_up_to_the_ends():
    near_one = 1 - 2.0 ** -np.arange(1, 24)
    x = np.concatenate([np.linspace(-0.999, 0.999, 40_001), near_one, -near_one])
    x = np.append(x, np.nextafter(np.float32(-1), np.float32(0))).astype(np.float32)
    found = np.asarray(jax.jit(_inverse_error)(x))
    np.testing.assert_allclose(found, erfinv(x.astype(np.float64)), rtol=5e-7, atol=1e-9)


def test_normal_noise_is_written_out_and_not_a_loop_over_arrays():
    # What it is for: on a CPU, JAX's own draw is a loop; this must not become one.
    def text(draw):
        return jax.jit(draw).lower(jax.random.key(0)).as_text()

    assert "stablehlo.while" in text(lambda key: jax.random.normal(key, (1000,)))
    assert "stablehlo.while" not in text(lambda key: normal_noise(key, (1000,)))


@pytest.mark.parametrize("case", ["rbg", "unsafe_rbg", "draws numbered otherwise", "no entries"])
def test_normal_noise_leaves_other_generators_and_settings_to_jax(case):
    keys = [jax.random.key(3, impl=case if case.endswith("rbg") else None) for _ in range(2)]
    shape = (0, 4) if case == "no entries" else (5, 4)
    with jax.threefry_partitionable(case != "draws numbered otherwise"):
        found = normal_noise(keys[0], shape)
        expected = jax.random.normal(keys[1], shape, jnp.float32)
    np.testing.assert_array_equal(found, expected)


def test_normal_noise_is_normal_and_fresh_for_each_key():
    keys = jax.random.split(jax.random.key(1), 4)
    found = np.asarray(jax.jit(jax.vmap(lambda key: normal_noise(key, (50_000,))))(keys))
    assert kstest(found.ravel(), "norm").pvalue > 1e-3
    # 50,000 draws: the standard error of a correlation is 0.0045.
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 5 / np.sqrt(50_000)
