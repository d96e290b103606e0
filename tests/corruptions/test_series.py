"""Corruptions of series, tables and of anything in time: shares, sizes and what is kept."""

import functools

import jax
import numpy as np
import pytest

from fusion_jax.corruptions.delay import Delay
from fusion_jax.corruptions.drift import Drift
from fusion_jax.corruptions.missing_columns import MissingColumns
from fusion_jax.corruptions.scaling import Scaling
from fusion_jax.corruptions.segment_dropout import SegmentDropout
from fusion_jax.corruptions.stuck_sensor import StuckSensor
from fusion_jax.errors import FusionError

PUBLISHED = (0.2, 0.4, 0.6, 0.8, 1.0)
LOST = (0.1, 0.2, 0.4, 0.6, 0.8)
DRAWS = 2000


@functools.cache
def program(kind, **fields):
    corruption = kind(**fields)

    def many(x, severity, seeds):
        return jax.vmap(lambda seed: corruption(jax.random.key(seed), x, severity))(seeds)

    return jax.jit(many)


def corrupted(kind, x, severity, draws=1, **fields):
    """[draws, ...], one for each seed from 0 on."""
    return np.asarray(program(kind, **fields)(x, np.float32(severity), np.arange(draws)))


def series(length=50, channels=4):
    return np.random.default_rng(0).normal(size=(length, channels)).astype(np.float32)


def test_drift_is_a_random_walk_of_the_stated_deviation_at_the_last_step():
    deviations = (1.0, 0.01, 3.0, 100.0)
    x = np.zeros((50, 4), np.float32)
    found = {
        severity: corrupted(Drift, x, severity, DRAWS, deviations=deviations) / deviations
        for severity in PUBLISHED
    }
    for severity, size in zip(PUBLISHED, (0.5, 1, 1.5, 2, 3), strict=True):
        # 2000 draws: the standard error of a deviation is 1.6 %.
        for step in (9, 49):
            expected = size * np.sqrt((step + 1) / 50)
            np.testing.assert_allclose(found[severity][:, step].std(axis=0), expected, rtol=0.07)
        # Steps are independent of what went before, and channels of each other.
        steps = np.diff(found[severity], axis=1)
        assert abs(np.corrcoef(steps[:, 10, 0], found[severity][:, 10, 0])[0, 1]) < 0.09
        assert abs(np.corrcoef(found[severity][:, 49, 0], found[severity][:, 49, 1])[0, 1]) < 0.09
        np.testing.assert_allclose(found[severity], size / 3 * found[1.0], atol=1e-3)


def test_segment_dropout_replaces_one_stretch_by_the_means_in_all_channels():
    means = (5.0, 6.0, 7.0)
    x = series(1000, 3)
    before = np.zeros((20, 1000), bool)
    starts = set()
    for severity, share in zip(PUBLISHED, LOST, strict=True):
        found = corrupted(SegmentDropout, x, severity, 20, means=means)
        lost = (found == np.float32(means)).all(axis=-1)
        for draw, one in enumerate(lost):
            steps = np.flatnonzero(one)
            assert len(steps) == pytest.approx(1000 * share, abs=1)
            assert steps[-1] - steps[0] + 1 == len(steps)
            np.testing.assert_array_equal(found[draw][~one], x[~one])
            starts.add(steps[0])
        assert not (before & ~lost).any()
        before = lost
    assert len(starts) > 40


def test_stuck_sensors_hold_the_value_of_their_own_random_step():
    x = series(40, 6)
    before = np.zeros((DRAWS, 6), bool)
    for severity, share in zip(PUBLISHED, LOST, strict=True):
        found = corrupted(StuckSensor, x, severity, DRAWS)
        changed = found != x
        onset = np.where(changed.any(axis=1), changed.argmax(axis=1) - 1, 39)
        held = x[onset, np.arange(6)]
        steps = np.arange(40)[None, :, None]
        expected = np.where(steps > onset[:, None], held[:, None], x)
        np.testing.assert_array_equal(found, expected)
        stuck = onset < 39
        # One in 40 gets stuck at the last step, which shows nothing. 12,000 draws.
        assert stuck.mean() == pytest.approx(share * 39 / 40, abs=0.02)
        assert np.std(onset[stuck]) == pytest.approx(39 / np.sqrt(12), rel=0.05)
        assert not (before & ~stuck).any()
        before = stuck


