"""Weather, light and digital faults of images: against published code, and what each promises."""

import colorsys
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from fusion_jax.corruptions.batch import corrupt_batch
from fusion_jax.corruptions.brightness import Brightness
from fusion_jax.corruptions.contrast import Contrast
from fusion_jax.corruptions.elastic import Elastic
from fusion_jax.corruptions.fog import Fog
from fusion_jax.corruptions.frost import COLOUR, Frost
from fusion_jax.corruptions.jpeg import JPEG, LUMINANCE_STEPS
from fusion_jax.corruptions.pixelate import Pixelate
from fusion_jax.corruptions.saturation import Saturation
from fusion_jax.corruptions.snow import Snow
from fusion_jax.corruptions.spatter import MUD, Spatter
from fusion_jax.errors import FusionError
from fusion_jax.frequency import block_dct
from fusion_jax.rng import example_keys
from tests.golden.make_image_corruptions_weather import pictures as draw_pictures

# Programs of 224-pixel images take long to compile.
pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "golden" / "image_corruptions_weather.npz"
PUBLISHED = (0.2, 0.4, 0.6, 0.8, 1.0)
ALL = (Brightness, Contrast, Elastic, Fog, Frost, JPEG, Pixelate, Saturation, Snow, Spatter)


@functools.cache
def program(kind, **fields):
    """One compiled program per corruption; jit keeps one per shape."""
    corruption = kind(**fields)
    return jax.jit(lambda x, severity, seed: corruption(jax.random.key(seed), x, severity))


def corrupted(kind, x, severity, seed=0, **fields):
    return np.asarray(program(kind, **fields)(x, np.float32(severity), seed))


def flat(level, *shape):
    return np.full(shape, level, np.uint8)


def colourful(*shape, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, shape).astype(np.uint8)


# Against published code


pictures = functools.cache(draw_pictures)


def energy(values):
    """Of the differences between neighbours, for each picture."""
    return sum((np.diff(values, axis=axis) ** 2).mean(axis=(1, 2, 3)) for axis in (1, 2))


def statistics(before, after):
    """[N, 4]: mean absolute change, change of the mean, deviation, share of the energy."""
    before, after = before.astype(np.float32), after.astype(np.float32)
    change, axes = after - before, (1, 2, 3)
    kept = energy(after) / energy(before)
    return np.stack(
        [np.abs(change).mean(axis=axes), change.mean(axis=axes), after.std(axis=axes), kept], axis=1
    )


def at_published_levels(corruption, severities, draws):
    """[5, 4]: means over the pictures, all in one batch; severity 0 leaves a level out."""
    x = np.concatenate([pictures()] * (5 * draws))
    severity = np.repeat(np.float32(severities), len(x) // 5)

    @jax.jit
    def run(x, severity):
        keys = example_keys(jax.random.key(0), np.arange(len(x)))
        return corrupt_batch(corruption, x, keys=keys, severity=severity)

    return statistics(x, np.asarray(run(x, severity))).reshape(5, -1, 4).mean(axis=1)


# For each: draws, and tolerances of the mean absolute change and the change of the mean (levels),
# of the deviation and of the energy that is kept (relative). The published code cuts levels down to
# whole numbers where ours rounds, which is half a level.
AGREEMENT = {
    Brightness: ("brightness", 1, (0.7, 0.7, 0.01, 0.01)),
    Contrast: ("contrast", 1, (0.05, 0.6, 0.01, 0.02)),
    Pixelate: ("pixelate", 1, (0.05, 0.5, 0.01, 0.01)),
    JPEG: ("jpeg_compression", 1, (0.05, 0.2, 0.01, 0.02)),
    Elastic: ("elastic_transform", 2, (0.3, 0.6, 0.01, 0.02)),
    Snow: ("snow", 2, (1.5, 1.5, 0.02, 0.03)),
    Fog: ("fog", 3, (3.0, 7.0, 0.1, 0.06)),
    Frost: ("frost", 3, (6.0, 6.0, 0.1, 0.18)),
    Spatter: ("spatter", 2, (0.5, 0.5, 0.02, 0.2)),
}


@pytest.mark.parametrize("kind", AGREEMENT, ids=lambda kind: kind.__name__)
def test_statistics_are_those_of_published_code(kind):
    name, draws, tolerances = AGREEMENT[kind]
    ours = at_published_levels(kind(), PUBLISHED, draws)
    agree(ours, np.load(GOLDEN)[name].mean(axis=1), tolerances)


def test_pictures_are_those_of_the_published_statistics():
    found = [pictures().mean(axis=(1, 2, 3)), pictures().std(axis=(1, 2, 3))]
    np.testing.assert_allclose(found, np.load(GOLDEN)["inputs"], rtol=1e-4)


def test_saturation_has_the_five_published_settings_in_its_two_directions():
    theirs, tolerances = np.load(GOLDEN)["saturate"].mean(axis=1), (0.5, 0.5, 0.01, 0.01)
    fade = at_published_levels(Saturation(fade=True), (0.4, 0.8, 0, 0, 0), 1)
    agree(fade[:2], theirs[:2], tolerances)
    stronger = at_published_levels(Saturation(), (0, 0, 0.2, 0.6, 1.0), 1)
    agree(stronger[2:], theirs[2:], tolerances)


def agree(ours, theirs, tolerances):
    for column, tolerance in enumerate(tolerances):
        scale = 1 if column < 2 else theirs[:, column]
        error = np.abs(ours[:, column] - theirs[:, column]) / scale
        assert (error <= tolerance).all(), (column, error, ours[:, column], theirs[:, column])


# What each promises


def in_hsv(pixels, change):
    """Pixels [N, 3] after a change of hue, saturation and value, by the standard library."""
    found = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels / 255]
    return 255 * np.array(found)


