"""Zoom blur: the mean of an image and of its magnified copies, as behind a lens that zooms."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength

NUM_ZOOMS = 13


@dataclasses.dataclass
class ZoomBlur(TabledStrength):
    """The mean of the image and of 13 copies of it, magnified about its centre by 1 to 1 + z.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | z, largest magnification less 1 | 0 | 0.11 | 0.15 | 0.2 | 0.24 | 0.3 |

    Published severities 1 to 5 are 0.2 to 1. A magnification does not depend on the size of the
    image. Between pixels the image is linear in each direction. Nothing is drawn: all frames and
    seeds get the same.

    Differences from the published form. That has 12, 16, 11, 13 and 11 copies at severities 1 to
    5, here there are always 13, evenly spaced. It also crops to whole pixels before it magnifies,
    so that its copies lie up to a pixel off the centre; here all share the centre. On
    synthetic pictures the mean absolute change differs from it by 2 % at most. Fractions of a level
    are rounded, not cut off.

    Attributes:
        strengths: largest magnification less 1, at equally spaced severities from 0 to 1.
        reference: the same that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, arXiv:1903.12261 (ImageNet-C).
    """

    unit: ClassVar[str] = "largest magnification less 1"
    deterministic: ClassVar[bool] = True
    strengths: tuple[float, ...] = (0.0, 0.11, 0.15, 0.2, 0.24, 0.3)
    reference: float = 0.11

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"magnified by up to {1 + float(self.strength(severity)):.3g}"

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
        zooms = 1 + self.strength(severity) * np.linspace(0, 1, NUM_ZOOMS, dtype=np.float32)

        def change(frames: Array) -> Array:
            rows, columns = (_magnifying(zooms, size) for size in frames.shape[1:3])
            # As matrices, since reading pixels one by one is slow on accelerators. The highest
            # precision: these would round the image to a few bits of mantissa.
            total = jnp.einsum(
                "zih,nhwc,zjw->nijc", rows, frames, columns, precision=jax.lax.Precision.HIGHEST
            )
            return (frames + total) / (1 + NUM_ZOOMS)

        return on_image(x, change, name="zoom blur")

    @classmethod
    def example(cls) -> tuple["ZoomBlur", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"


def _magnifying(zooms: Float[Array, " z"], size: int) -> Float[Array, "z size size"]:
    """Matrices [Z, to, from] that magnify an axis of `size` pixels about its middle."""
    place = np.arange(size, dtype=np.float32) - (size - 1) / 2
    source = place[None] / zooms[:, None]
    return jnp.clip(1 - jnp.abs(source[:, :, None] - place[None, None]), 0, 1)
