"""Impulse noise: the fraction that is replaced, by what, and what is replaced together."""

import functools

import jax
import numpy as np
import pytest

from fusion_jax.corruptions.impulse_noise import ImpulseNoise
from fusion_jax.errors import FusionError

# The table of the docstring.
FRACTION = {0.2: 0.1, 0.4: 0.2, 0.6: 0.4, 0.8: 0.6, 1.0: 0.8}


@functools.cache
def program(**fields):
    corruption = ImpulseNoise(**fields)
    return jax.jit(lambda x, severity, seed: corruption(jax.random.key(seed), x, severity))


def corrupted(x, severity, seed=0, **fields):
    return np.asarray(program(**fields)(x, np.float32(severity), seed))


def grey(*shape):
    return np.full(shape, 127, np.uint8)


@pytest.mark.parametrize(("severity", "fraction"), FRACTION.items())
def test_impulse_noise_replaces_the_fraction_of_its_table_half_by_each_extreme(severity, fraction):
    # 10^5 draws: the standard error of a share is at most 0.0016.
    image = corrupted(grey(400, 250, 3), severity)[..., 0]
    floats = corrupted(np.zeros((400, 250), np.float32), severity)
    for found, low, kept, high in ((image, 0, 127, 255), (floats, -3, 0, 3)):
        assert set(np.unique(found)) == {low, kept, high}
        shares = [(found == low).mean(), (found == high).mean()]
        assert shares == pytest.approx([fraction / 2] * 2, abs=0.008)
    assert ImpulseNoise().describe(severity) == f"{round(100 * fraction)} % replaced"


def test_impulse_noise_replaces_all_channels_of_a_pixel_and_every_frame_anew():
    video = np.random.default_rng(0).integers(1, 255, (4, 50, 40, 3)).astype(np.uint8)
    found = corrupted(video, 0.6)
    replaced = (found != video).all(axis=-1)
    np.testing.assert_array_equal(replaced, (found != video).any(axis=-1))
    np.testing.assert_array_equal(found[replaced] == 0, found[replaced][:, :1].repeat(3, 1) == 0)
    assert set(np.unique(found[replaced])) == {0, 255}
    # Frames are independent: equally placed pixels agree as often as chance has it.
    assert (replaced[0] & replaced[1]).mean() == pytest.approx(0.4**2, abs=0.05)


def test_impulse_noise_of_floats_lies_at_the_stated_distance_in_units_of_each_feature():
    means, deviations = (0.5, -100.0, 3.0), (0.01, 1.0, 5000.0)
    x = (np.random.default_rng(0).normal(size=(500, 3)) * deviations + means).astype(np.float32)
    found = corrupted(x, 1.0, means=means, deviations=deviations, distance=4.0)
    replaced = found != x
    for feature in range(3):
        expected = means[feature] + 4 * deviations[feature] * np.float32([-1, 1])
        values = np.unique(found[replaced[:, feature], feature])
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    # Entries are drawn one by one: neighbours agree as often as chance has it.
    assert (replaced[:, 0] & replaced[:, 1]).mean() == pytest.approx(0.8**2, abs=0.1)
    single = corrupted(x, 1.0, mean=1.0, deviation=2.0, distance=4.0)
    assert set(np.unique(single[single != x])) == {-7.0, 9.0}


def test_what_impulse_noise_replaces_stays_replaced_at_higher_severities():
    image = grey(100, 100, 1)
    found = {severity: corrupted(image, severity) for severity in (0.0, 0.1, 0.5, 1.0)}
    np.testing.assert_array_equal(found[0.0], image)
    for low, high in ((0.1, 0.5), (0.5, 1.0)):
        kept = found[low] != 127
        assert 0 < kept.sum() < (found[high] != 127).sum()
        np.testing.assert_array_equal(found[low][kept], found[high][kept])


def test_noise_level_of_impulse_noise_is_that_of_equal_variance_at_the_reference():
    corruption = ImpulseNoise()
    assert float(corruption.noise_level(0.2)) == pytest.approx(1)
    assert float(corruption.noise_level(0.0)) == 0
    x = np.random.default_rng(0).normal(size=(400, 250)).astype(np.float32)
    assert (corrupted(x, 0.2) - x).var() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize(
    ("x", "fields", "message"),
    [
        (np.zeros(160, np.int16), {}, r"an input of int16 \(160,\): it takes 8-bit images"),
        (grey(28, 28), {}, r"an input of uint8 \(28, 28\)"),
        (np.zeros((4, 3), np.float32), {"means": (1.0, 2.0)}, r"2 means for an input of shape"),
        (np.zeros((4, 3), np.float32), {"deviations": (1.0,)}, r"1 deviations for an input of"),
    ],
)
def test_impulse_noise_refuses_what_it_is_not_for(x, fields, message):
    with pytest.raises(FusionError, match=message):
        corrupted(x, 0.5, **fields)
