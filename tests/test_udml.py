"""UDML's arithmetic against numbers of the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.blocks.gaussian import code_divergence
from fusion_jax.errors import FusionError
from fusion_jax.schedulers.udml import quality_weights
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def golden():
    return np.load(ROOT / "tests" / "golden" / "udml_weights.npz")


def test_official_weights_are_the_released_ones(golden):
    with jax.enable_x64():
        scale = jnp.concatenate([golden["std_audio"], golden["std_visual"]], axis=1)
        found = quality_weights(scale, jnp.asarray(golden["dependence"]), mode="official")
        assert found.dtype == jnp.float64
        # Theirs sum to the number of modalities.
        np.testing.assert_allclose(2 * found[:, :1], golden["weight_audio"], rtol=1e-9)
        np.testing.assert_allclose(2 * found[:, 1:], golden["weight_visual"], rtol=1e-9)


def test_published_examples():
    weights = quality_weights(jnp.asarray([[1.0, 11.0]]), jnp.ones(2), mode="official")
    np.testing.assert_allclose(2 * weights[0], [1.984, 0.016], atol=1e-3)
    weights = quality_weights(jnp.full((1, 2), 3.0), jnp.asarray([32.0, 10.0]), mode="official")
    np.testing.assert_allclose(2 * weights[0], [0.476, 1.524], atol=1e-3)


def test_corrected_weights():
    even = quality_weights(jnp.full((4, 3), 2.0), jnp.ones(3))
    np.testing.assert_allclose(even, 1 / 3, rtol=1e-6)
    # Less where it is noisier, and less for the modality that the model leans on.
    noisy = quality_weights(jnp.asarray([[1.0, 4.0]]), jnp.ones(2))
    np.testing.assert_allclose(noisy[0, 0] / noisy[0, 1], 2, rtol=1e-5)  # 4^0.5
    leaning = quality_weights(jnp.ones((1, 2)), jnp.asarray([3.0, 1.0]))
    np.testing.assert_allclose(leaning[0], [0.25, 0.75], rtol=1e-5)
    present = jnp.asarray([[True, False], [False, False]])
    found = quality_weights(jnp.ones((2, 2)), jnp.ones(2), present=present)
    np.testing.assert_array_equal(found, [[1, 0], [0, 0]])
    with pytest.raises(FusionError, match="mode is 'paper'"):
        quality_weights(jnp.ones((1, 2)), jnp.ones(2), mode="paper")


def test_divergence_is_the_released_regulariser(golden):
    with jax.enable_x64():
        mu, std, level = (jnp.asarray(golden[name]) for name in ("mu", "std", "level"))
        found = code_divergence(mu**2 + std**2, jnp.log(std**2), level).mean()
        # The released code adds 1e-8 inside the logarithm.
        np.testing.assert_allclose(found, golden["kl"], rtol=1e-7)
        added = code_divergence(mu**2 + std**2, jnp.log(std**2 + 1e-8), level).mean()
        np.testing.assert_allclose(added, golden["kl"], rtol=1e-9)


def test_divergence_of_a_map_is_the_mean_over_its_positions():
    generator = np.random.default_rng(0)
    mu, log_variance = generator.normal(size=(2, 5, 7, 3))  # [positions, B, D]
    second = mu**2 + np.exp(log_variance)
    each = np.stack([code_divergence(second[i], log_variance[i], 1.7) for i in range(5)])
    pooled = code_divergence(second.mean(axis=0), log_variance.mean(axis=0), 1.7)
    np.testing.assert_allclose(pooled, each.mean(axis=0), rtol=1e-5)
    assert (each > 0).all()
