"""Gaussian and white noise: the strength that the tables state is the strength that is measured."""

import functools

import jax
import numpy as np
import pytest
from scipy.stats import norm

from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.legacy_noise import LegacyNoise
from fusion_jax.corruptions.white_noise import WhiteNoise
from fusion_jax.errors import FusionError

# The tables of the two docstrings.
SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
SIGMA = (1.6, 3.2, 4.8, 6.4, 8.0)
SNR = (20, 10, 5, 0, -5)


@functools.cache
def program(kind, **fields):
    corruption = kind(**fields)
    return jax.jit(lambda x, severity, seed: corruption(jax.random.key(seed), x, severity))


def corrupted(kind, x, severity, seed=0, **fields):
    return np.asarray(program(kind, **fields)(x, np.float32(severity), seed))


@pytest.mark.parametrize(("severity", "sigma"), list(zip(SEVERITIES, SIGMA, strict=True)))
def test_gaussian_noise_has_the_deviation_of_its_table(severity, sigma):
    # 10^5 samples: the relative standard error of a deviation is 1 / sqrt(2e5) = 0.2 %.
    x = np.full((400, 250), 127.5, np.float32)
    noise = corrupted(GaussianNoise, x, severity) - 127.5
    assert noise.std() == pytest.approx(sigma * 64, rel=0.02)
    assert abs(noise.mean()) < 5 * sigma * 64 / np.sqrt(noise.size)
    assert norm.cdf(1) == pytest.approx((noise < sigma * 64).mean(), abs=0.01)


def test_gaussian_noise_is_in_units_of_the_deviation_of_the_data():
    x = np.zeros((400, 250), np.float32)
    noise = corrupted(GaussianNoise, x, 0.5, deviation=2.0, strengths=(0.0, 1.0))
    assert noise.std() == pytest.approx(0.5 * 2, rel=0.02)


def test_gaussian_noise_takes_a_deviation_for_each_feature():
    # 3200 draws a feature: the relative standard error of a deviation is 1 / sqrt(6400) = 1.25 %.
    x, deviations = np.zeros((3200, 3), np.float32), (0.01, 1.0, 5000.0)
    noise = corrupted(GaussianNoise, x, 0.5, deviations=deviations, strengths=(0.0, 2.0))
    np.testing.assert_allclose(noise.std(axis=0), deviations, rtol=0.06)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / np.sqrt(3200)
    # Equal deviations are one deviation, to the bit, and severity 0 is still the identity.
    for severity in (0.0, 0.5):
        same = corrupted(GaussianNoise, x, severity, deviations=(3.0, 3.0, 3.0))
        np.testing.assert_array_equal(same, corrupted(GaussianNoise, x, severity, deviation=3.0))


def test_gaussian_noise_refuses_another_number_of_features():
    with pytest.raises(FusionError, match=r"2 deviations for an input of shape \(4, 3\)"):
        corrupted(GaussianNoise, np.zeros((4, 3), np.float32), 0.5, deviations=(1.0, 2.0))


@pytest.mark.parametrize("level", [5, 250])
def test_gaussian_noise_saturates_8_bit_images_at_both_sides(level):
    # Severity 0.02 is sigma 0.16 * 64 = 10.24. With m the distance from the near limit, the mean of
    # max(0, m + sigma n) is m Phi(m / sigma) + sigma phi(m / sigma); the far limit is out of reach.
    # Wrapping around would move about 30 % of the pixels by 256.
    sigma, distance = 10.24, 5
    expected = distance * norm.cdf(distance / sigma) + sigma * norm.pdf(distance / sigma)
    found = corrupted(GaussianNoise, np.full((400, 250), level, np.uint8), 0.02)
    near = found if level == 5 else 255 - found.astype(np.float64)
    assert found.dtype == np.uint8
    assert near.mean() == pytest.approx(expected, abs=0.15)
    assert near.min() == 0 and near.max() < 100
    # At full strength (sigma 512) both limits are met, each by almost half of the pixels.
    strong = corrupted(GaussianNoise, np.full((400, 250), level, np.uint8), 1.0)
    share = [norm.cdf((0.5 - level) / 512), norm.sf((254.5 - level) / 512)]
    assert [(strong == 0).mean(), (strong == 255).mean()] == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("severity", "decibels"), list(zip(SEVERITIES, SNR, strict=True)))
