"""Reverberation of a waveform: a random room with a stated reverberation time."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped
from scipy.fft import next_fast_len

from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.over_time import active_rms, on_waveform
from fusion_jax.blocks.strength import TabledStrength

# Sabine, for a source that radiates alike to all sides: reverberant over direct energy at a
# distance r is 16 pi r^2 / A, with the absorption A = 0.161 s/m V / RT60.
SABINE = 16 * np.pi / 0.161


@dataclasses.dataclass
class Reverberation(TabledStrength):
    """x + h * x, h a tail of normal noise that decays by 60 dB in RT60 seconds; level as before.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | RT60, s | 0 | 0.2 | 0.4 | 0.7 | 1.1 | 1.6 |
    | direct over reverberant energy, dB | all direct | -1.0 | -4.0 | -6.4 | -8.4 | -10.0 |

    h(t) = g n(t) 10^(-3 t / RT60) for t > 0, n ~ N(0, 1): Polack's model of a diffuse room. The
    gain g follows from the room by Sabine's law: reverberant over direct energy is
    16 pi distance^2 RT60 / (0.161 volume), so that a room that rings longer is louder too, and
    RT60 0 is no room at all. The result is scaled to the RMS of x, both over the samples where x is
    not 0: level tells nothing. The tail runs on into the padding and is cut at the end of x. With
    one key, n is the same at every severity. There are no early reflections, and all frequencies
    decay alike; in measured rooms, high ones decay faster.

    Attributes:
        sample_rate: samples per second, Hz.
        volume: of the room, cubic metres, > 0.
        distance: of the microphone from the source, metres, >= 0.
        strengths: RT60 in seconds, at equally spaced severities from 0 to 1.
        reference: RT60 that counts as noise level 1.

    References:
        Polack, "Playing billiards in the concert hall: the mathematical foundations of geometrical
        room acoustics", Applied Acoustics 38, 1993. Kuttruff, Room Acoustics, 6th edition, 2016,
        chapter 5 (Sabine's law, the distance of equal energies). The table is our own.
    """

    unit: ClassVar[str] = "RT60 s"
    sample_rate: int = 16_000
    volume: float = 200.0
    distance: float = 2.0
    strengths: tuple[float, ...] = (0.0, 0.2, 0.4, 0.7, 1.1, 1.6)
    reference: float = 0.2

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"RT60 {float(self.strength(severity)):.3g} s"

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
            seconds = self.strength(severity)
            size = next_fast_len(2 * len(signal) - 1, real=True)
            tail = jnp.fft.rfft(self._tail(key, len(signal), seconds), n=size)
            late = jnp.fft.irfft(jnp.fft.rfft(signal, n=size) * tail, n=size)[: len(signal)]
            wet = signal + late
            level = active_rms(jnp.where(signal != 0, wet, 0))
            scaled = wet * (active_rms(signal) / jnp.maximum(level, 1e-30))
            return jnp.where(seconds > 0, scaled, signal)

        return on_waveform(x, change, name="reverberation")

    def _tail(
        self, key: Key[Array, ""], length: int, seconds: Float[Array, ""]
    ) -> Float[Array, " t"]:
        """The impulse response [T] less its direct sound; its expected energy is Sabine's."""
        # No time at all would be a division by zero; at so short a time nothing is left anyway.
        decay = np.float32(3 * np.log(10)) / (jnp.maximum(seconds, 1e-4) * self.sample_rate)
        ratio = np.float32(SABINE * self.distance**2 / self.volume) * seconds
        # The energies exp(-2 decay t), t = 1, 2, ..., sum to 1 / (exp(2 decay) - 1).
        gain = jnp.sqrt(ratio * jnp.expm1(2 * decay))
        steps = np.arange(length, dtype=np.float32)
        tail = gain * normal_noise(key, (length,)) * jnp.exp(-decay * steps)
        return jnp.where(steps > 0, tail, 0)

    @classmethod
    def example(cls) -> tuple["Reverberation", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(sample_rate=400), (160,), "int16"