@pytest.mark.parametrize("shape", [(7,), (30, 7)], ids=["features", "series"])
def test_scaling_multiplies_each_channel_by_a_gain_of_the_stated_deviation(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for severity, decibels in zip(PUBLISHED, (1, 2, 4, 6, 10), strict=True):
        gain = corrupted(Scaling, x, severity, DRAWS) / x
        assert (gain > 0).all()
        size = 20 * np.log10(gain.astype(np.float64)).reshape(DRAWS, -1, 7)
        np.testing.assert_allclose(size, size[:, :1].repeat(size.shape[1], 1), atol=1e-4)
        np.testing.assert_allclose(size[:, 0].std(axis=0), decibels, rtol=0.07)
        np.testing.assert_allclose(size[:, 0].mean(axis=0), 0, atol=0.09 * decibels)
        assert abs(np.corrcoef(size[:, 0, 0], size[:, 0, 1])[0, 1]) < 0.09
        assert Scaling().describe(severity) == f"gains of {decibels} dB"


@pytest.mark.parametrize("shape", [(7,), (5, 7)], ids=["features", "series"])
def test_missing_columns_become_their_means_at_the_stated_fraction(shape):
    means = tuple(float(number) for number in range(10, 17))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = np.zeros((DRAWS, 7), bool)
    for severity, share in zip(PUBLISHED, LOST, strict=True):
        found = corrupted(MissingColumns, x, severity, DRAWS, means=means).reshape(DRAWS, -1, 7)
        missing = (found == np.float32(means)).all(axis=1)
        kept = np.broadcast_to(x.reshape(-1, 7), found.shape)
        expected = np.where(missing[:, None], np.float32(means), kept)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(missing.mean(axis=0), share, atol=0.05)
        # Columns are drawn one by one.
        assert (missing[:, 0] & missing[:, 1]).mean() == pytest.approx(share**2, abs=0.05)
        assert not (before & ~missing).any()
        before = missing
    single = corrupted(MissingColumns, x, 1.0, 20, mean=-3.0)
    assert set(np.unique(single[single != x])) == {-3.0}


@pytest.mark.parametrize("fields", [{}, {"steps_per_second": 20.0}], ids=["share", "seconds"])
def test_delay_moves_everything_by_the_stated_time_and_puts_zeros_before(fields):
    generator = np.random.default_rng(0)
    video = generator.integers(1, 256, (40, 3, 2, 1)).astype(np.uint8)
    sound = generator.integers(1, 999, 40).astype(np.int16)
    for x in (video, sound, series(40, 3)):
        for severity, share in zip((0, *PUBLISHED), (0, 0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
            # 20 steps a second: 0.1 s are 2 steps; a share of 0.1 of 40 steps are 4.
            late = round(share * (20 if fields else 40))
            found = corrupted(Delay, x, severity, **fields)[0]
            assert found.dtype == x.dtype
            assert not found[:late].any()
            np.testing.assert_array_equal(found[late:], x[: 40 - late])
    far = corrupted(Delay, sound, 1.0, steps_per_second=1000.0)
    assert not far.any()
    assert Delay().describe(0.2) == "10 % of the length late"
    assert Delay(steps_per_second=20.0).describe(0.2) == "0.1 s late"


@pytest.mark.parametrize(
    ("kind", "x", "fields", "message"),
    [
        (Drift, np.zeros(4, np.float32), {}, r"drift met .* \(4,\): it takes series \[T, C\]"),
        (SegmentDropout, np.zeros((4, 3), np.int32), {}, "segment dropout met an input of int32"),
        (StuckSensor, np.zeros((2, 4, 3), np.float32), {}, r"stuck sensor met .* \(2, 4, 3\)"),
        (Scaling, np.zeros(4, np.uint8), {}, r"scaling met an input of uint8 .*floats \[..., C\]"),
        (MissingColumns, np.zeros(4, np.int16), {}, "missing columns met an input of int16"),
        (MissingColumns, np.zeros(4, np.float32), {"means": (1.0,)}, "1 means for an input of"),
        (Drift, np.zeros((4, 3), np.float32), {"deviations": (1.0,)}, "1 deviations for an input"),
        (Delay, np.zeros((8, 8, 3), np.uint8), {}, r"delay met an input of uint8 \(8, 8, 3\)"),
    ],
)
def test_corruptions_of_series_refuse_what_they_are_not_for(kind, x, fields, message):
    with pytest.raises(FusionError, match=message):
        corrupted(kind, x, 0.5, **fields)