def test_white_noise_has_the_ratio_of_its_table(severity, decibels):
    # 10^5 samples: the standard error of the noise power is 4.34 sqrt(2e-5) = 0.02 dB.
    x = (0.3 * np.sin(np.arange(100_000) * 0.37 + 0.1)).astype(np.float32)
    noise = corrupted(WhiteNoise, x, severity) - x.astype(np.float64)
    ratio = 10 * np.log10((x.astype(np.float64) ** 2).mean() / (noise**2).mean())
    assert ratio == pytest.approx(decibels, abs=0.3)
    assert WhiteNoise().describe(severity) == f"SNR {decibels} dB"


def test_white_noise_measures_the_signal_where_it_is_not_zero():
    # A quarter holds +-0.2, so its RMS is 0.2; over the whole clip it would be half of that. At
    # severity 0.8 the noise has the amplitude of the signal, on the padding too.
    x = np.zeros(100_000, np.float32)
    x[:25_000] = 0.2 * np.tile([1, -1], 12_500)
    noise = corrupted(WhiteNoise, x, 0.8) - x
    assert noise[:25_000].std() == pytest.approx(0.2, rel=0.03)
    assert noise[25_000:].std() == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_white_noise_leaves_silence_silent(dtype):
    found = corrupted(WhiteNoise, np.zeros(1000, dtype), 1.0)
    assert found.dtype == dtype and not found.any()


@pytest.mark.parametrize("sign", [1, -1])
def test_white_noise_saturates_16_bit_waveforms_at_both_sides(sign):
    # Noise of a tenth of 32000: wrapping around would take ten deviations otherwise.
    found = corrupted(WhiteNoise, np.full(20_000, sign * 32_000, np.int16), 0.2)
    assert (sign * found.astype(int) > 10_000).all()
    assert (32767 if sign > 0 else -32768) in found


@pytest.mark.parametrize(
    # The severity whose strength is the reference: sigma 1 is 1 / 1.6 of the first step of the
    # table of Gaussian noise, r 0.1 the whole first step of that of white noise.
    ("corruption", "severity"),
    [(GaussianNoise(), 0.2 / 1.6), (WhiteNoise(), 0.2), (WhiteNoise(reference=0.562), 0.6)],
)
def test_noise_level_is_one_at_the_reference(corruption, severity):
    assert float(corruption.noise_level(severity)) == pytest.approx(1, rel=1e-6)
    assert float(corruption.noise_level(0.0)) == 0
    assert float(corruption.strength(severity)) == pytest.approx(corruption.reference, rel=1e-6)


