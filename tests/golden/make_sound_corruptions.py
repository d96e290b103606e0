"""Statistics of published sound corruptions on synthetic sounds: sound_corruptions.npz.

Made with audiomentations 0.43.1, numpy 2.4.6, scipy 1.17.1, librosa 0.11.0, python-stretch 0.3.1
and soundfile 0.14.0 on Python 3.11, in a virtual environment of its own:

    python3.11 -m venv oracle
    oracle/bin/pip install audiomentations==0.43.1 numpy==2.4.6 scipy==1.17.1 librosa==0.11.0 \
        python-stretch==0.3.1 soundfile==0.14.0
    oracle/bin/python tests/golden/make_sound_corruptions.py

`rms` [4]: of each sound, so that a test knows that it made the same ones. For each corruption an
array [settings, 4 sounds, 8 statistics] as `statistics` says, and under `<name>_settings` the
strengths. Where the package draws (time_mask), the mean over 300 draws.
"""

import itertools
import random
import tempfile
from pathlib import Path

import numpy as np

RATE = 16_000


def sounds() -> np.ndarray:
    """[4, RATE] float32: voices of harmonics that fall by 1 / k, with a pause and faint noise.

    tests/corruptions/test_sound.py uses it too. No sample is 0.
    """
    generator = np.random.default_rng(5)
    time = np.arange(RATE) / RATE
    made = []
    for pitch in (110.0, 170.0, 260.0, 390.0):
        numbers = np.arange(1, int(7000 / pitch))
        phases = generator.uniform(0, 2 * np.pi, len(numbers))
        vibrato = pitch * (time + 0.002 * np.sin(2 * np.pi * 3 * time))
        voice = np.sin(2 * np.pi * numbers[:, None] * vibrato + phases[:, None])
        voice = (voice / numbers[:, None]).sum(axis=0)
        envelope = 0.5 - 0.5 * np.cos(2 * np.pi * 2 * time)
        envelope[(time > 0.5) & (time < 0.65)] = 0
        voice = envelope * voice / np.abs(voice).max()
        made.append(0.5 * voice + 0.002 * generator.standard_normal(RATE))
    return np.asarray(made, np.float32)


def statistics(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean absolute change over RMS of x; RMS of y over that of x; shares of the energy of y in 6
    bands with edges at 0, 250, 500, 1000, 2000, 4000 and 8000 Hz."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    rms = np.sqrt((x**2).mean())
    energy = np.abs(np.fft.rfft(y)) ** 2
    edges = [0, 250, 500, 1000, 2000, 4000, 8000.1]
    frequency = np.fft.rfftfreq(len(y), 1 / RATE)
    bands = [
        energy[(frequency >= low) & (frequency < high)].sum()
        for low, high in itertools.pairwise(edges)
    ]
    # A changed length is laid over the start; only bands and level are then compared.
    short = min(len(x), len(y))
    change = np.abs(y[:short] - x[:short]).mean() / rms
    level = np.sqrt((y**2).sum() / len(x)) / rms
    return np.asarray([change, level, *(np.asarray(bands) / energy.sum())])


def transforms(folder: Path) -> dict[str, tuple[list, object]]:
    """For each corruption its settings and what makes the package's transform of one."""
    # Here, so that the file can be imported without the package.
    import audiomentations as am

    def band_pass(low):
        high = 1010.0**2 / low
        centre = (low + high) / 2
        return am.BandPassFilter(
            *(centre, centre, (high - low) / centre, (high - low) / centre, 24, 24), p=1.0
        )

    def resample(factor):
        rate = round(RATE / factor)
        return am.Resample(rate, rate, p=1.0)

    def babble(decibels):
        return am.AddBackgroundNoise(str(folder), decibels, decibels, p=1.0)

    return {
        "clipping": (
            [0.1, 0.2, 0.3, 0.4],
            lambda share: am.ClippingDistortion(round(100 * share), round(100 * share), p=1.0),
        ),
        "time_mask": (
            [0.1, 0.2, 0.3, 0.4, 0.5],
            lambda share: am.TimeMask(share, share, fade_duration=0.0, p=1.0),
        ),
        "band_pass": ([130.0, 200.0, 300.0, 450.0, 700.0], band_pass),
        "quantisation": ([12, 10, 8, 6, 4], lambda bits: am.BitCrush(bits, bits, p=1.0)),
        "delay": (
            [0.1, 0.2, 0.3, 0.4, 0.5],
            lambda share: am.Shift(share, share, rollover=False, fade_duration=0.0, p=1.0),
        ),
        "babble": ([20.0, 10.0, 5.0, 0.0, -5.0], babble),
        "speed": ([1.05, 1.1, 1.2, 1.3, 1.5], resample),
        "pitch": (
            [-4.0, -2.0, -0.5, 0.5, 2.0, 4.0],
            lambda semitones: am.PitchShift(semitones, semitones, p=1.0),
        ),
        "pitch_librosa": (
            [-4.0, -2.0, -0.5, 0.5, 2.0, 4.0],
            lambda semitones: am.PitchShift(
                semitones, semitones, method="librosa_phase_vocoder", p=1.0
            ),
        ),
    }


def main() -> None:
    """Write sound_corruptions.npz beside this file."""
    import soundfile

    random.seed(0)
    clean = sounds()
    made = {"rms": np.sqrt((clean.astype(np.float64) ** 2).mean(axis=1))}
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(Path(folder) / "voice.wav", clean[3], RATE, subtype="FLOAT")
        for name, (settings, make) in transforms(Path(folder)).items():
            draws = 300 if name == "time_mask" else 1
            found = [
                [
                    np.mean([statistics(x, make(s)(x, RATE)) for _ in range(draws)], axis=0)
                    for x in clean
                ]
                for s in settings
            ]
            made[name] = np.asarray(found, np.float32)
            made[f"{name}_settings"] = np.asarray(settings, np.float32)
    np.savez_compressed(Path(__file__).with_name("sound_corruptions.npz"), **made)


if __name__ == "__main__":
    main()
