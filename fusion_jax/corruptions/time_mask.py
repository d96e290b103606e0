"""A mask over time on a waveform: one stretch of it is silent."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.over_time import active_length, inside, on_waveform, random_stretch
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class TimeMask(TabledStrength):
    """One stretch, a stated share of the sound's length, is set to 0, abruptly.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | share of the length that is silent | 0 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5 |

    Zeros at the end are padding: length and place of the mask refer to the sound up to its last
    sample that is not 0. The place is uniform; start and end are rounded to whole samples. With one
    key, the mask at a severity lies inside that at every higher one.

    Attributes:
        strengths: shares in [0, 1], at equally spaced severities from 0 to 1.
        reference: share that counts as noise level 1.

    References:
        Park et al., "SpecAugment", Interspeech 2019, section 2, masks the frames of a spectrogram;
        here it is the waveform, as in `TimeMask` of audiomentations, which draws the share too (up
        to 0.2) and fades in and out over 5 ms unless told otherwise. The table is our own.
    """

    unit: ClassVar[str] = "share of length"
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % of the length silent"

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
            length = active_length(signal).astype(jnp.float32)
            start, end = random_stretch(key, self.strength(severity), length)
            return jnp.where(inside(len(signal), start, end), 0, signal)

        return on_waveform(x, change, name="a time mask")

    @classmethod
    def example(cls) -> tuple["TimeMask", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (1600,), "int16"
