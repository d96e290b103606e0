"""Statistics of inputs: what they are by NumPy, and that noise moves them without end."""

import jax
import numpy as np
import pytest
from scipy import stats

from fusion_jax.blocks.input_statistics import input_statistics

statistics = jax.jit(input_statistics)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 7), (5, 9, 8, 1), (5, 3, 6, 2, 1)])
def test_statistics_are_those_of_numpy(shape):
    x = draw(*shape)
    found = np.asarray(statistics(x))
    flat = x.reshape(len(x), -1).astype(np.float64)
    expected = [
        flat.mean(axis=1),
        np.log(flat.std(axis=1)),
        stats.skew(flat, axis=1),
        np.log(stats.kurtosis(flat, axis=1, fisher=False)),
    ]
    for axis in range(1, x.ndim):
        for order in (1, 2):
            if x.shape[axis] >= 3:
                steps = np.diff(x.astype(np.float64), n=order, axis=axis).reshape(len(x), -1)
                expected.append(np.log(np.sqrt(np.mean(steps**2, axis=1))))
    assert found.shape == (5, 4 + 2 * sum(size >= 3 for size in shape[1:]))
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-4)


def test_statistics_of_a_row_are_its_own_and_a_constant_is_finite():
    x = draw(4, 6, 6, 1)
    np.testing.assert_allclose(statistics(x)[1:2], statistics(x[1:2]), rtol=1e-5)
    assert np.isfinite(statistics(np.full((2, 6, 6, 1), 7, np.float32))).all()


def test_differences_grow_with_noise_by_its_logarithm():
    # A slow wave under noise: ten times the noise is log 10 more, however strong it is.
    wave = 3 * np.sin(np.linspace(0, 6, 400))[None, :, None]
    noise = np.random.default_rng(0).normal(size=(1, 400, 1))
    logs = [float(statistics(np.float32(wave + s * noise))[0, 5]) for s in (1, 10, 100)]
    np.testing.assert_allclose(np.diff(logs), np.log(10), rtol=0.01)
