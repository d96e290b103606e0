"""Too few pixels: an image is shrunk by averaging and blown up again."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class Pixelate(TabledStrength):
    """Each pixel becomes the mean of its cell; (1 - s) H by (1 - s) W cells share the image.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, share of the resolution that is lost | 0 | 0.4 | 0.5 | 0.6 | 0.7 | 0.75 |
    | side of a cell, pixels | 1 | 1.67 | 2 | 2.5 | 3.33 | 4 |

    As published for 224 pixels. The published number is relative to the image, and so it is here
    for every size: cells do not shrink with small images, whose pixels they could not be smaller
    than. Cell numbers are rounded down, at least 1; where a side is no multiple of them, cells have
    two sizes. Nothing is drawn.

    Attributes:
        strengths: s in [0, 1), at equally spaced severities from 0 to 1.
        reference: s that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019.
    """

    unit: ClassVar[str] = "resolution lost"
    deterministic: ClassVar[bool] = True
    strengths: tuple[float, ...] = (0.0, 0.4, 0.5, 0.6, 0.7, 0.75)
    reference: float = 0.5

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"cells of {1 / (1 - float(self.strength(severity))):.3g} pixels"

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
        kept = 1 - self.strength(severity)

        def averaged(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            down, across = (_means_of_cells(side, kept) for side in frames.shape[1:3])
            return jnp.einsum(
                "ih,nhwc,jw->nijc", down, frames, across, precision=jax.lax.Precision.HIGHEST
            )

        return on_image(x, averaged, name="pixelate")

    @classmethod
    def example(cls) -> tuple["Pixelate", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"


def _means_of_cells(side: int, kept: Float[Array, ""]) -> Float[Array, "i h"]:
    """The matrix that replaces each of `side` pixels by the mean of its cell."""
    # The margin undoes rounding, where a share of the side is a whole number.
    cells = jnp.maximum(jnp.floor(kept * side + 1e-3), 1).astype(jnp.int32)
    # Whole numbers: a pixel whose centre lies on an edge belongs to the same cell everywhere.
    cell = ((2 * jnp.arange(side) + 1) * cells) // (2 * side)
    together = (cell[:, None] == cell[None]).astype(jnp.float32)
    return together / together.sum(axis=1, keepdims=True)
