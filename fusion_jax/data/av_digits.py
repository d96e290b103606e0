"""The default data set: real handwritten digits paired with synthetic spoken digits, offline.

The images are scikit-learn's `load_digits` (UCI optical digits, 8x8). Each is paired with a
waveform of the same digit word from the small source-filter synthesiser below: a pulse train and
white noise (the source) pass through formants and noise bands that move in time (the filter).
Pitch, tempo, vocal tract length, loudness, onset, articulation and voice quality differ from
example to example.

The speech is a stand-in that keeps tests and first runs offline; it is no benchmark of speech
recognition. The image and the voice of an example share the class and nothing else. `load_digits`
does not say who wrote which digit, so writers are shared between the splits.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from fusion_jax.errors import FusionError
from fusion_jax.sources import ArraySource

_SAMPLE_RATE = 8000
_NUM_SAMPLES = 4000
_SPLITS = ("train", "validation", "test")
_MODALITIES = ("audio", "image")
_SEED = 20_240_601  # changing it changes every waveform and every split

# The filter is updated every 10 ms. A block holds one Hann window of two hops, then two hops of
# zeros for the ringing of the resonances, so that the circular convolution hardly wraps around.
_HOP = 80
_BLOCK = 4 * _HOP
_NUM_FRAMES = _NUM_SAMPLES // _HOP + 1
_FRAME_SECONDS = np.arange(_NUM_FRAMES) * _HOP / _SAMPLE_RATE
_BIN_HZ = np.fft.rfftfreq(_BLOCK, 1 / _SAMPLE_RATE)
_WINDOW = 0.5 - 0.5 * np.cos(np.pi * np.arange(2 * _HOP) / _HOP)
_SILENT_HOP = np.zeros(_HOP)
_HOP_FRACTION = np.arange(_HOP) / _HOP
_POWERS = (1j * _BIN_HZ) ** np.arange(3)[:, None]
_BANDWIDTH_HZ = np.array([[80.0], [110.0], [160.0], [250.0]])
_FOURTH_FORMANT_HZ = 3400.0


class _Phoneme(NamedTuple):
    """One steady stretch of a word; the glide to the next one comes from smoothing.

    Attributes:
        milliseconds: length at tempo 1.
        formants: F1, F2, F3 in Hz of an adult male.
        voice: gain of the voiced source, >= 0.
        noise: gain of the noise source, >= 0.
        band: centre and standard deviation in Hz of the noise band.
    """

    milliseconds: float
    formants: tuple[float, float, float]
    voice: float = 0.0
    noise: float = 0.0
    band: tuple[float, float] = (2500.0, 1000.0)


# Vowel formants: Peterson and Barney, "Control methods used in a study of the vowels", JASA 1952,
# averages of men. Diphthongs and most consonants: Klatt, "Software for a cascade/parallel formant
# synthesizer", JASA 1980. Ours: all gains, lengths and noise bands (their bands reach beyond our
# 4 kHz), "schwa", "closure", "k", and a low F1 in "n" in place of a nasal pole and zero.
_PHONEMES = {
    "iy": _Phoneme(140, (270, 2290, 3010), voice=1.0),
    "ih": _Phoneme(70, (390, 1990, 2550), voice=1.0),
    "eh": _Phoneme(80, (530, 1840, 2480), voice=1.0),
    "ah": _Phoneme(120, (640, 1190, 2390), voice=1.0),
    "ao": _Phoneme(130, (570, 840, 2410), voice=1.0),
    "uw": _Phoneme(200, (300, 870, 2240), voice=1.0),
    "schwa": _Phoneme(50, (500, 1400, 2400), voice=0.8),
    "ey_from": _Phoneme(90, (480, 1720, 2520), voice=1.0),
    "ey_to": _Phoneme(90, (330, 2020, 2600), voice=0.9),
    "ay_from": _Phoneme(100, (660, 1200, 2550), voice=1.0),
    "ay_to": _Phoneme(80, (400, 1880, 2500), voice=0.9),
    "ow_from": _Phoneme(80, (540, 1100, 2300), voice=1.0),
    "ow_to": _Phoneme(80, (450, 900, 2300), voice=0.8),
    "w": _Phoneme(70, (290, 610, 2150), voice=0.7),
    "r": _Phoneme(60, (310, 1060, 1380), voice=0.7),
    "n": _Phoneme(80, (280, 1340, 2470), voice=0.5),
    "v": _Phoneme(50, (220, 1100, 2080), voice=0.4, noise=0.15, band=(2600, 1500)),
    "z": _Phoneme(70, (240, 1390, 2530), voice=0.3, noise=1.0, band=(3600, 450)),
    "s": _Phoneme(90, (320, 1390, 2530), noise=1.6, band=(3600, 450)),
    "f": _Phoneme(80, (340, 1100, 2080), noise=0.35, band=(2600, 1500)),
    "th": _Phoneme(70, (320, 1290, 2540), noise=0.30, band=(3000, 1200)),
    "closure": _Phoneme(50, (350, 1700, 2500)),
    "t": _Phoneme(30, (400, 1600, 2600), noise=1.4, band=(3200, 700)),
    "k": _Phoneme(25, (350, 1800, 2200), noise=1.4, band=(1900, 350)),
}
_WORDS = (
    ("z", "ih", "r", "ow_from", "ow_to"),
    ("w", "ah", "n"),
    ("t", "uw"),
    ("th", "r", "iy"),
    ("f", "ao", "r"),
    ("f", "ay_from", "ay_to", "v"),
    ("s", "ih", "closure", "k", "s"),
    ("s", "eh", "v", "schwa", "n"),
    ("ey_from", "ey_to", "closure", "t"),
    ("n", "ay_from", "ay_to", "n"),
)
_NUM_ERRORS = 5 * max(len(word) for word in _WORDS)


class _Tracks(NamedTuple):
    """What the filters of an utterance do over time.

    Attributes:
        formants: Float[frames, 3], Hz.
        band: Float[frames, 2], centre and standard deviation of the noise band, Hz.
        gains: Float[frames, 2], of the voiced and of the noise source.
    """

    formants: np.ndarray
    band: np.ndarray
    gains: np.ndarray


@dataclasses.dataclass(frozen=True)
class Voice:
    """How one utterance is spoken.

    Attributes:
        pitch: Hz at the start, in [85, 255].
        glide: natural logarithm of the pitch at the end of the clip over the pitch at its start.
        stretch: factor on all durations; 1 is a word of about 0.3 s.
        formant_scale: factor on all formants, in [0.85, 1.2]; above 1 is a shorter vocal tract.
        tilt: slope of the voiced source above 400 Hz, in units of -6 dB per octave.
        breath: amplitude of the breath noise over that of the pulses, in [0, 1].
        looseness: relative half-width of the random error of each formant target; durations err
            twice, the loudness of phonemes four times and the pitch a fifth as much.
        onset: where the word starts, as a fraction of the time it leaves free, in [0, 1].
        level: root mean square of the clip over full scale, before the background.
        background: root mean square of the background noise over that of the speech.
    """

    pitch: float = 120.0
    glide: float = -0.1
    stretch: float = 1.0
    formant_scale: float = 1.0
    tilt: float = 1.0
    breath: float = 0.05
    looseness: float = 0.0
    onset: float = 0.5
    level: float = 0.05
    background: float = 0.001


# Ranges are geometric where both ends are positive, so that a factor up is as likely as one down.
_VOICE_RANGES = {
    "pitch": (85.0, 255.0),
    "glide": (-0.3, 0.1),
    "stretch": (0.65, 1.4),
    "formant_scale": (0.85, 1.2),
    "tilt": (0.5, 1.8),
    "breath": (0.03, 0.4),
    "looseness": (0.06, 0.2),
    "onset": (0.0, 1.0),
    "level": (0.015, 0.1),
    "background": (0.02, 0.2),
}


def draw_voice(example_id: int) -> Voice:
    """The voice of an example, a function of its id alone.

    Args:
        example_id: >= 0.
    """
    ranges = _VOICE_RANGES.items()
    draws = _uniform(example_id, purpose=0, count=len(ranges))
    return Voice(
        **{
            name: float(low * (high / low) ** u if low > 0 else low + (high - low) * u)
            for (name, (low, high)), u in zip(ranges, draws, strict=True)
        }
    )


def speak(digit: int, *, voice: Voice, example_id: int) -> np.ndarray:
    """Synthesise one spoken digit.

    Args:
        digit: 0 to 9.
        voice: how it is spoken.
        example_id: >= 0, keys the noise and the random errors that `voice.looseness` scales.

    Returns:
        Int16[4000], 0.5 s at 8 kHz, never clipped.

    Example:
        >>> speak(7, voice=Voice(pitch=200.0), example_id=0).shape
        (4000,)
    """
    counts = (_NUM_ERRORS, _NUM_FRAMES, _NUM_SAMPLES)
    draws = 2 * _uniform(example_id, purpose=1, count=sum(counts)) - 1
    errors, flutter, noise = np.split(draws, np.cumsum(counts[:-1]))
    breath = np.sqrt(3) * noise  # unit power
    tracks = _articulation(digit, voice=voice, errors=errors)
    spoken = tracks.gains.any(axis=1)  # the silent frames need no filter, which saves a third
    tracks = _Tracks(*(track[spoken] for track in tracks))
    voiced = _pulses(voice, flutter=flutter) + voice.breath * breath
    spectrum = _voiced_filter(tracks, voice=voice) * np.fft.rfft(_windows(voiced)[spoken], n=_BLOCK)
    spectrum += _noise_filter(tracks) * np.fft.rfft(_windows(breath)[spoken], n=_BLOCK)
    blocks = np.zeros((_NUM_FRAMES, _BLOCK))
    blocks[spoken] = np.fft.irfft(spectrum, n=_BLOCK)
    speech = _overlap_add(blocks)
    speech *= voice.level / np.sqrt(np.mean(speech**2))
    # Noise played backwards is as good as noise of its own, and costs no draws.
    background = breath[::-1]
    wave = speech + voice.level * voice.background * background
    # A peaky voice is turned down as a whole: clipping would add a cue that is not speech.
    wave *= min(1.0, 0.95 / np.abs(wave).max())
    return np.round(32767 * wave).astype(np.int16)


def _uniform(example_id: int, *, purpose: int, count: int) -> np.ndarray:
    """Float[count] in [0, 1), from a stream of its own for each example and purpose.

    NumPy promises the raw bits of a bit generator for ever, the methods of `Generator` only within
    a version; the data set must not change with an upgrade.
    """
    bits = np.random.Philox(key=[_SEED + purpose, example_id]).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


@functools.cache
def _word(digit: int) -> tuple[np.ndarray, ...]:
    """Milliseconds [P], formants [P, 3], gains [P, 2] and bands [P, 2] of a word."""
    phonemes = [_PHONEMES[name] for name in _WORDS[digit]]
    return (
        np.array([phoneme.milliseconds for phoneme in phonemes]),
        np.array([phoneme.formants for phoneme in phonemes]),
        np.array([(phoneme.voice, phoneme.noise) for phoneme in phonemes]),
        np.array([phoneme.band for phoneme in phonemes]),
    )


def _articulation(digit: int, *, voice: Voice, errors: np.ndarray) -> _Tracks:
    """Control tracks of a word.

    Args:
        digit: 0 to 9.
        voice: how it is spoken.
        errors: Float[5 * most phonemes], in [-1, 1), for three formants, length and loudness.
    """
    milliseconds, formants, gains, bands = _word(digit)
    errors = voice.looseness * errors[: 5 * len(gains)].reshape(-1, 5)
    seconds = voice.stretch * milliseconds / 1000 * (1 + 2 * errors[:, 3])
    free = _NUM_SAMPLES / _SAMPLE_RATE - 0.02 - seconds.sum()
    seconds *= min(1.0, 1 + free / seconds.sum())  # a very slow word is hurried to fit the clip
    edges = 0.01 + voice.onset * max(0.0, free) + np.concatenate([[0.0], np.cumsum(seconds)])
    formants = formants * voice.formant_scale * (1 + errors[:, :3])
    # The mouth takes its first shape before the word and keeps its last; only the gains fall to 0.
    shapes = np.concatenate([[-np.inf], edges[1:-1], [np.inf]])
    return _Tracks(
        formants=_glide(formants, edges=shapes, smoothing=0.06),
        band=_glide(bands, edges=shapes, smoothing=0.01),
        gains=_glide(gains * np.exp(4 * errors[:, 4:]), edges=edges, smoothing=0.02),
    )


def _glide(values: np.ndarray, *, edges: np.ndarray, smoothing: float) -> np.ndarray:
    """Moving average of a staircase at the frame times.

    Args:
        values: Float[P, C], the steps; 0 outside of the edges.
        edges: Float[P + 1], seconds.
        smoothing: width of the average, seconds.

    Returns:
        Float[frames, C].
    """
    # The share of the averaging window that lies after each edge, then within each step.
    after = np.clip((_FRAME_SECONDS[:, None] - edges) / smoothing + 0.5, 0.0, 1.0)
    return (after[:, :-1] - after[:, 1:]) @ values


def _pulses(voice: Voice, *, flutter: np.ndarray) -> np.ndarray:
    """Band-limited pulse train with a gliding, unsteady pitch: Float[samples], unit power.

    The sum of the N harmonics cos(2 k x), k = 1..N, is (sin((2 N + 1) x) / sin(x) - 1) / 2.

    Args:
        voice: how the word is spoken.
        flutter: Float[frames], in [-1, 1): relative errors of the pitch over `0.2 * looseness`.
    """
    glide = 2 * voice.glide * _FRAME_SECONDS + 0.2 * voice.looseness * flutter
    pitch = voice.pitch * np.exp(glide)
    # Linear between frames, as np.interp would have it at several times the cost.
    pitch = (pitch[:-1, None] + np.diff(pitch)[:, None] * _HOP_FRACTION).reshape(-1)
    num_harmonics = int(0.49 * _SAMPLE_RATE / pitch.max())
    half_phase = np.cumsum(pitch) * (np.pi / _SAMPLE_RATE)
    sine = np.sin(half_phase)
    at_pulse = np.abs(sine) < 1e-6  # 0 / 0, and rounding noise near it
    ratio = np.sin((2 * num_harmonics + 1) * half_phase) / np.where(at_pulse, 1.0, sine)
    ratio[at_pulse] = 2 * num_harmonics + 1
    return (ratio - 1) / np.sqrt(2 * num_harmonics)


def _voiced_filter(tracks: _Tracks, *, voice: Voice) -> np.ndarray:
    """Response of the glottis and of four formants in cascade: Complex[frames, bins].

    A formant at F with bandwidth B responds by 1 / (1 + (B / F^2) i f + (1 / F^2) (i f)^2).
    """
    slope = (1 + (_BIN_HZ / 400) ** 2) ** (-voice.tilt / 2) * _BIN_HZ / (_BIN_HZ + 80)
    fourth = np.full(len(tracks.formants), _FOURTH_FORMANT_HZ * voice.formant_scale)
    formants = np.vstack([tracks.formants.T, fourth])
    damping = _BANDWIDTH_HZ / formants**2
    quadratics = np.stack([np.ones_like(formants), damping, formants**-2], axis=-1) @ _POWERS
    return tracks.gains[:, :1] * slope / quadratics.prod(axis=0)


def _noise_filter(tracks: _Tracks) -> np.ndarray:
    """Response of the fricatives and bursts: Float[frames, bins], a Gaussian band."""
    distance = (_BIN_HZ - tracks.band[:, :1]) / tracks.band[:, 1:]
    return tracks.gains[:, 1:] * np.exp(-0.5 * distance**2)


def _windows(wave: np.ndarray) -> np.ndarray:
    """Hann windows around the frames: Float[samples] -> Float[frames, 2 * hop]."""
    hops = np.concatenate([_SILENT_HOP, wave, _SILENT_HOP]).reshape(-1, _HOP)
    return np.concatenate([hops[:-1], hops[1:]], axis=1) * _WINDOW


def _overlap_add(blocks: np.ndarray) -> np.ndarray:
    """Sum blocks that start one hop apart: Float[frames, block] -> Float[samples]."""
    parts = blocks.reshape(_NUM_FRAMES, _BLOCK // _HOP, _HOP)
    total = np.zeros((_NUM_FRAMES + _BLOCK // _HOP - 1, _HOP))
    for i in range(_BLOCK // _HOP):
        total[i : i + _NUM_FRAMES] += parts[:, i]
    return total.reshape(-1)[_HOP : _HOP + _NUM_SAMPLES]


@functools.cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    """All images, UInt8[N, 8, 8, 1], and digits, Int[N]; read-only, for all callers share them."""
    pixels, digits = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    images.setflags(write=False)
    digits.setflags(write=False)
    return images, digits


@functools.cache
def _waveforms() -> np.ndarray:
    """All waveforms, Int16[N, samples]; read-only, for all callers share them."""
    digits = _images()[1]
    waves = np.stack(
        [speak(digit, voice=draw_voice(i), example_id=i) for i, digit in enumerate(digits)]
    )
    waves.setflags(write=False)
    return waves


def _split_ids(split: str) -> np.ndarray:
    """Example ids of a split in ascending order: Int[n].

    Shuffled ids are sorted by class and dealt evenly along that order: 300 to validation, 300 to
    test, 1197 to training. An even deal gives each class its share to within one example.
    """
    digits = _images()[1]
    shuffle = _uniform(0, purpose=2, count=len(digits))
    order = np.lexsort([shuffle, digits])
    hand = np.arange(len(digits)) * 300 % len(digits) // 300
    dealt = {"validation": hand == 0, "test": hand == 1, "train": hand >= 2}
    return np.sort(order[dealt[split]])


@dataclasses.dataclass
class AVDigits:
    """Handwritten digits with synthetic spoken digits: 10 classes, two modalities.

    "image": UInt8[8, 8, 1], 0 to 255. "audio": Int16[4000], 0.5 s at 8 kHz. The example id is the
    index in `load_digits`.

    Example:
        >>> source = AVDigits().source("validation")
        >>> len(source), source.spec.names
        (300, ('audio', 'image'))

    Attributes:
        modalities: subset of ("audio", "image"); one of them alone trains a unimodal model.
    """

    name: ClassVar[str] = "av_digits"
    SAMPLE_RATE: ClassVar[int] = _SAMPLE_RATE
    NUM_CLASSES: ClassVar[int] = len(_WORDS)

    modalities: tuple[str, ...] = _MODALITIES

    def source(self, split: str) -> ArraySource:
        """Source of one split.

        Args:
            split: "train" (1197 examples), "validation" (300) or "test" (300).

        Raises:
            FusionError: where the split or a modality is unknown, or no modality is chosen.
        """
        if split not in _SPLITS:
            raise FusionError(f"{self.name} has no split {split!r}: choose one of {_SPLITS}")
        if isinstance(self.modalities, str) or not set(self.modalities) <= set(_MODALITIES):
            raise FusionError(
                f"{self.name} has no modalities {self.modalities!r}: choose some of {_MODALITIES}"
            )
        if not self.modalities:
            raise FusionError(f"{self.name} without a modality: choose some of {_MODALITIES}")
        ids = _split_ids(split)
        images, digits = _images()
        # Synthesis takes seconds, so a model of images alone does not pay for it.
        inputs = {"image": images[ids]} if "image" in self.modalities else {}
        if "audio" in self.modalities:
            inputs["audio"] = _waveforms()[ids]
        return ArraySource(
            inputs,
            digits[ids],
            num_classes=self.NUM_CLASSES,
            example_id=ids,
        )