def test_strength_is_linear_between_the_entries_of_the_table():
    found = WhiteNoise().strength(np.float32([0.1, 0.3, 0.9]))
    expected = [0.1 / 2, (0.1 + 0.316) / 2, (1.0 + 1.78) / 2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert GaussianNoise().describe(0.3) == "sigma 2.4"
    assert WhiteNoise().describe(0.0) == "no noise"


@pytest.mark.parametrize("kind", [GaussianNoise, WhiteNoise])
def test_curves_over_severity_are_paired(kind):
    # The same key gives the same draw at every severity, times the strength.
    x = np.float32(0.01) * np.random.default_rng(0).normal(size=1000).astype(np.float32)
    noise = {s: corrupted(kind, x, s).astype(np.float64) - x for s in (0.3, 0.6, 1.0)}
    for s in (0.3, 0.6):
        factor = float(kind().strength(s)) / float(kind().strength(1.0))
        np.testing.assert_allclose(noise[s], factor * noise[1.0], atol=1e-6 * noise[1.0].max())
    other = corrupted(kind, x, 1.0, seed=1) - x
    assert abs(np.corrcoef(noise[1.0], other)[0, 1]) < 5 / np.sqrt(1000)


def legacy(x, level, seed=0, **fields):
    return corrupted(LegacyNoise, x, (level - 1) / 10, seed, **fields)


def test_legacy_noise_has_the_released_strengths():
    grey = np.full((300, 300, 3), 127, np.uint8)
    spectrogram = np.zeros((300, 300), np.float32)
    for level in (2, 3, 5):  # strengths that neither clip nor wrap
        noise = legacy(grey, level).astype(float) - 127
        assert noise.std() == pytest.approx(level**2, rel=0.03)
        np.testing.assert_array_equal(noise[..., 0], noise[..., 1])  # one plane for all channels
    for level in (2, 6, 10):
        assert legacy(spectrogram, level).std() == pytest.approx(level, rel=0.03)
    assert legacy(spectrogram, 11).std() == pytest.approx(11 * 25.5, rel=0.03)
    np.testing.assert_array_equal(legacy(grey, 1), grey)


def test_legacy_noise_wraps_below_and_clips_above():
    dark, bright = np.zeros((300, 300, 1), np.uint8), np.full((300, 300, 1), 255, np.uint8)
    # Half of the noise is negative: there black turns bright instead of staying black.
    wrapped = (legacy(dark, 5) > 127).mean()
    assert wrapped == pytest.approx(0.5, abs=0.05)
    assert (legacy(bright, 5) == 255).mean() == pytest.approx(0.5, abs=0.03)
    # At level 11 the input plays no part, and half of the pixels wrap.
    np.testing.assert_array_equal(legacy(dark, 11), legacy(bright, 11))
    assert (legacy(dark, 11) == 255).mean() == pytest.approx(0.47, abs=0.03)


def photograph(side=300):
    """8-bit image [side, side, 3] with the spectrum 1/f and the grey levels of photographs."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = np.inf
    white = np.fft.fft2(generator.normal(size=(3, side, side)))
    field = np.fft.ifft2(white / frequency).real.transpose(1, 2, 0)
    return np.clip(115 + 60 * field / field.std(), 0, 255).astype(np.uint8)


def test_legacy_noise_wraps_more_pixels_at_higher_levels_and_ours_wraps_none():
    # The shares that were measured on the released code. Those of low levels depend on how dark the
    # images are, so they are compared as orders of magnitude.
    x, shares = photograph(), {}
    for level, published in {2: 0.01, 5: 0.02, 7: 0.06, 10: 0.17, 11: 0.50}.items():
        noise = np.asarray(jax.random.normal(jax.random.key(0), (300, 300, 1))) * level**2
        value = x + noise if level < 11 else np.broadcast_to(noise * 25.5, x.shape)
        found = legacy(x, level)
        # By more than 1, which is what rounding at a whole number may make.
        wrapped = np.abs(found - np.clip(np.trunc(value), 0, 255)) > 1
        assert (value[wrapped] < 0).all()
        shares[level] = wrapped.mean()
        assert published / 2.5 < shares[level] < published * 2.5
        # Ours with the same noise: what would fall below 0 is 0, what would pass 255 is 255.
        strong = {"deviation": 1.0, "strengths": (0.0, float(level**2))}
        ours = corrupted(GaussianNoise, x, 1.0, **strong)
        noise = np.asarray(jax.random.normal(jax.random.key(0), x.shape)) * level**2
        assert np.abs(ours - np.clip(np.round(x + noise), 0, 255)).max() <= 1
        assert (x + noise < 0).mean() > shares[2] / 2
    assert sorted(shares.values()) == list(shares.values())
    assert shares[11] == pytest.approx(0.5, abs=0.03)


def test_legacy_noise_may_share_one_pattern():
    x = np.zeros((20, 20), np.float32)
    same = [legacy(x, 4, seed, shared_pattern=True) for seed in (0, 1)]
    np.testing.assert_array_equal(*same)
    np.testing.assert_allclose(legacy(x, 8, 2, shared_pattern=True), 2 * same[0], rtol=1e-6)
    assert (legacy(x, 4, 0) != legacy(x, 4, 1)).any()
