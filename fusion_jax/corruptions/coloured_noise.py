"""Coloured noise on a waveform: a power spectrum that falls with frequency, at a stated ratio."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.strength import SignalToNoise, add_at_ratio
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class ColouredNoise(SignalToNoise):
    """x + r RMS(x) n, n of power spectrum 1/f^exponent; RMS over the samples that are not 0.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | r, noise amplitude over signal amplitude | 0 | 0.1 | 0.316 | 0.562 | 1 | 1.78 |
    | signal-to-noise ratio, dB | none | 20 | 10 | 5 | 0 | -5 |

    Each draw has mean 0 and is scaled to RMS 1, so that the ratio holds for every example: few low
    frequencies carry most of the power, and it would vary from draw to draw. The table is that of
    white noise. No recipe trains on it: it is for evaluation on noise of another kind than the
    one trained on.

    Attributes:
        strengths: as `SignalToNoise`.
        reference: as `SignalToNoise`.
        exponent: of the frequency, in [-2, 2]: 0 white, 1 pink, 2 brown, negative for noise that
            rises with frequency.

    References:
        Timmer & Koenig, "On generating power law noise", Astronomy and Astrophysics 300, 1995.
    """

    exponent: float = 1.0

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, " t"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, " t"]:
        """Corrupt one waveform x [T], T at least 2; dtype and shape stay.

        Raises:
            FusionError: for an input of another shape, or an exponent out of range.
        """
        if x.ndim != 1 or len(x) < 2:
            raise FusionError(
                f"coloured noise met an input of shape {x.shape}: give waveforms [T] of at least 2 "
                "samples"
            )
        if not -2 <= self.exponent <= 2:
            raise FusionError(
                f"the exponent of coloured noise is {self.exponent}: it must lie in [-2, 2]"
            )
        return add_at_ratio(x, self._noise(key, len(x)), self.strength(severity))

    def _noise(self, key: Key[Array, ""], length: int) -> Float[Array, " t"]:
        """Noise [T] of mean 0 and RMS 1: normal Fourier coefficients, weighted by frequency."""
        numbers = np.arange(1, length // 2 + 1, dtype=np.float32)
        amplitudes = numbers ** np.float32(-self.exponent / 2)
        parts = normal_noise(key, (2, len(numbers))) * amplitudes[None]
        spectrum = jnp.concatenate([jnp.zeros(1, jnp.complex64), jax.lax.complex(*parts)])
        noise = jnp.fft.irfft(spectrum, n=length)
        return noise / jnp.sqrt(jnp.mean(noise**2))

    @classmethod
    def example(cls) -> tuple["ColouredNoise", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
