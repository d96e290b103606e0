"""Occlusion: a grey patch hides a part of the image."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class Occlusion(TabledStrength):
    """A patch of the image's own mean grey, at a random place that lies inside the image.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | share of the image that is hidden | 0 | 0.04 | 0.1 | 0.2 | 0.35 | 0.5 |

    The patch has the proportions of the image: a square in a square image. The share is met
    exactly: pixels that the edge of the patch crosses are mixed. The grey is the mean over all
    pixels, channels and frames. All frames of a video share the place. With one key, what is hidden
    at a severity stays hidden at every higher one. To hide a square of grey is published; these
    shares are our own.

    Attributes:
        strengths: shares in [0, 1], at equally spaced severities from 0 to 1.
        reference: share that counts as noise level 1.

    References:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
        arXiv:1311.2901, section 4.2. DeVries & Taylor, "Improved Regularization of Convolutional
        Neural Networks with Cutout", 2017, arXiv:1708.04552.
    """

    unit: ClassVar[str] = "share hidden"
    strengths: tuple[float, ...] = (0.0, 0.04, 0.1, 0.2, 0.35, 0.5)
    reference: float = 0.04

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % hidden"

    def __call__(
        self,
        key: Key[Array, ""],
        x: UInt8[Array, "*frames h w c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> UInt8[Array, "*frames h w c"]:
        """Corrupt one image or video x [..., H, W, C], 8-bit; dtype and shape stay.

        Raises:
            FusionError: for an input of another dtype, or with fewer than three axes.
        """
        side = jnp.sqrt(self.strength(severity))
        places = jax.random.uniform(key, (2,))

        def change(frames: Array) -> Array:
            rows, columns = (
                _hidden(size, side, place)
                for size, place in zip(frames.shape[1:3], places, strict=True)
            )
            hidden = (rows[:, None] * columns[None])[None, :, :, None]
            return frames + hidden * (jnp.mean(frames) - frames)

        return on_image(x, change, name="occlusion")

    @classmethod
    def example(cls) -> tuple["Occlusion", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"


def _hidden(size: int, side: Float[Array, ""], place: Float[Array, ""]) -> Float[Array, " size"]:
    """How much of each pixel of an axis is hidden, in [0, 1].

    Args:
        size: pixels of the axis.
        side: of the patch, as a share of the axis.
        place: in [0, 1]; 0 puts the patch at the start, 1 at the end.
    """
    start = place * (1 - side) * size
    pixel = np.arange(size, dtype=np.float32)
    return jnp.clip(jnp.minimum(pixel + 1, start + side * size) - jnp.maximum(pixel, start), 0, 1)
