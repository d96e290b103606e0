"""JPEG compression: the cosine coefficients of blocks of 8 by 8 pixels are quantised."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.frequency import dct_matrix

BLOCK = 8
# Steps at quality 50, by vertical and horizontal frequency: tables K.1 and K.2 of the standard.
LUMINANCE_STEPS = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE_STEPS = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
# Red, green and blue to luminance and two colour differences, and back (JFIF).
TO_DIFFERENCES = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
FROM_DIFFERENCES = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@dataclasses.dataclass
class JPEG(TabledStrength):
    """Block cosine coefficients are rounded to multiples of the standard's steps times s.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, multiple of the standard tables | 0 | 2 | 2.77 | 3.33 | 5 | 7.14 |
    | quality (IJG scale) | none | 25 | 18 | 15 | 10 | 7 |

    What an encoder and a decoder do to the pixels, without the bytes in between: colour differences
    at half the resolution both ways (4:2:0), steps rounded to whole numbers from 1 to 255, and
    colour differences interpolated on the way back. Sides are filled up by repeating the last
    pixel. With C other than 3 each channel is compressed as luminance. Nothing is drawn. Different
    from a real codec by its rounding of intermediate values alone.

    Attributes:
        strengths: s, at equally spaced severities from 0 to 1; 0 compresses nothing.
        reference: s that counts as noise level 1.

    References:
        ITU-T recommendation T.81, 1992, annex K. Hendrycks & Dietterich, "Benchmarking Neural
        Network Robustness to Common Corruptions and Perturbations", ICLR 2019 (the qualities).
    """

    unit: ClassVar[str] = "quantiser scale"
    deterministic: ClassVar[bool] = True
    strengths: tuple[float, ...] = (0.0, 2.0, 2.77, 3.33, 5.0, 7.14)
    reference: float = 1.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        scale = float(self.strength(severity))
        if scale == 0:
            return "not compressed"
        return f"JPEG quality {round(50 / scale if scale >= 1 else 100 - 50 * scale)}"

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
        scale = self.strength(severity)

        def compressed(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            height, width, channels = frames.shape[1:]
            multiple = 2 * BLOCK if channels == 3 else BLOCK
            sides = [(0, -side % multiple) for side in (height, width)]
            levels = jnp.pad(255 * frames, [(0, 0), *sides, (0, 0)], mode="edge")
            planes = jnp.moveaxis(levels, -1, 0)
            if channels == 3:
                decoded = _colour(planes, scale)
            else:
                decoded = _grey(planes.reshape(-1, *planes.shape[2:]), scale).reshape(planes.shape)
            found = jnp.moveaxis(decoded, 0, -1)[:, :height, :width] / 255
            return jnp.where(scale == 0, frames, found)

        return on_image(x, compressed, name="JPEG compression")

    @classmethod
    def example(cls) -> tuple["JPEG", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"


def _grey(planes: Float[Array, "n h w"], scale: Float[Array, ""]) -> Float[Array, "n h w"]:
    """Planes of levels 0..255, each compressed as luminance."""
    return _quantised(planes - 128, scale, LUMINANCE_STEPS) + 128


def _colour(planes: Float[Array, "3 n h w"], scale: Float[Array, ""]) -> Float[Array, "3 n h w"]:
    """Red, green and blue, compressed as luminance and colour differences of half resolution."""
    luminance, *differences = _mixed(TO_DIFFERENCES, planes)
    halves = [
        plane.reshape(len(plane), plane.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4))
        for plane in differences
    ]
    decoded = [_quantised(half, scale, CHROMINANCE_STEPS) for half in halves]
    whole = [_doubled(_doubled(half, axis=1), axis=2) for half in decoded]
    return _mixed(FROM_DIFFERENCES, jnp.stack([_grey(luminance, scale), *whole]))


def _mixed(
    matrix: tuple[tuple[float, ...], ...], planes: Float[Array, "3 n h w"]
) -> Float[Array, "3 n h w"]:
    """Three planes, each a weighted sum of the given three."""
    return jnp.stack([sum(row[i] * planes[i] for i in range(3)) for row in matrix])


def _quantised(
    planes: Float[Array, "n h w"], scale: Float[Array, ""], table: tuple[int, ...]
) -> Float[Array, "n h w"]:
    """Planes of levels around 0, after their coefficients were rounded to multiples of steps."""
    steps = jnp.clip(jnp.floor(scale * np.asarray(table, np.float32) + 0.5), 1, 255)
    steps = steps.reshape(1, 1, BLOCK, 1, BLOCK)
    matrix = dct_matrix(BLOCK).astype(np.float32)
    count, height, width = planes.shape
    blocks = planes.reshape(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    exact = jax.lax.Precision.HIGHEST
    coefficients = jnp.einsum("uy,niyjx,vx->niujv", matrix, blocks, matrix, precision=exact)
    rounded = jnp.round(coefficients / steps) * steps
    decoded = jnp.einsum("uy,niujv,vx->niyjx", matrix, rounded, matrix, precision=exact)
    return jnp.clip(decoded, -128, 127).reshape(planes.shape)


def _doubled(plane: Float[Array, "n h w"], *, axis: int) -> Float[Array, "n h w"]:
    """Twice as many values along an axis: three quarters of the nearest, one of the next."""
    size = plane.shape[axis]
    ends = [(1, 1) if i == axis else (0, 0) for i in range(plane.ndim)]
    padded = jnp.pad(plane, ends, mode="edge")
    before, after = (
        plane + 0.25 * (jax.lax.slice_in_dim(padded, start, start + size, axis=axis) - plane)
        for start in (0, 2)
    )
    shape = [2 * size if i == axis else length for i, length in enumerate(plane.shape)]
    return jnp.stack([before, after], axis=axis + 1).reshape(shape)
