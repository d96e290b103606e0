"""Tests of the pictures of inputs: read back, they must show the input."""

import io

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from fusion_jax.evaluation.pictures import picture


def pixels(png):
    """Colours [H, W, 3] of a PNG, 0 to 255."""
    assert png.startswith(b"\x89PNG")
    return np.round(255 * matplotlib.image.imread(io.BytesIO(png), format="png"))[..., :3]


def test_grey_image_is_enlarged_without_smoothing():
    x = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    shown = pixels(picture(x))
    assert shown.shape == (96, 96, 3)
    np.testing.assert_array_equal(shown, np.repeat(x, 3, 2).repeat(12, 0).repeat(12, 1))


@pytest.mark.parametrize("side", [28, 96, 200])
def test_colours_stay_as_they_are(side):
    x = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    shown = pixels(picture(x))
    factor = {28: 4, 96: 1, 200: 1}[side]
    np.testing.assert_array_equal(shown[::factor, ::factor], x)


def test_video_is_its_middle_frame():
    x = np.zeros((5, 96, 96, 1), np.uint8)
    x[2] = 200
    assert (pixels(picture(x)) == 200).all()


def test_waveform_is_a_spectrogram_with_low_frequencies_below():
    time = np.arange(8000) / 8000
    for frequency, row in ((500, 84), (3500, 12)):  # of 96 rows over 0 to 4 kHz, from the top
        shown = pixels(picture(np.sin(2 * np.pi * frequency * time), sample_rate=8000)).sum(axis=2)
        assert abs(shown.sum(axis=1).argmax() - row) <= 2


def test_series_and_features_are_drawn_in_colour():
    values = np.random.default_rng(0).normal(size=(50, 3)).cumsum(axis=0)
    lines = pixels(picture(values))
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert (np.abs(lines - colour).sum(axis=2) < 30).any()
    bars = np.abs(pixels(picture(np.array([1.0, 3.0]))) - (0x00, 0x72, 0xB2)).sum(axis=2) < 30
    left, right = bars[:, 60].sum(), bars[:, 130].sum()
    assert right == pytest.approx(3 * left, rel=0.05)


@pytest.mark.parametrize(
    ("x", "rate"),
    [
        (np.full((8, 8, 1), 7, np.uint8), None),
        (np.random.default_rng(0).normal(size=400), 8000),
        (np.random.default_rng(0).normal(size=(40, 2)), None),
        (np.random.default_rng(0).normal(size=40), None),
    ],
    ids=["image", "waveform", "series", "features"],
)
def test_bytes_are_the_same_whatever_the_settings(x, rate):
    before = picture(x, sample_rate=rate)
    settings = {"font.size": 30, "axes.prop_cycle": matplotlib.cycler(color=["red"])}
    settings |= {"figure.facecolor": "black", "image.origin": "lower", "lines.antialiased": False}
    with matplotlib.rc_context(settings):
        assert picture(x, sample_rate=rate) == before
    assert b"matplotlib" not in before.lower()


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(300),
        np.zeros(1),
        np.full(300, np.nan),
        np.full(300, np.inf),
        (np.random.default_rng(0).normal(size=300) * 3000).astype(np.int16),
    ],
    ids=["silent", "one_sample", "nan", "infinite", "int16"],
)
def test_odd_waveforms_have_a_picture(x):
    assert pixels(picture(x, sample_rate=8000)).shape == (96, 192, 3)


@pytest.mark.parametrize(
    "x",
    [np.array(["a word"]), np.zeros((2, 3, 4, 5)), np.zeros((0, 3)), np.float32(1.0)],
    ids=["text", "float_volume", "empty", "scalar"],
)
def test_no_picture_of_other_inputs(x):
    assert picture(x) is None
