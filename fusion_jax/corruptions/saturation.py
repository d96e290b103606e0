"""Wrong saturation: colours too strong, or faded."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength, strength_at
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class Saturation(TabledStrength):
    """S times 2^s, plus an offset, at most 1; with `fade`, S times 2^-s. Hue and value stay.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, octaves | 0 | 1 | 1.74 | 2.32 | 3.32 | 4.32 |
    | stronger: factor | 1 | 2 | 3.3 | 5 | 10 | 20 |
    | stronger: offset | 0 | 0 | 0 | 0.1 | 0.15 | 0.2 |
    | `fade`: factor | 1 | 0.5 | 0.3 | 0.2 | 0.1 | 0.05 |

    S is 1 less the smallest over the largest channel of a pixel, for any number of channels above
    one. Nothing is drawn.

    Different from the published form, whose five severities go in two directions (factors 0.3, 0.1,
    2, 5, 20), so that a curve over severity would pass through the identity: here one instance goes
    in one direction, and the published factors, ordered by their distance from 1, stand in the
    table of the direction they belong to; what stands opposite them is their reciprocal. Published
    severities 1 to 5 are `fade` at 0.4 and 0.8, then stronger at 0.2, 0.6 and 1.0. Grey pixels stay
    grey, where the published offset turns them reddish.

    Attributes:
        fade: whether colours fade in place of growing stronger.
        strengths: s in octaves, at equally spaced severities from 0 to 1.
        offsets: what is added to S of coloured pixels, at the same severities; unused by `fade`.
        reference: s that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, whose code has it among the extra corruptions.
    """

    unit: ClassVar[str] = "octaves"
    deterministic: ClassVar[bool] = True
    fade: bool = False
    strengths: tuple[float, ...] = (0.0, 1.0, 1.737, 2.322, 3.322, 4.322)
    offsets: tuple[float, ...] = (0.0, 0.0, 0.0, 0.1, 0.15, 0.2)
    reference: float = 1.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        octaves = float(self.strength(severity))
        offset = 0.0 if self.fade else float(strength_at(severity, self.offsets))
        factor = 2.0 ** (-octaves if self.fade else octaves)
        return f"saturation x {factor:.3g}" + (f" + {offset:.3g}" if offset else "")

    def __call__(
        self,
        key: Key[Array, ""],
        x: UInt8[Array, "*frames h w c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> UInt8[Array, "*frames h w c"]:
        """Corrupt one image or video x [..., H, W, C], C at least 2; dtype and shape stay.

        Raises:
            FusionError: for anything but an 8-bit image, and for one of a single channel.
        """
        if x.ndim and x.shape[-1] == 1:
            raise FusionError(
                f"saturation met a grey input of shape {x.shape}, which has none to change: "
                "give colour images [..., H, W, C], or choose another corruption"
            )
        octaves = self.strength(severity)
        factor = jnp.exp2(-octaves if self.fade else octaves)
        offset = 0.0 if self.fade else strength_at(severity, self.offsets)

        def recoloured(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            value = frames.max(axis=-1, keepdims=True)
            spread = value - frames.min(axis=-1, keepdims=True)
            # S' / S with S = spread / value; grey pixels have no hue to strengthen.
            coloured = spread > 0
            of_spread = jnp.where(coloured, value / jnp.where(coloured, spread, 1), 1)
            ratio = jnp.where(coloured, jnp.minimum(factor + offset * of_spread, of_spread), 1)
            return value - ratio * (value - frames)

        return on_image(x, recoloured, name="saturation")

    @classmethod
    def example(cls) -> tuple["Saturation", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"
