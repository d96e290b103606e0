"""Coloured noise: its ratio to the signal and the slope of its spectrum, as stated."""

import functools

import jax
import numpy as np
import pytest
from scipy.signal import periodogram
from scipy.stats import kstest, linregress

from fusion_jax.corruptions.coloured_noise import ColouredNoise
from fusion_jax.errors import FusionError

# The table of the docstring.
SNR = {0.2: 20, 0.4: 10, 0.6: 5, 0.8: 0, 1.0: -5}


@functools.cache
def program(**fields):
    corruption = ColouredNoise(**fields)
    return jax.jit(lambda x, severity, seed: corruption(jax.random.key(seed), x, severity))


def corrupted(x, severity, seed=0, **fields):
    return np.asarray(program(**fields)(x, np.float32(severity), seed))


def tone(length):
    return (0.3 * np.sin(np.arange(length) * 0.37 + 0.1)).astype(np.float32)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("severity", "decibels"), SNR.items())
def test_coloured_noise_has_the_ratio_of_its_table_in_every_draw(severity, decibels, exponent):
    x = tone(4001)
    for seed in range(3):
        noise = corrupted(x, severity, seed, exponent=exponent) - x.astype(np.float64)
        ratio = 10 * np.log10((x.astype(np.float64) ** 2).mean() / (noise**2).mean())
        # The table rounds r to three digits: 0.02 dB.
        assert ratio == pytest.approx(decibels, abs=0.03)
        assert abs(noise.mean()) < 1e-6
    assert ColouredNoise().describe(severity) == f"SNR {decibels} dB"


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("length", [16_384, 16_383])
def test_power_spectrum_falls_with_the_stated_exponent(exponent, length):
    # The log of a periodogram has standard deviation 1.28 at each of 8191 frequencies, log f has 1:
    # the standard error of the slope is 0.014.
    noise = corrupted(np.ones(length, np.float32), 0.8, exponent=exponent) - np.float64(1)
    frequency, power = periodogram(noise)
    inside = slice(1, (length - 1) // 2)
    found = linregress(np.log(frequency[inside]), np.log(power[inside]))
    assert found.slope == pytest.approx(-exponent, abs=0.07)


def test_coloured_noise_without_colour_is_normal():
    # Scaled to the RMS of 2 to the power 16 draws, which is 1 to within 0.3 %.
    noise = corrupted(np.ones(2**16, np.float32), 0.8, exponent=0.0) - np.float64(1)
    assert kstest(noise, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 5 / 2**8


def test_coloured_noise_measures_the_signal_where_it_is_not_zero():
    # A quarter holds +-0.2, so its RMS is 0.2; over the whole clip it would be half of that.
    x = np.zeros(10_000, np.float32)
    x[:2_500] = 0.2 * np.tile([1, -1], 1_250)
    noise = corrupted(x, 0.8) - x
    assert noise.std() == pytest.approx(0.2, rel=1e-3)
    assert noise[2_500:].std() > 0.05  # on the padding too


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_coloured_noise_leaves_silence_silent_and_severity_zero_as_it_is(dtype):
    silent = corrupted(np.zeros(1000, dtype), 1.0)
    assert silent.dtype == dtype and not silent.any()
    x = (1000 * tone(1000)).astype(dtype)
    np.testing.assert_array_equal(corrupted(x, 0.0), x)


@pytest.mark.parametrize("sign", [1, -1])
def test_coloured_noise_saturates_16_bit_waveforms_at_both_sides(sign):
    found = corrupted(np.full(20_000, sign * 32_000, np.int16), 0.2)
    assert (sign * found.astype(int) > 10_000).all()
    assert (32767 if sign > 0 else -32768) in found


def test_curves_of_coloured_noise_over_severity_are_paired():
    x = 0.01 * tone(1000)
    noise = {s: corrupted(x, s).astype(np.float64) - x for s in (0.4, 1.0)}
    np.testing.assert_allclose(noise[0.4], 0.316 / 1.78 * noise[1.0], atol=1e-6)
    assert np.abs(noise[1.0] - (corrupted(x, 1.0, seed=1) - x)).max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ((30, 3), {}, r"an input of shape \(30, 3\): give waveforms"),
        ((1,), {}, r"an input of shape \(1,\): give waveforms \[T\] of at least 2"),
        ((100,), {"exponent": 3.0}, r"exponent of coloured noise is 3.0: .*\[-2, 2\]"),
    ],
)
def test_coloured_noise_refuses_what_it_is_not_for(shape, fields, message):
    with pytest.raises(FusionError, match=message):
        corrupted(np.zeros(shape, np.float32), 0.5, **fields)
