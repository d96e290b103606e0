"""Quantisation of a waveform: fewer bits for each sample."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.over_time import on_waveform
from fusion_jax.blocks.strength import TabledStrength

BITS = 16


@dataclasses.dataclass
class Quantisation(TabledStrength):
    """round(x / q) q, with steps q = full scale / 2^(bits - 1), bits = 16 less those that are lost.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | bits lost | 0 | 4 | 6 | 8 | 10 | 12 |
    | bits kept of 16 | 16 | 12 | 10 | 8 | 6 | 4 |

    Bits need not be whole. There is no dither, 0 stays 0, and half steps go to the even one. What
    is quieter than half a step falls silent: a quiet recording at few bits may vanish, for the
    steps are those of the converter, not of the clip. At severity 0 nothing is rounded, floats
    neither. Nothing is drawn.

    Attributes:
        full_scale: amplitude that the bits span, in units of x; 0 stands for 1 with floats and for
            32768 with 16-bit input.
        strengths: bits lost, at equally spaced severities from 0 to 1.
        reference: bits lost that count as noise level 1.

    References:
        `BitCrush` of audiomentations, with 5 to 10 bits and steps of full scale over
        2^(bits - 1) + 1, smaller than ours by 11 % at 4 bits and by 0.05 % at 12. The table is our
        own.
    """

    unit: ClassVar[str] = "bits lost"
    deterministic: ClassVar[bool] = True
    full_scale: float = 0.0
    strengths: tuple[float, ...] = (0.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    reference: float = 4.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{BITS - float(self.strength(severity)):.3g} bits"

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
        own = 32_768.0 if x.dtype == jnp.int16 else 1.0

        def change(signal: Float[Array, " t"]) -> Float[Array, " t"]:
            lost = self.strength(severity)
            step = (self.full_scale or own) * jnp.exp2(lost - (BITS - 1))
            return jnp.where(lost > 0, jnp.round(signal / step) * step, signal)

        return on_waveform(x, change, name="quantisation")

    @classmethod
    def example(cls) -> tuple["Quantisation", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
