"""Noise, blurs and occlusion of images: against published code, and what each does to a shape."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fusion_jax.blocks import blur
from fusion_jax.corruptions.defocus_blur import DefocusBlur
from fusion_jax.corruptions.gaussian_blur import GaussianBlur
from fusion_jax.corruptions.glass_blur import GlassBlur
from fusion_jax.corruptions.motion_blur import MotionBlur
from fusion_jax.corruptions.occlusion import Occlusion
from fusion_jax.corruptions.shot_noise import ShotNoise
from fusion_jax.corruptions.speckle_noise import SpeckleNoise
from fusion_jax.corruptions.zoom_blur import ZoomBlur
from fusion_jax.errors import FusionError
from tests.golden.make_image_corruptions_blur import pictures as draw_pictures
from tests.golden.make_image_corruptions_blur import statistics

# Programs of 224-pixel images take long to compile.
pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "golden" / "image_corruptions_blur.npz"
PUBLISHED = (0.2, 0.4, 0.6, 0.8, 1.0)
NOISES = (ShotNoise, SpeckleNoise)
BLURS = (GaussianBlur, DefocusBlur, GlassBlur, MotionBlur, ZoomBlur)
ALL = (*NOISES, *BLURS, Occlusion)
by_name = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@functools.cache
def program(kind, **fields):
    """One compiled program per corruption; jit keeps one per shape."""
    corruption = kind(**fields)
    return jax.jit(lambda x, severity, seed: corruption(jax.random.key(seed), x, severity))


def corrupted(kind, x, severity, seed=0, **fields):
    return np.asarray(program(kind, **fields)(x, np.float32(severity), seed))


def grey(level, side=224):
    return np.full((side, side, 3), level, np.uint8)


# Against published code


pictures = functools.cache(draw_pictures)


# Published code cuts fractions of a level off, so its means lie half a level lower.
CUT_OFF = np.array([0, 0.5, 0, 0, 0])


# Largest differences: of the mean absolute change (relative), of the mean (levels, after the half
# level), of the deviation and of the kept energy (relative). Measured: in the comments.
@pytest.mark.parametrize(
    ("kind", "fields", "change", "mean", "deviation", "energy"),
    [
        # 0.0034, 0.57 (whole levels are not cut: 0, 255, all of 3 and 5 photons), 0.0012, 0.006
        (ShotNoise, {}, 0.01, 0.8, 0.004, 0.02),
        # 0.0047, 0.19, 0.0023, 0.005
        (SpeckleNoise, {}, 0.01, 0.5, 0.006, 0.02),
        # 0.001, 0.01, 0.0001, 0.001
        (GaussianBlur, {}, 0.002, 0.02, 0.0005, 0.005),
        # 0.006, 1.49 (the published discs of radius 8 and 10 sum to 1.013), 0.015, 0.083
        (DefocusBlur, {}, 0.012, 1.6, 0.02, 0.1),
        # 0.195 (the published image also moves by some pixels), 0.56 (cut off twice), 0.011, 0.18
        (GlassBlur, {}, 0.25, 0.7, 0.02, 0.22),
        # 0.001, 0.01, 0.0001, 0.005
        (MotionBlur, {"largest_angle": 0.0}, 0.003, 0.02, 0.0005, 0.01),
        # 0.021, 0.04, 0.004, 0.117 (other numbers of copies)
        (ZoomBlur, {}, 0.03, 0.08, 0.008, 0.15),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_statistics_are_those_of_published_code(kind, fields, change, mean, deviation, energy):
    golden = np.load(GOLDEN)
    given = pictures()
    moments = np.stack([given.mean(axis=(1, 2, 3)), given.std(axis=(1, 2, 3))], axis=1)
    np.testing.assert_allclose(moments, golden["pictures"], rtol=1e-5)
    name = "".join(f"_{c.lower()}" if c.isupper() else c for c in kind.__name__)[1:]
    found = np.array(
        [
            np.mean(
                [
                    statistics(picture, corrupted(kind, picture, severity, number, **fields))
                    for number, picture in enumerate(given)
                ],
                axis=0,
            )
            for severity in PUBLISHED
        ]
    )
    published = golden[name] + CUT_OFF[None]
    np.testing.assert_allclose(found[:, 0], published[:, 0], rtol=change)
    np.testing.assert_allclose(found[:, 1], published[:, 1], atol=mean)
    np.testing.assert_allclose(found[:, 2], published[:, 2], rtol=deviation)
    np.testing.assert_allclose(found[:, 3:], published[:, 3:], rtol=energy)
    # The change grows, and there is none at 0.
    assert (np.diff(found[:, 0]) > 0).all()
    np.testing.assert_array_equal(corrupted(kind, given[0], 0.0, **fields), given[0])


@pytest.mark.parametrize("kind", NOISES, ids=lambda kind: kind.__name__)
def test_noise_depends_on_brightness_as_in_published_code(kind):
    levels = np.repeat(np.arange(14) * 19, 16).astype(np.uint8)
    chart = np.broadcast_to(levels[:, None, None], (224, 224, 3))
    name = {ShotNoise: "steps.shot_noise", SpeckleNoise: "steps.speckle_noise"}[kind]
    found = np.stack([corrupted(kind, chart, severity) for severity in PUBLISHED])
    bands = found.reshape(5, 14, -1).astype(np.float64)
    assert (bands[:, 0] == 0).all()  # in the dark there is no noise
    published = np.load(GOLDEN)[name][:, 1:]
    # 10752 entries in each: the standard error of a ratio of deviations is 0.01.
    np.testing.assert_allclose(bands[:, 1:].std(axis=-1), published[..., 1], rtol=0.035)
    error = published[..., 1] / np.sqrt(bands.shape[-1])
    difference = bands[:, 1:].mean(axis=-1) - published[..., 0]
    assert (difference > -5 * error).all() and (difference < 0.6 + 5 * error).all()


# Noise


@pytest.mark.parametrize(
    ("severity", "photons", "level"), [(1.0, 3, 85), (0.4, 25, 51), (0.2, 60, 85)]
)
def test_shot_noise_is_a_poisson_count_of_photons(severity, photons, level):
    # Means of 1 and 5 photons take the sum of probabilities, one of 20 the expansion.
    found = corrupted(ShotNoise, grey(level), severity)
    counts = np.round(found.reshape(-1) / 255 * photons).astype(int)
    np.testing.assert_allclose(found.reshape(-1), counts * 255 / photons, atol=0.51)
    expected = stats.poisson.pmf(np.arange(photons), photons * level / 255)
    frequencies = np.bincount(counts, minlength=photons + 1)[:photons] / counts.size
    # 150 528 draws: a standard error of up to 0.0013.
    np.testing.assert_allclose(frequencies, expected, atol=0.005)


@pytest.mark.parametrize("kind", NOISES, ids=lambda kind: kind.__name__)
def test_noise_has_the_same_quantiles_at_every_severity(kind):
    low, high = (corrupted(kind, grey(100), severity) for severity in (0.2, 0.8))
    ranges = [(high[low == level].min(), high[low == level].max()) for level in np.unique(low)]
    assert len(ranges) > 20
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    assert (corrupted(kind, grey(100), 0.2, seed=1) != low).mean() > 0.5


# Blurs


def edge(side):
    """The left half black, the right half white."""
    image = np.zeros((side, side, 3), np.uint8)
    image[:, side // 2 :] = 255
    return image


@pytest.mark.parametrize("side", [224, 112])
def test_gaussian_blur_of_an_edge_is_two_sigma_wide(side):
    for severity, sigma in zip(PUBLISHED, (1, 2, 3, 4, 6), strict=True):
        if sigma * side / 224 < 2:
            continue  # too few pixels lie on the slope: see the next test
        profile = corrupted(GaussianBlur, edge(side), severity)[side // 3, :, 0] / 255
        between = (profile > 0.1) & (profile < 0.9)
        slope = np.diff(stats.norm.ppf(profile[between])).mean()
        assert 1 / slope == pytest.approx(sigma * side / 224, rel=0.03)


def test_gaussian_kernels_have_the_deviation_asked_for_even_below_a_pixel():
    point = jnp.zeros((1, 41, 51, 1)).at[0, 20, 25, 0].set(1)
    run = jax.jit(functools.partial(blur.gaussian_blur, largest=3.0))
    for sigma in (0.05, 0.2, 0.5, 0.9, 1.98, 2.01, 3.0):
        kernel = np.asarray(run(point, sigma))[0, ..., 0]
        assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-5)
        rows, columns = np.arange(41) - 20, np.arange(51) - 25
        found = [kernel.sum(axis=1) @ rows**2, kernel.sum(axis=0) @ columns**2]
        assert found == pytest.approx([sigma**2] * 2, rel=0.01)


@pytest.mark.parametrize("side", [224, 112])
def test_defocus_blur_of_an_edge_is_as_wide_as_its_disc(side):
    for severity, radius in zip(PUBLISHED, (3, 4, 6, 8, 10), strict=True):
        profile = corrupted(DefocusBlur, edge(side), severity)[side // 3, :, 0]
        between = ((profile > 0) & (profile < 255)).sum()
        assert between == pytest.approx(2 * radius * side / 224, abs=1.5)
        # Half a radius into the dark a disc holds 0.196 of the light: a Gaussian's edge does not.
        place = (side - 1) / 2 - 0.5 * radius * side / 224
        light = np.interp(place, np.arange(side), profile / 255)
        assert light == pytest.approx(0.196, abs=0.02 if radius * side / 224 >= 3 else 0.04)


def kernel_of_motion(sigma, length):
    weights = np.exp(-0.5 * (np.arange(length + 1) / sigma) ** 2)
    return weights / weights.sum()


def streak(severity, seed):
    """Where the light of a white point goes on average, (rows, columns), and what stays of it."""
    image = grey(0)
    image[112, 112] = 255
    found = corrupted(MotionBlur, image, severity, seed)[..., 0].astype(float)
    rows, columns = np.nonzero(found)
    light = found[rows, columns]
    # The line goes to the right of each pixel, so light comes from there.
    assert columns.max() == 112 and (np.abs(rows - 112) <= 112 - columns).all()
    return np.array([rows @ light, columns @ light]) / light.sum() - 112, found[112, 112]


def test_motion_blur_draws_one_way_in_one_direction_for_all_severities():
    angles = []
    for seed in range(12):
        found = []
        for severity, sigma, length in ((0.2, 3, 20), (0.6, 8, 30)):
            kernel = kernel_of_motion(sigma, length)
            moved, kept = streak(severity, seed)
            assert kept == pytest.approx(255 * kernel[0], abs=0.51)
            expected = kernel @ np.arange(length + 1)
            assert np.hypot(*moved) == pytest.approx(expected, rel=0.1)
            found.append(np.degrees(np.arctan2(moved[0], -moved[1])))
        assert found[0] == pytest.approx(found[1], abs=6)
        angles.append(found[1])
    assert min(angles) < -20 and max(angles) > 20 and np.abs(angles).max() < 46


def test_motion_blur_of_an_edge_fades_along_its_line_and_ends_with_it():
    lengths = zip(PUBLISHED, (3, 5, 8, 12, 15), (20, 30, 30, 30, 40), strict=True)
    for severity, sigma, length in lengths:
        profile = corrupted(MotionBlur, edge(224), severity, largest_angle=0.0)[100, :, 0]
        # So many columns before the edge the line reaches the white with what is left of it.
        left = 255 * np.cumsum(kernel_of_motion(sigma, length)[::-1])[::-1]
        np.testing.assert_allclose(profile[112 - np.arange(length + 1)], left, atol=0.51)
        assert (profile[: 112 - length] == 0).all() and (profile[112:] == 255).all()


def test_zoom_blur_draws_points_away_from_the_middle():
    image = grey(0)
    image[111:113, 161:163] = 255  # 50 pixels to the right of the middle
    for severity, zoom in zip(PUBLISHED, (0.11, 0.15, 0.2, 0.24, 0.3), strict=True):
        rows, columns = np.nonzero(corrupted(ZoomBlur, image, severity)[..., 0])
        assert columns.min() - 111.5 == pytest.approx(49.5, abs=0.1)
        # The point ends 50.5 pixels from the middle, and light between pixels is spread by one.
        assert columns.max() - 111.5 == pytest.approx(50.5 * (1 + zoom) + 0.5, abs=1)
        assert {rows.min() + rows.max()} == {223}


@pytest.mark.parametrize("side", [224, 56])
def test_glass_blur_displaces_as_far_as_its_table_says(side):
    # Brightness is the column, or the row: without blur, the change is the displacement.
    scale = 224 // side
    ramp = np.broadcast_to(
        (scale * np.arange(side, dtype=np.uint8))[None, :, None], (side, side, 3)
    )
    for severity, expected in ((0.2, 0.71), (1.0, 3.93)):
        for image in (ramp, ramp.swapaxes(0, 1)):
            found = corrupted(GlassBlur, image, severity, sigmas=(0.0, 0.0)).astype(float) - image
            steps = found[20:-20, 20:-20, 0] if side == 224 else found[5:-5, 5:-5, 0]
            assert steps.std() == pytest.approx(expected, rel=0.03 if side == 224 else 0.12)
            assert steps.mean() == pytest.approx(0, abs=0.06 if side == 224 else 0.2)
            assert (steps % scale == 0).all()


# Occlusion


def test_occlusion_hides_its_share_and_keeps_it_hidden():
    image = edge(224)
    places = []
    for seed in range(6):
        before = np.zeros(image.shape)
        for severity, share in zip(PUBLISHED, (0.04, 0.1, 0.2, 0.35, 0.5), strict=True):
            found = corrupted(Occlusion, image, severity, seed)
            hidden = np.abs(found.astype(float) - image) / 127.5
            assert hidden.mean() == pytest.approx(share, abs=0.002)
            assert (hidden >= before - 0.01).all()
            rows, columns = np.nonzero(hidden[..., 0] > 0.99)
            inner = hidden[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (inner > 0.99).all()  # a rectangle of one grey
            assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1)  # a square
            before = hidden
        places.append((rows.min(), columns.min()))
    assert len(set(places)) == 6


# All


@by_name
def test_frames_share_what_a_camera_would_share_and_light_is_neither_lost_nor_made(kind):
    frame = np.random.default_rng(0).integers(0, 256, (20, 24, 1)).astype(np.uint8)
    video = np.stack([frame] * 3)
    found = corrupted(kind, video, 1.0)
    assert found.shape == video.shape and found.dtype == np.uint8
    assert (found[0] != frame).any()
    same = [(found[0] == other).mean() for other in found[1:]]
    assert max(same) < 0.5 if kind in NOISES else min(same) == 1
    if kind not in NOISES:
        uniform = np.full_like(video, 201)
        np.testing.assert_array_equal(corrupted(kind, uniform, 1.0), uniform)


@pytest.mark.parametrize(
    ("kind", "words", "level"),
    [
        (ShotNoise, "12 photons at full brightness", 5**0.5),
        (SpeckleNoise, "noise of 35 % of the brightness", 0.35 / 0.15),
        (GaussianBlur, "sigma 3 px of 224", 3),
        (DefocusBlur, "radius 6 px of 224", 2),
        (GlassBlur, "displaced by 2.09 px of 224", 2.09 / 0.71),
        (MotionBlur, "streak of sigma 8 and length 30 px of 224", 8 / 3),
        (ZoomBlur, "magnified by up to 1.2", 0.2 / 0.11),
        (Occlusion, "20 % hidden", 5),
    ],
)
def test_strength_is_told_in_words_and_in_units_of_the_reference(kind, words, level):
    assert kind().describe(0.6) == words
    levels = [float(kind().noise_level(severity)) for severity in (0.0, 0.2, 0.6)]
    assert levels == pytest.approx([0, 1, level], rel=1e-5)


@by_name
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"met an input of float32 \(8, 8, 3\): it takes 8-bit"),
        (np.zeros((8, 8), np.uint8), r"met an input of uint8 \(8, 8\)"),
    ],
    ids=["floats", "no channels"],
)
def test_what_is_no_8_bit_image_is_refused(kind, x, message):
    with pytest.raises(FusionError, match=message):
        corrupted(kind, x, 0.5)
