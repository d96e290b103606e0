"""Clipping of a waveform: its loudest samples are cut to one level."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.over_time import on_waveform
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class Clipping(TabledStrength):
    """clip(x, -c, c), with c such that a stated fraction of the samples is louder than c.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | fraction of samples that is clipped | 0 | 0.05 | 0.1 | 0.2 | 0.3 | 0.4 |

    The fraction is of the samples that are not 0, rounded down to whole samples. One level serves
    both signs, as in an amplifier; the level is not made up for. Nothing is drawn.

    Attributes:
        strengths: fractions in [0, 1), at equally spaced severities from 0 to 1.
        reference: fraction that counts as noise level 1.

    References:
        `ClippingDistortion` of audiomentations clips a fraction of 0 to 0.4: the end of our table.
        It takes half of it from each side by two percentiles, so that of an asymmetric waveform
        both sides lose alike, and counts samples that are 0 too.
    """

    unit: ClassVar[str] = "fraction"
    deterministic: ClassVar[bool] = True
    strengths: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
    reference: float = 0.05

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % clipped"

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
            loudness = jnp.sort(jnp.abs(signal))
            clipped = jnp.floor(self.strength(severity) * jnp.sum(signal != 0))
            limit = loudness[jnp.maximum(len(signal) - 1 - clipped.astype(jnp.int32), 0)]
            return jnp.clip(signal, -limit, limit)

        return on_waveform(x, change, name="clipping")

    @classmethod
    def example(cls) -> tuple["Clipping", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
