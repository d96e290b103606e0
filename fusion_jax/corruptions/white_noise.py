"""White noise on a waveform at a stated signal-to-noise ratio."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.strength import TabledStrength, to_dtype_of


@dataclasses.dataclass
class WhiteNoise(TabledStrength):
    """x + r RMS(x) n, n ~ N(0, 1) for each sample; RMS over the samples that are not 0.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | r, noise amplitude over signal amplitude | 0 | 0.1 | 0.316 | 0.562 | 1 | 1.78 |
    | signal-to-noise ratio, dB | none | 20 | 10 | 5 | 0 | -5 |

    The noise covers the padding too, as a microphone would. Integer input is rounded and saturates.

    Attributes:
        strengths: r at equally spaced severities from 0 to 1; between them r is interpolated
            linearly.
        reference: r that counts as noise level 1 (here 20 dB, where log-mel features begin to
            suffer).
    """

    unit: ClassVar[str] = "SNR"
    strengths: tuple[float, ...] = (0.0, 0.1, 0.316, 0.562, 1.0, 1.78)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        ratio = float(self.strength(severity))
        return "no noise" if ratio == 0 else f"SNR {round(-20 * np.log10(ratio))} dB"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, " t"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, " t"]:
        """Corrupt one waveform x [T]; dtype and shape stay."""
        signal = x.astype(jnp.float32)
        active = jnp.maximum(jnp.sum(x != 0), 1)
        rms = jnp.sqrt(jnp.sum(signal**2) / active)
        noise = jax.random.normal(key, x.shape, jnp.float32)
        return to_dtype_of(signal + self.strength(severity) * rms * noise, x)

    @classmethod
    def example(cls) -> tuple["WhiteNoise", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