@pytest.mark.parametrize("severity", [0.2, 0.6, 1.0])
def test_brightness_and_saturation_are_changes_of_one_coordinate_of_hsv(severity):
    x = colourful(16, 16, 3)
    raised, factor = 0.5 * severity, {0.2: 2, 0.6: 5, 1.0: 20}[severity]
    offset = {0.2: 0, 0.6: 0.1, 1.0: 0.2}[severity]
    for kind, fields, change in (
        (Brightness, {}, lambda h, s, v: (h, s, min(v + raised, 1))),
        (Saturation, {}, lambda h, s, v: (h, min(factor * s + offset, 1), v)),
        (Saturation, {"fade": True}, lambda h, s, v: (h, s / factor, v)),
    ):
        found = corrupted(kind, x, severity, **fields).reshape(-1, 3)
        np.testing.assert_allclose(found, in_hsv(x.reshape(-1, 3), change), atol=0.6)


def test_grey_has_no_colour_to_strengthen_and_black_turns_grey():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(corrupted(Saturation, grey, 1.0), grey)
    np.testing.assert_array_equal(corrupted(Saturation, grey, 1.0, fade=True), grey)
    expected = np.minimum(grey + 127.5, 255)
    np.testing.assert_allclose(corrupted(Brightness, grey, 1.0), expected, atol=0.5)
    np.testing.assert_allclose(corrupted(Brightness, grey[..., :1], 1.0), expected[..., :1], atol=1)


def test_contrast_keeps_the_mean_of_each_frame_and_channel():
    video = colourful(2, 40, 30, 3) // np.uint8([[[[1, 2, 4]]], [[[3, 1, 1]]]])
    found = corrupted(Contrast, video, 0.2).astype(np.float64)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), video.mean(axis=(1, 2)), atol=0.1)
    np.testing.assert_allclose(found.std(axis=(1, 2)), 0.4 * video.std(axis=(1, 2)), atol=0.1)
    assert Contrast().describe(0.2) == "40 % of the contrast"


def test_pixelate_gives_each_cell_its_mean():
    x = colourful(32, 24, 3)
    cells = x.reshape(8, 4, 6, 4, 3).astype(np.float64).mean(axis=(1, 3))
    expected = cells.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(corrupted(Pixelate, x, 1.0), expected, atol=0.501)
    # Half of the resolution, and 0.55 of it: int(0.55 * 32) = 17 and int(0.55 * 24) = 13 cells.
    for severity, cells in ((0.4, (16, 12)), (0.3, (17, 13))):
        found = corrupted(Pixelate, x, severity).astype(np.int64)
        edges = [(np.diff(found, axis=axis) != 0).any(axis=(1 - axis, 2)).sum() for axis in (0, 1)]
        assert tuple(edge + 1 for edge in edges) == cells


def test_jpeg_leaves_multiples_of_the_stated_steps():
    x = (64 + 128 * np.random.default_rng(0).random((32, 40, 1)) ** 2).astype(np.uint8)
    for severity, scale in ((0.2, 2), (0.8, 5)):
        found = corrupted(JPEG, x, severity).astype(np.float32) - 128
        steps = np.minimum(scale * np.float32(LUMINANCE_STEPS), 255).reshape(8, 8)
        coefficients = np.asarray(block_dct(found[None]))[0, :, :, 0]
        # Levels are whole numbers again, which moves a coefficient by 0.3 (deviation).
        off = coefficients - steps * np.round(coefficients / steps)
        assert np.abs(off).max() < 1.5 < steps.min() / 4
        assert np.abs(np.round(coefficients / steps)).max() >= 1


def test_jpeg_tells_its_quality():
    found = [JPEG().describe(severity) for severity in (0.0, *PUBLISHED)]
    qualities = [f"JPEG quality {quality}" for quality in (25, 18, 15, 10, 7)]
    assert found == ["not compressed", *qualities]


