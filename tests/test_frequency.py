"""Block DCT and the frequency ratio metric against the released numbers, SciPy and known inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from fusion_jax.errors import FusionError
from fusion_jax.frequency import block_dct, dct_matrix, frequency_ratio
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"


def images(shape=(3, 16, 24, 2), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def waves(frequency, shape=(1, 64, 64, 1)):
    """A wave in cycles per sample, along the width of a signal, along both axes of a square."""
    along_width = np.sin(2 * np.pi * frequency * np.arange(shape[2]) + 0.3)
    along_height = along_width if shape[1] == shape[2] else np.ones(shape[1])
    picture = np.multiply.outer(along_height, along_width)[None, :, :, None]
    return np.broadcast_to(picture, shape).astype(np.float32)


def test_block_dct_is_scipys():
    x = images()
    found = block_dct(x)
    assert found.shape == (3, 2, 3, 2, 8, 8)
    block = x[1, 8:16, 16:24, 1].astype(np.float64)
    np.testing.assert_allclose(found[1, 1, 2, 1], scipy.fft.dctn(block, norm="ortho"), atol=1e-5)
    # Orthonormal: it keeps the sum of squares.
    np.testing.assert_allclose(np.sum(np.square(found)), np.sum(np.square(x)), rtol=1e-5)
    np.testing.assert_allclose(dct_matrix(5) @ dct_matrix(5).T, np.eye(5), atol=1e-12)


def test_block_dct_of_impulse_flat_and_ramp():
    # Flat c: the mean alone, 8 c. A horizontal ramp has no vertical frequency.
    flat = np.asarray(block_dct(np.full((1, 8, 8, 1), 0.5, np.float32)))[0, 0, 0, 0]
    np.testing.assert_allclose(flat[0, 0], 4, rtol=1e-6)
    assert np.abs(flat.ravel()[1:]).max() < 1e-5
    ramp = np.broadcast_to(np.arange(8.0)[None, None, :, None], (1, 8, 8, 1)).astype(np.float32)
    coefficients = np.asarray(block_dct(ramp))[0, 0, 0, 0]
    assert np.abs(coefficients[1:]).max() < 1e-4 and np.abs(coefficients[0, :2]).min() > 10
    # An impulse at the first sample: coefficient (u, v) is d_u[0] d_v[0].
    impulse = np.zeros((1, 8, 8, 1), np.float32)
    impulse[0, 0, 0, 0] = 1
    first = dct_matrix(8)[:, 0]
    np.testing.assert_allclose(block_dct(impulse)[0, 0, 0, 0], np.outer(first, first), atol=1e-6)


@pytest.mark.parametrize("name", ["normal", "texture", "ramp"])
def test_official_ratio_is_the_released_one(name):
    golden = np.load(GOLDEN / f"frequency_ratio_{name}.npz")
    with jax.enable_x64():
        found = np.asarray(frequency_ratio(golden["x"], mode="official"))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, golden["per_example"], rtol=1e-9)
    np.testing.assert_allclose(found.sum(), golden["total"], rtol=1e-9)


def test_modes_are_their_formulas():
    x = images()
    blocks = np.asarray(block_dct(x), np.float64)
    low, high = np.abs(blocks[..., :2, :2]), np.abs(blocks[..., 6:, 6:])
    both = [band.sum(axis=(1, 2, 3, 4, 5)) for band in (low, high)]
    expected = {
        "low_only": both[0],
        "direct_sum": both[0] + both[1],
        "weighted_sum": 0.9 * both[0] + 0.1 * both[1],
        "robust": np.mean(
            low.mean(axis=(1, 2, 4, 5)) / (high.mean(axis=(1, 2, 4, 5)) + 1e-3), axis=-1
        ),
    }
    for mode, values in expected.items():
        np.testing.assert_allclose(frequency_ratio(x, mode=mode), values, rtol=1e-5, err_msg=mode)


def test_global_flip_pairs_mirrored_blocks():
    with jax.enable_x64():
        x = images().astype(np.float64)
        blocks = np.asarray(block_dct(x))
        low, high = blocks[..., :2, :2], blocks[..., 6:, 6:]
        mirrored = high[:, ::-1, ::-1, :, ::-1, ::-1]
        expected = np.abs(low / (mirrored + 1e-6)).sum(axis=(1, 2, 3, 4, 5))
        found = np.asarray(frequency_ratio(x, mode="official", flip="global"))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("transform", ["dct", "fft"])
def test_ratio_falls_with_the_frequency_of_a_wave(transform):
    found = [
        float(frequency_ratio(waves(f), transform=transform)[0]) for f in (0.02, 0.1, 0.2, 0.42)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > 5 > 1 > found[-1]


def test_fft_ratio_of_two_waves_is_the_ratio_of_their_powers():
    # Waves at 1/16 and 7/16 cycle per sample, amplitudes 3 and 1: powers 4.5 and 0.5.
    signal = 3 * waves(1 / 16, (1, 1, 512, 1)) + waves(7 / 16, (1, 1, 512, 1))
    found = frequency_ratio(signal[:, 0], transform="fft")
    np.testing.assert_allclose(found, 9, rtol=1e-3)
    picture = 3 * waves(1 / 16, (1, 32, 512, 1)) + waves(7 / 16, (1, 32, 512, 1))
    np.testing.assert_allclose(frequency_ratio(picture, transform="fft"), 9, rtol=1e-2)


@pytest.mark.parametrize(
    ("mode", "transform"),
    [("robust", "dct"), ("robust", "fft"), ("low_only", "dct"), ("official", "dct")],
)
def test_ratio_is_finite_for_degenerate_inputs(mode, transform):
    for value in (0.0, 1.0, -7.97, 255.0, 1e4):
        found = frequency_ratio(
            np.full((2, 16, 16, 3), value, np.float32), mode=mode, transform=transform
        )
        assert np.isfinite(found).all() and (np.asarray(found) >= 0).all()
    saturated = np.clip(images() * 100, -1, 1)
    assert np.isfinite(frequency_ratio(saturated, mode=mode, transform=transform)).all()


def test_flat_blocks_count_by_what_they_hold_in_the_robust_ratio():
    # Half of the picture is black: the official ratio is that of a flat-block counter.
    textured = images((4, 64, 64, 1))
    half = textured.copy()
    half[:, :, 32:] = -1.5
    robust = [float(frequency_ratio(x).mean()) for x in (textured, half)]
    official = [float(frequency_ratio(x, mode="official").mean()) for x in (textured, half)]
    assert robust[1] / robust[0] < 20
    assert official[1] / official[0] > 1e3


def test_signals_frames_and_integers():
    signal = images((2, 64, 3))
    blocks = scipy.fft.dct(signal.astype(np.float64).reshape(2, 8, 8, 3), axis=2, norm="ortho")
    low, high = (
        np.abs(blocks[:, :, :2]).mean(axis=(1, 2)),
        np.abs(blocks[:, :, 6:]).mean(axis=(1, 2)),
    )
    np.testing.assert_allclose(
        frequency_ratio(signal), np.mean(low / (high + 1e-3), axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(frequency_ratio(signal[..., 0]), frequency_ratio(signal[..., :1]))
    frames = images((2, 3, 16, 16, 2))
    apart = [frequency_ratio(frames[:, t]) for t in range(3)]
    np.testing.assert_allclose(frequency_ratio(frames), np.mean(apart, axis=0), rtol=1e-5)
    ints = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1)).astype(np.uint8)
    np.testing.assert_allclose(
        frequency_ratio(ints), frequency_ratio(ints.astype(np.float32)), rtol=1e-6
    )


def test_sizes_that_do_not_divide_name_the_padding():
    x = images((1, 12, 16, 1))
    with pytest.raises(FusionError, match="12 x 16 samples is no multiple of the block of 8: use"):
        frequency_ratio(x)
    np.testing.assert_allclose(
        frequency_ratio(x, padding="crop"), frequency_ratio(x[:, :8]), rtol=1e-6
    )
    padded = np.pad(x, [(0, 0), (0, 4), (0, 0), (0, 0)], mode="edge")
    np.testing.assert_allclose(
        frequency_ratio(x, padding="edge"), frequency_ratio(padded), rtol=1e-6
    )
    with pytest.raises(FusionError, match="smaller than a block of 8"):
        frequency_ratio(images((1, 4, 16, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "frm"}, "mode is 'frm': choose one of"),
        ({"transform": "dft"}, "transform is 'dft'"),
        ({"mode": "official", "transform": "fft"}, "use transform='dct'"),
        ({"corner": 5}, "corner is 5: blocks of 8 have corners of 1..4"),
        ({"padding": "zero"}, "padding is 'zero'"),
        ({"flip": "no"}, "flip is 'no'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(FusionError, match=message):
        frequency_ratio(images(), **options)


@pytest.mark.parametrize("transform", ["dct", "fft"])
def test_rows_stay_on_their_devices(transform):
    x = images((16, 16, 16, 1))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda x: frequency_ratio(x, transform=transform))
        placed = jax.device_put(x, rows)
        assert "all-gather" not in run.lower(placed).compile().as_text()
        found = np.asarray(run(placed))
    np.testing.assert_allclose(found, frequency_ratio(x, transform=transform), rtol=1e-5)


def test_ratio_is_differentiable_where_it_is_robust():
    gradient = jax.grad(lambda x: frequency_ratio(x).sum())(jnp.asarray(images()))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize("transform", ["dct", "fft"])
def test_an_image_of_one_column_is_a_signal(transform):
    signal = np.random.default_rng(0).normal(size=(3, 32, 2)).astype(np.float32)
    expected = frequency_ratio(signal, transform=transform)
    np.testing.assert_array_equal(
        frequency_ratio(signal[:, :, None], transform=transform), expected
    )
    np.testing.assert_array_equal(frequency_ratio(signal[:, None], transform=transform), expected)


@pytest.mark.parametrize(
    "options", [{"padding": "edge"}, {"padding": "crop"}, {"transform": "fft"}]
)
def test_what_is_smaller_than_a_block_is_refused_whatever_the_padding(options):
    for shape in ((2, 3), (2, 7, 1), (2, 16, 5, 1)):
        with pytest.raises(FusionError, match="smaller than a block of 8"):
            frequency_ratio(np.ones(shape, np.float32), **options)
