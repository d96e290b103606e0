"""Too much light: the value of each pixel is raised, its hue and saturation stay."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class Brightness(TabledStrength):
    """V + c, at most 1, with V the largest channel of a pixel; all channels grow by one factor.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | c, share of the range of values | 0 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5 |

    That is the published change of V in hue, saturation and value, for any number of channels: with
    one channel c is added. Black becomes grey. Nothing is drawn.

    Attributes:
        strengths: c in [0, 1], at equally spaced severities from 0 to 1.
        reference: c that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019.
    """

    unit: ClassVar[str] = "share of range"
    deterministic: ClassVar[bool] = True
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % of the range brighter"

    def __call__(
        self,
        key: Key[Array, ""],
        x: UInt8[Array, "*frames h w c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> UInt8[Array, "*frames h w c"]:
        """Corrupt one image or video x [..., H, W, C]; dtype and shape stay.

        Raises:
            FusionError: for anything but an 8-bit image.
        """

        def raised(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            value = frames.max(axis=-1, keepdims=True)
            # Black has no hue: it counts as grey.
            direction = jnp.where(value > 0, frames / jnp.where(value > 0, value, 1), 1)
            return direction * jnp.minimum(value + self.strength(severity), 1)

        return on_image(x, raised, name="brightness")

    @classmethod
    def example(cls) -> tuple["Brightness", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"