def test_elastic_displaces_by_the_stated_distance_along_both_axes():
    ramp = np.arange(224, dtype=np.uint8)
    x = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None]), axis=-1)
    moved = {s: corrupted(Elastic, x, s).astype(np.float64) - x for s in (0.2, 1.0)}
    for severity, distance in ((0.2, 1.02), (1.0, 2.44)):
        # Away from the sides, where mirroring bends the ramp; rounding adds 1/12 of variance.
        inside = moved[severity][10:-10, 10:-10]
        rms = np.sqrt((inside**2).mean(axis=(0, 1)) - 1 / 12)
        np.testing.assert_allclose(rms, distance, rtol=0.06)
    fields = [values[10:-10, 10:-10].reshape(-1) for values in moved.values()]
    assert np.corrcoef(fields)[0, 1] > 0.9
    assert abs(np.corrcoef(*np.moveaxis(moved[1.0], -1, 0).reshape(2, -1))[0, 1]) < 0.1


def test_snow_lies_the_same_upside_down_on_a_whitened_scene():
    found = corrupted(Snow, flat(20, 96, 96, 3), 1.0)
    np.testing.assert_array_equal(found, found[::-1, ::-1])
    # Where no flake is: 0.55 x + 0.45 (1.5 x + 0.5).
    assert found.min() == pytest.approx(0.55 * 20 + 0.45 * (30 + 127.5), abs=1)
    assert (found > found.min() + 5).mean() > 0.3
    # Streaks within 45 degrees of the vertical: neighbours along them are more alike.
    rough = [(np.diff(found.astype(float), axis=axis) ** 2).mean() for axis in (0, 1)]
    assert rough[0] < 0.7 * rough[1]


def test_fog_is_a_cloud_of_the_stated_mean_and_deviation():
    level, amount = 200 / 255, 3
    found = np.stack([corrupted(Fog, flat(200, 64, 64, 1), 1.0, seed) for seed in range(30)])
    cloud = (found / 255 * (level + amount) / level - level) / amount
    assert cloud.min() >= -0.01 and cloud.max() <= 1.01
    assert cloud.mean() == pytest.approx(0.5, abs=0.05)
    assert cloud.std() == pytest.approx(0.189, abs=0.025)
    again = corrupted(Fog, flat(200, 64, 64, 1), 0.2)
    assert np.corrcoef(again.reshape(-1), found[0].reshape(-1))[0, 1] > 0.9


def test_frost_and_image_have_the_stated_weights():
    # At severity 0.6 frost and image both weigh 0.7.
    dark, light = (corrupted(Frost, flat(level, 64, 64, 3), 0.6).astype(float) for level in (0, 60))
    np.testing.assert_allclose(light - dark, 0.7 * 60, atol=1.01)
    means = [corrupted(Frost, flat(0, 64, 64, 3), 0.6, seed).mean((0, 1)) for seed in range(30)]
    np.testing.assert_allclose(np.mean(means, axis=0), 0.7 * np.array(COLOUR), rtol=0.12)
    assert np.ptp(means, axis=0).min() > 0.4 * 0.7 * min(COLOUR)
    # The same frost at another severity, at its lighter weight of 0.4.
    thin = corrupted(Frost, flat(0, 64, 64, 3), 0.2).astype(float)
    np.testing.assert_allclose(thin, dark * 0.4 / 0.7, atol=1.01)


def test_spatter_wets_the_stated_share_and_mud_covers_a_third_of_it():
    x = flat(128, 224, 224, 3)
    for severity, share in ((0.2, 0.029), (0.4, 0.144), (0.6, 0.239)):
        found = np.stack([corrupted(Spatter, x, severity, seed) for seed in range(4)])
        # The shallowest water adds less than half a level.
        assert 0.8 * share < (found > x).any(axis=-1).mean() < 1.15 * share
        assert (found >= x).all()
    assert Spatter().describe(0.6) == "23.9 % under water"
    assert Spatter().describe(0.65) == "50 % under mud"
    found = corrupted(Spatter, x, 1.0)
    covered = (found < x).all(axis=-1)
    assert 0.25 * 0.57 < covered.mean() < 0.45 * 0.57
    # At least 0.8 of what is seen there is mud.
    nearest = found[covered].astype(float) - np.array(MUD)
    assert (nearest <= 0.2 * (128 - np.array(MUD)) + 1).all() and (nearest >= -1).all()


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_frames_share_what_a_camera_shares_for_any_number_of_channels(kind):
    channels = 2 if kind is Saturation else 1
    frame = colourful(17, 23, channels, low=20, high=200)
    found = corrupted(kind, np.stack([frame] * 3), 0.7)
    assert found.dtype == np.uint8 and found.shape == (3, *frame.shape)
    assert (found[0] != frame).any()
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_only_8_bit_images_are_taken(kind):
    for x in (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)):
        with pytest.raises(FusionError, match=r"it takes 8-bit images \[..., H, W, C\]"):
            kind()(jax.random.key(0), x, np.float32(0.5))


def test_saturation_refuses_grey_images():
    with pytest.raises(FusionError, match=r"a grey input of shape \(8, 8, 1\), which has none"):
        Saturation()(jax.random.key(0), flat(9, 8, 8, 1), np.float32(0.5))
