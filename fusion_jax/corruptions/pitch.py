"""Pitch of a waveform: higher or lower at kept duration."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int, Key, Shaped
from scipy.fft import next_fast_len

from fusion_jax.blocks.over_time import on_waveform
from fusion_jax.blocks.resample import multiples, read_between
from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.rng import stream

# Windows overlap by three quarters: the least at which the squared Hann window sums to a constant
# with room to spare for the phases.
OVERLAP = 4


@dataclasses.dataclass
class Pitch(TabledStrength):
    """All frequencies times r = 2^(s/12) or 2^(-s/12), by a draw; duration and tempo stay.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, semitones up or down | 0 | 0.5 | 1 | 2 | 3 | 4 |
    | r, up | 1 | 1.029 | 1.059 | 1.122 | 1.189 | 1.26 |

    A phase vocoder stretches the sound by r, then it is read r times as fast by linear
    interpolation. The vocoder takes windows of the sound at spacing hop / r and lays them down at
    spacing hop; each frequency's phase goes on by what it gains in the sound over one hop, measured
    from a second window one hop earlier, so that no phase is unwrapped. Around each peak of the
    spectrum phases are locked: they turn with the peak's. The level that the vocoder loses (up to
    1 dB on the voices of tests/golden/make_sound_corruptions.py) is made up for. The direction is
    drawn, both being equally likely, and so is the start of the windows, within one hop; with one
    key both are the same at every severity.

    Attributes:
        sample_rate: samples per second, Hz.
        window: of the vocoder, seconds, > 0; hop is a quarter of it.
        strengths: semitones >= 0, at equally spaced severities from 0 to 1.
        reference: semitones that count as noise level 1.

    References:
        Dolson, "The phase vocoder: a tutorial", Computer Music Journal 10(4), 1986. Laroche &
        Dolson, "Improved phase vocoder time-scale modification of audio", IEEE Transactions on
        Speech and Audio Processing 7(3), 1999, "identity phase locking"; here a peak's phase is the
        sum of the gains of its own frequency, where theirs follows the peak from frame to frame.
        `PitchShift` of audiomentations draws up to 4 semitones: the end of our table.
    """

    unit: ClassVar[str] = "semitones"
    sample_rate: int = 16_000
    window: float = 0.064
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
    reference: float = 0.5

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{float(self.strength(severity)):.3g} semitones up or down"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, " t"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, " t"]:
        """Corrupt one waveform x [T]; dtype and shape stay.

        Raises:
            FusionError: for what is no waveform.
        """

        def change(signal: Float[Array, " t"]) -> Float[Array, " t"]:
            semitones = self.strength(severity)
            up = jax.random.bernoulli(stream(key, "direction"))
            rate = 2 ** (jnp.where(up, semitones, -semitones) / 12)
            hop = max(next_fast_len(round(self.window * self.sample_rate / OVERLAP)), 1)
            first = jax.random.randint(stream(key, "windows"), (), 0, hop)
            stretched = self._stretched(signal, rate, hop=hop, first=first)
            whole, part = multiples(jnp.arange(len(signal)), rate)
            shifted = read_between(stretched, first + whole, part)
            energy = jnp.sum(signal**2) / jnp.maximum(jnp.sum(shifted**2), 1e-30)
            # The vocoder at rate 1 gives the sound back up to rounding only.
            return jnp.where(semitones > 0, jnp.sqrt(energy) * shifted, signal)

        return on_waveform(x, change, name="a change of pitch")

    def _stretched(
        self,
        signal: Float[Array, " t"],
        rate: Float[Array, ""],
        *,
        hop: int,
        first: Int[Array, ""],
    ) -> Float[Array, " s"]:
        """The sound at its pitch, `rate` times as long, from `first` samples before it on."""
        size = OVERLAP * hop
        greatest = 2 ** (max(self.strengths) / 12)
        frames = math.ceil(len(signal) * greatest / hop) + OVERLAP
        numbers = np.arange(frames, dtype=np.float32)
        centres = jnp.round((numbers * hop - first) / rate).astype(jnp.int32)
        # Silence on both sides; slices beyond its end are held back, and still lie in silence.
        before = math.ceil(hop * (1 + greatest)) + size // 2
        padded = jnp.pad(signal, (before, 2 * size))
        now = self._spectra(padded, centres + (before - size // 2), size)
        earlier = self._spectra(padded, centres + (before - size // 2 - hop), size)
        phase = jnp.angle(now)
        gain = (phase - jnp.angle(earlier)).at[0].set(phase[0])
        turn = jnp.cumsum(gain, axis=0) - phase
        magnitude = jnp.abs(now)
        turned = phase + jnp.take_along_axis(turn, _nearest_peaks(magnitude), axis=1)
        spectra = jax.lax.complex(magnitude * jnp.cos(turned), magnitude * jnp.sin(turned))
        # `istft` expects spectra over the sum of the window.
        scaled = spectra.T / (size / 2)
        return jax.scipy.signal.istft(scaled, nperseg=size, noverlap=size - hop)[1]

    def _spectra(
        self, padded: Float[Array, " n"], starts: Int[Array, " k"], size: int
    ) -> Complex[Array, "k f"]:
        """[K, F] spectra of windows of `size` samples from each start on."""
        window = np.sin(np.pi * np.arange(size) / size).astype(np.float32)[None] ** 2
        cut = jax.vmap(lambda start: jax.lax.dynamic_slice(padded, (start,), (size,)))
        return jnp.fft.rfft(cut(starts) * window, axis=1)

    @classmethod
    def example(cls) -> tuple["Pitch", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        # A fraction of a semitone turns white noise into something as far as it can be.
        strengths = (0.0, 0.02, 0.04, 0.08, 0.16, 0.32)
        return cls(window=0.064, strengths=strengths), (160,), "int16"


def _nearest_peaks(magnitude: Float[Array, "k f"]) -> Int[Array, "k f"]:
    """For each frequency of each frame, the nearest that no neighbour within two exceeds."""
    around = jax.lax.reduce_window(magnitude, -jnp.inf, jax.lax.max, (1, 5), (1, 1), "SAME")
    number = jnp.broadcast_to(jnp.arange(magnitude.shape[1]), magnitude.shape)
    far = 2 * magnitude.shape[1]
    below = jax.lax.cummax(jnp.where(magnitude >= around, number, -far), axis=1)
    above = jax.lax.cummin(jnp.where(magnitude >= around, number, far), axis=1, reverse=True)
    return jnp.where(number - below <= above - number, below, above)
