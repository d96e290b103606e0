"""Corruptions of waveforms: what each promises physically, and statistics of published ones."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from fusion_jax.blocks.resample import multiples
from fusion_jax.corruptions.babble import Babble
from fusion_jax.corruptions.band_pass import BandPass
from fusion_jax.corruptions.clipping import Clipping
from fusion_jax.corruptions.delay import Delay
from fusion_jax.corruptions.frequency_mask import FrequencyMask
from fusion_jax.corruptions.pitch import Pitch
from fusion_jax.corruptions.quantisation import Quantisation
from fusion_jax.corruptions.reverberation import Reverberation
from fusion_jax.corruptions.sample_dropout import SampleDropout
from fusion_jax.corruptions.speed import Speed
from fusion_jax.corruptions.temporal_blur import TemporalBlur
from fusion_jax.corruptions.time_mask import TimeMask
from fusion_jax.errors import FusionError
from tests.golden.make_sound_corruptions import sounds as make_sounds
from tests.golden.make_sound_corruptions import statistics

RATE = 16_000
PUBLISHED = (0.2, 0.4, 0.6, 0.8, 1.0)
KINDS = (
    *(Babble, BandPass, Clipping, Delay, FrequencyMask, Pitch, Quantisation, Reverberation),
    *(SampleDropout, Speed, TemporalBlur, TimeMask),
)
# Whether a drawn direction makes a sound faster, or higher.
UP, DOWN = True, False


@functools.cache
def program(kind, **fields):
    corruption = kind(**fields)
    return jax.jit(
        lambda x, severity, seed, donor: corruption(jax.random.key(seed), x, severity, donor)
    )


def corrupted(kind, x, severity, seed=0, donor=None, **fields):
    donor = x if donor is None else donor
    return np.asarray(program(kind, **fields)(x, np.float32(severity), seed, donor))


def tone(frequency, length=RATE, amplitude=0.3):
    time = np.arange(length) / RATE
    return (amplitude * np.sin(2 * np.pi * frequency * time + 0.1)).astype(np.float32)


def white(length=RATE, seed=0):
    return (0.1 * np.random.default_rng(seed).normal(size=length)).astype(np.float32)


sounds = functools.cache(make_sounds)


@functools.cache
def direction(kind, seed):
    """UP or DOWN: whether the tone gets higher."""
    return bool(peak(corrupted(kind, tone(1000.0), 1.0, seed)) > 1000)


def peak(x):
    """The strongest frequency, Hz, to a fraction of 1 Hz."""
    power = np.abs(np.fft.rfft(x * np.hanning(len(x)), n=16 * RATE))
    return np.argmax(power) / 16


def unchanged(strength):
    return strength


# Tolerances: mean absolute change (None where it is another on purpose), level, share of a band.
# They are about twice the greatest difference that was found, but for what is equal by definition.
ORACLE = {
    # We clip both signs at one level, the package at two percentiles: bands differ by up to 0.08
    # where a waveform is asymmetric.
    "clipping": (Clipping, unchanged, (0.02, 0.05, 0.12)),
    "time_mask": (TimeMask, unchanged, (0.02, 0.02, 0.01)),
    # Phases differ on purpose, so that the waveforms do.
    "band_pass": (BandPass, unchanged, (None, 0.01, 0.01)),
    # Steps of 1/8 at 4 bits, where the package has 1/9.
    "quantisation": (Quantisation, lambda bits: 16 - bits, (0.03, 0.025, 0.02)),
    "delay": (Delay, unchanged, (1e-5, 1e-5, 1e-5)),
    "babble": (Babble, lambda decibels: 10 ** (-decibels / 20), (0.002, 0.01, 0.01)),
    # We keep a random instant in place, the package the start; linear interpolation takes up to
    # 0.013 of the energy out of the highest band.
    "speed": (Speed, lambda rate: rate - 1, (None, 0.03, 0.03)),
    # Against a vocoder of another kind (signalsmith): partials beside the edge of a band.
    "pitch": (Pitch, abs, (0.14, 0.05, 0.2)),
}


@pytest.mark.parametrize("name", ORACLE)
def test_statistics_are_those_of_the_published_corruption(name):
    kind, strength_of, (change, level, band) = ORACLE[name]
    with np.load(Path(__file__).parents[1] / "golden" / "sound_corruptions.npz") as golden:
        settings, expected, rms = golden[f"{name}_settings"], golden[name], golden["rms"]
    np.testing.assert_allclose(np.sqrt((sounds().astype(np.float64) ** 2).mean(axis=1)), rms, 1e-5)
    table = kind().strengths
    # The last sound is the babble, and the third shares partials with it: how these add up depends
    # on the instant.
    rows = 2 if name == "babble" else 4
    for setting, statistics_of_package in zip(settings, expected, strict=True):
        severity = np.interp(strength_of(setting), table, np.linspace(0, 1, len(table)))
        seeds = range(100 if name == "time_mask" else 1)
        if name in ("speed", "pitch"):
            wanted = UP if name == "speed" or setting > 0 else DOWN
            seeds = [next(s for s in range(30) if direction(kind, s) == wanted)]
        for x, theirs in zip(sounds()[:rows], statistics_of_package, strict=False):
            found = [statistics(x, corrupted(kind, x, severity, s, sounds()[3])) for s in seeds]
            ours = np.mean(found, axis=0)
            if change is not None:
                assert ours[0] == pytest.approx(theirs[0], abs=change), setting
            assert ours[1] == pytest.approx(theirs[1], abs=level), setting
            np.testing.assert_allclose(ours[2:], theirs[2:], atol=band, err_msg=str(setting))


@pytest.mark.parametrize("kind", KINDS)
def test_severity_zero_changes_no_bit_of_a_float_waveform(kind):
    np.testing.assert_array_equal(corrupted(kind, white(), 0.0), white())
    assert np.isfinite(corrupted(kind, np.zeros(RATE, np.float32), 1.0)).all()
    silent = kind is not Babble and corrupted(kind, np.zeros(RATE, np.float32), 1.0).any()
    assert not silent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "x", [np.zeros((40, 40, 3), np.uint8), np.zeros(40, np.int32)], ids=["image", "int32"]
)
def test_corruptions_of_sound_refuse_what_is_no_waveform(kind, x):
    with pytest.raises(FusionError, match=r"met an input of (uint8|int32) .*: it takes "):
        kind()(jax.random.key(0), x, 0.5, x)


@pytest.mark.parametrize(
    ("seconds", "decibels", "severity"),
    [(0.2, -1.0, 0.2), (0.4, -4.0, 0.4), (0.7, -6.4, 0.6), (1.1, -8.4, 0.8), (1.6, -10.0, 1.0)],
)
def test_reverberation_decays_by_60_db_in_the_stated_time(seconds, decibels, severity):
    click = np.zeros(RATE, np.float32)
    click[0] = 0.5
    tails = np.asarray([corrupted(Reverberation, click, severity, seed) for seed in range(8)])
    energy = (tails.astype(np.float64) ** 2).mean(axis=0)
    end = min(int(0.7 * seconds * RATE), RATE - 1) // 160 * 160
    power = 10 * np.log10(energy[1 : 1 + end].reshape(-1, 160).sum(axis=1))
    slope = np.polyfit(np.arange(len(power)) / 100, power, 1)[0]
    assert -60 / slope == pytest.approx(seconds, rel=0.05)
    # What lies beyond the end of the clip is missing from the tail.
    late = energy[1:].sum() / (1 - 10 ** (-6 / seconds))
    assert 10 * np.log10(energy[0] / late) == pytest.approx(decibels, abs=0.5)
    assert Reverberation().describe(severity) == f"RT60 {seconds} s"


def test_reverberation_keeps_the_level_and_its_tails_are_paired():
    x = white()
    x[12_000:] = 0
    for severity in PUBLISHED:
        found = corrupted(Reverberation, x, severity)
        assert found[:12_000].std() == pytest.approx(x[:12_000].std(), rel=1e-3)
    assert np.abs(found[12_000:]).max() > 0.01  # on into the padding
    click = np.zeros(RATE, np.float32)
    click[0] = 0.5
    low, high = (corrupted(Reverberation, click, severity)[1:2000] for severity in (0.4, 1.0))
    # Of equal sign wherever rounding of the transform does not decide.
    assert (np.sign(low) == np.sign(high)).mean() > 0.99
    assert np.abs(corrupted(Reverberation, click, 1.0, seed=1)[1:2000] - high).max() > 0.01


def test_clipping_cuts_the_stated_fraction_of_what_is_not_zero_at_both_signs():
    x = white()
    x[8000:] = 0
    for severity, share in zip(PUBLISHED, (0.05, 0.1, 0.2, 0.3, 0.4), strict=True):
        found = corrupted(Clipping, x, severity)
        limit = np.abs(found).max()
        assert (np.abs(x) > limit).sum() == pytest.approx(share * 8000, abs=1)
        np.testing.assert_array_equal(found, np.clip(x, -limit, limit))
        assert found.min() == -limit and found.max() == limit


def test_time_mask_silences_one_stretch_of_the_sound_and_grows_around_it():
    x = 0.2 + np.abs(white())
    x[10_000:] = 0
    for seed in range(5):
        before = np.zeros(RATE, bool)
        for severity, share in zip(PUBLISHED, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
            found = corrupted(TimeMask, x, severity, seed)
            silent = (found == 0) & (x != 0)
            steps = np.flatnonzero(silent)
            assert len(steps) == pytest.approx(share * 10_000, abs=1)
            assert steps[-1] - steps[0] + 1 == len(steps)
            np.testing.assert_array_equal(found[~silent], x[~silent])
            assert not (before & ~silent).any()
            before = silent


def test_frequency_mask_silences_one_band_of_the_stated_share_of_the_mel_scale():
    x = white()
    clean = np.fft.rfft(x)
    mel = 2595 * np.log10(1 + np.fft.rfftfreq(RATE, 1 / RATE) / 700)
    for seed in range(5):
        before = np.zeros(len(clean), bool)
        for severity, share in zip(PUBLISHED, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
            kept = np.abs(np.fft.rfft(corrupted(FrequencyMask, x, severity, seed)) / clean)
            silent = kept < 0.5
            bins = np.flatnonzero(silent)
            assert bins[-1] - bins[0] + 1 == len(bins)
            width = (mel[bins[-1]] - mel[bins[0]]) / mel[-1]
            assert width == pytest.approx(share, abs=0.002)
            inner, outer = np.ones_like(silent), np.ones_like(silent)
            outer[max(bins[0] - 2, 0) : bins[-1] + 3] = False
            inner[: bins[0] + 2] = inner[bins[-1] - 1 :] = False
            assert kept[inner].max() < 0.01 and np.abs(kept[outer] - 1).max() < 0.01
            assert not (before & ~silent).any()
            before = silent


@pytest.mark.parametrize(("severity", "milliseconds"), [(0.6, 0.1), (0.8, 0.2), (1.0, 0.4)])
def test_temporal_blur_spreads_a_click_by_its_sigma(severity, milliseconds):
    click = np.zeros(RATE, np.float32)
    click[5000] = 1.0
    found = corrupted(TemporalBlur, click, severity).astype(np.float64)
    assert found.sum() == pytest.approx(1, abs=1e-4)
    spread = np.sqrt((found * (np.arange(RATE) - 5000) ** 2)[4900:5100].sum())
    assert 1000 * spread / RATE == pytest.approx(milliseconds, rel=1e-2)
    lost = corrupted(TemporalBlur, tone(1000 * 0.13251 / milliseconds), severity)
    assert lost[4000:12000].std() == pytest.approx(0.3 / 2, rel=5e-3)


def test_temporal_blur_holds_the_ends_of_a_series():
    x = np.linspace([0, 5], [1, -5], 100).astype(np.float32)
    fields = {"sample_rate": 10.0, "strengths": (0.0, 100.0, 200.0), "reference": 100.0}
    found = corrupted(TemporalBlur, x, 1.0, **fields)
    np.testing.assert_allclose(found[10:-10], x[10:-10], atol=1e-4)
    assert np.abs(found - x).max() < 0.3


@pytest.mark.parametrize("severity", [0.4, 1.0])
def test_speed_multiplies_or_divides_the_frequency_and_the_length(severity):
    factor = {0.4: 1.1, 1.0: 1.5}[severity]
    x = tone(1000.0)
    seen = set()
    for seed in range(8):
        found = corrupted(Speed, x, severity, seed)
        faster = direction(Speed, seed)
        seen.add(faster)
        assert peak(found) == pytest.approx(1000 * factor if faster else 1000 / factor, abs=0.2)
        length = (found != 0).sum()
        assert length == pytest.approx(RATE / factor if faster else RATE, abs=20)
    assert seen == {UP, DOWN}


def test_positions_between_samples_are_exact_where_32_bit_floats_are_not():
    steps = np.concatenate([np.arange(-3000, 3000), np.arange(479_000, 480_000)])
    for rate in (1.0, 0.66667, 1.5, 1.189207):
        whole, part = jax.jit(multiples)(steps, np.float32(rate))
        expected = steps * (np.round(np.float32(rate) * 65536) / 65536)
        np.testing.assert_array_equal(np.asarray(whole) + np.asarray(part, np.float64), expected)


@pytest.mark.parametrize("frequency", [220.0, 1000.0])
@pytest.mark.parametrize(("severity", "semitones"), [(0.2, 0.5), (0.6, 2.0), (1.0, 4.0)])
def test_pitch_moves_a_tone_by_its_semitones_at_its_level(frequency, severity, semitones):
    seen = set()
    for seed in range(5, 9):
        up = direction(Pitch, seed)
        seen.add(up)
        found = corrupted(Pitch, tone(frequency), severity, seed)
        expected = frequency * 2 ** ((semitones if up else -semitones) / 12)
        assert peak(found) == pytest.approx(expected, rel=0.002)
        assert found[2000:14_000].std() == pytest.approx(0.3 / np.sqrt(2), rel=0.03)
    assert seen == {UP, DOWN}


def test_pitch_keeps_when_things_happen():
    x = tone(500.0)
    x[:4000] = x[9000:] = 0
    for seed in range(5, 9):
        energy = np.cumsum(corrupted(Pitch, x, 1.0, seed).astype(np.float64) ** 2)
        middle = np.searchsorted(energy, energy[-1] * np.float64([0.1, 0.5, 0.9]))
        # To 4 ms, where a window has 64.
        np.testing.assert_allclose(middle, [4500, 6500, 8500], atol=64)


def test_sample_dropout_loses_the_stated_fraction_of_samples_or_packets():
    x = 0.2 + np.abs(white(64_000))
    for packet in (1, 320):
        before = np.zeros(len(x), bool)
        for severity, share in zip(PUBLISHED, (0.1, 0.2, 0.4, 0.6, 0.8), strict=True):
            lost = corrupted(SampleDropout, x, severity, packet=packet) == 0
            # 64,000 or 200 draws.
            assert lost.mean() == pytest.approx(share, abs=4 * (share * packet / len(x)) ** 0.5)
            together = lost.reshape(-1, packet)
            np.testing.assert_array_equal(together.all(axis=1), together.any(axis=1))
            assert not (before & ~lost).any()
            before = lost
    with pytest.raises(FusionError, match="packets of 0 samples: give at least 1"):
        corrupted(SampleDropout, x, 0.5, packet=0)


def test_quantisation_leaves_the_stated_bits():
    x = np.linspace(-1, 0.999, RATE).astype(np.float32)
    wide = np.arange(-32_768, 32_768, 4).astype(np.int16)
    for severity, bits in zip(PUBLISHED, (12, 10, 8, 6, 4), strict=True):
        found = corrupted(Quantisation, x, severity)
        np.testing.assert_allclose(np.diff(np.unique(found)), 2.0 ** (1 - bits), rtol=1e-6)
        assert np.abs(found - x).max() <= 2.0**-bits + 1e-6
        steps = corrupted(Quantisation, wide, severity).astype(int)
        # The last level is beyond 16 bits and saturates.
        assert set(np.diff(np.unique(steps))) <= {2 ** (16 - bits), 2 ** (16 - bits) - 1}
        assert Quantisation().describe(severity) == f"{bits} bits"
    quiet = corrupted(Quantisation, 0.01 * x, 1.0, full_scale=0.01)
    np.testing.assert_allclose(quiet, 0.01 * found, rtol=1e-5)


@pytest.mark.parametrize(
    ("severity", "low", "high"), [(0.4, 200, 5101), (0.6, 300, 3400), (1.0, 700, 1457)]
)
def test_band_pass_loses_3_db_at_its_edges_and_24_db_in_an_octave_beyond(severity, low, high):
    def lost(frequency):
        return -20 * np.log10(corrupted(BandPass, tone(frequency), severity).std() * 2**0.5 / 0.3)

    assert lost(low) == pytest.approx(3, abs=0.1) and lost(high) == pytest.approx(3, abs=0.1)
    assert lost(1010) < 0.1
    if severity < 1:  # a narrow band-pass is steeper close by
        assert lost(low / 4) - lost(low / 2) == pytest.approx(24, abs=1)
    assert corrupted(BandPass, np.full(RATE, 0.1, np.float32), severity).std() < 1e-6
    with pytest.raises(FusionError, match=r"700.0 Hz and its centre at 500.0 Hz passes nothing"):
        corrupted(BandPass, tone(100.0), severity, centre=500.0)


def test_babble_adds_the_looped_donor_at_the_stated_ratio_in_every_draw():
    x, donor = sounds()[0].copy(), sounds()[2].copy()
    x[12_000:] = donor[9_000:] = 0
    power = (x[:12_000].astype(np.float64) ** 2).mean()
    starts = []
    for seed, (severity, decibels) in enumerate(zip(PUBLISHED, (20, 10, 5, 0, -5), strict=True)):
        noise = corrupted(Babble, x, severity, seed, donor) - x.astype(np.float64)
        assert 10 * np.log10(power / (noise**2).mean()) == pytest.approx(decibels, abs=0.03)
        # The donor's 9000 samples from some sample on, again and again.
        np.testing.assert_allclose(noise[9000:], noise[:7000], atol=1e-6)
        shape = np.fft.irfft(np.fft.rfft(noise[:9000]) * np.conj(np.fft.rfft(donor[:9000])))
        starts.append(np.argmax(shape))
        rolled = np.roll(donor[:9000], starts[-1]).astype(np.float64)
        assert np.corrcoef(rolled, noise[:9000])[0, 1] > 0.9999
    assert len(set(starts)) == 5
    np.testing.assert_array_equal(corrupted(Babble, x, 1.0, donor=np.zeros_like(x)), x)


def test_babble_asks_for_a_donor_of_its_shape():
    with pytest.raises(FusionError, match="Babble needs a donor"):
        Babble()(jax.random.key(0), white(), 0.5)
    with pytest.raises(FusionError, match=r"a donor of shape \(100,\) for an input of \(16000,\)"):
        Babble()(jax.random.key(0), white(), 0.5, white(100))
