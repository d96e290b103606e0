"""A mask over frequency on a waveform: one band of it is silent."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.over_time import on_waveform, random_stretch, without
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class FrequencyMask(TabledStrength):
    """One band, a stated share of the mel scale from 0 Hz to half the sample rate, is taken away.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | share of the mel scale that is silent | 0 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5 |

    The whole waveform is transformed by FFT, the coefficients of the band are set to 0 (those at
    its edges in part, so that the band has its exact width), and transformed back; the mel scale is
    2595 log10(1 + f / 700 Hz). The place is uniform on that scale. With one key, the band at a
    severity lies inside that at every higher one. The edges are sharp, so that a band rings for
    about the inverse of its width; what rings over the end comes back at the start.

    Attributes:
        sample_rate: samples per second, Hz.
        strengths: shares in [0, 1], at equally spaced severities from 0 to 1.
        reference: share that counts as noise level 1.

    References:
        Park et al., "SpecAugment", Interspeech 2019, section 2, masks up to F of 80 mel channels
        (F = 27, or 0.34, in its policy LD); here it is the waveform, and one band of a stated
        width. The table is our own.
    """

    unit: ClassVar[str] = "share of mel scale"
    sample_rate: int = 16_000
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % of the mel scale silent"

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
            return without(signal, self._mask(key, len(signal), self.strength(severity)))

        return on_waveform(x, change, name="a frequency mask")

    def _mask(
        self, key: Key[Array, ""], length: int, share: Float[Array, ""]
    ) -> Float[Array, " f"]:
        """[T // 2 + 1] in [0, 1]: how much of each coefficient's interval lies in the band."""
        top = self.sample_rate / 2
        start, end = random_stretch(key, share, 2595 * np.log10(1 + top / 700))
        low, high = (700 * (10 ** (mel / 2595) - 1) for mel in (start, end))
        spacing = self.sample_rate / length
        centres = np.arange(length // 2 + 1) * spacing
        lower = np.maximum(centres - spacing / 2, 0).astype(np.float32)
        upper = np.minimum(centres + spacing / 2, top).astype(np.float32)
        overlap = jnp.minimum(upper, high) - jnp.maximum(lower, low)
        return jnp.clip(overlap / (upper - lower), 0, 1)

    @classmethod
    def example(cls) -> tuple["FrequencyMask", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
