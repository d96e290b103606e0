"""Glass blur: pixels are displaced at random by a little, as behind frosted glass."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from scipy.special import ndtr

from fusion_jax.blocks import blur
from fusion_jax.blocks.images import on_image, pixels
from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.strength import TabledStrength, strength_at

ROUNDS = 4


def _deviations_of_rounded_normals(widths: np.ndarray) -> np.ndarray:
    """Standard deviations of round(w n), n ~ N(0, 1), one for each width w."""
    number = np.arange(1, 20, dtype=np.float64)[None]
    tails = ndtr((0.5 - number) / widths[:, None])
    # E k^2 as a sum over tails: k^2 is the sum of the first k odd numbers, on both sides of 0.
    return np.sqrt(2 * ((2 * number - 1) * tails).sum(axis=1))


# Rounding to whole pixels changes deviations, of short steps by much: to steps of a stated
# deviation belong normal numbers of this width. The first width is so small that no draw of single
# precision leaves its pixel.
WIDTHS = np.arange(0.08, 3.0, 0.01)
DEVIATIONS = _deviations_of_rounded_normals(WIDTHS)


@dataclasses.dataclass
class GlassBlur(TabledStrength):
    """Gaussian blur; then each pixel takes the value of one nearby; then Gaussian blur once more.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | displacement, pixels of a 224-pixel image | 0 | 0.71 | 1.2 | 2.09 | 2.82 | 3.93 |
    | sigma of each blur, pixels of a 224-pixel image | 0 | 0.7 | 0.9 | 1 | 1.1 | 1.5 |
    | published: largest step, rounds | none | 1, 2 | 2, 1 | 2, 3 | 3, 2 | 4, 2 |

    The displacement is its standard deviation along each axis. Published severities 1 to 5 are 0.2
    to 1. In other images both lengths are scaled with the shorter side. All frames of a video share
    the displacements, and with one key the same draws serve every severity.

    Differences from the published form. That walks over the image, several rounds; each pixel takes
    over the value of one at most a step away, which may have taken it from another before, so
    values travel on and some are repeated while others are lost. (The published code is written as
    a swap of two pixels, which on images with channels copies one.) A walk cannot be run in
    parallel. Here every pixel takes a step, in four rounds of normally distributed whole numbers of
    pixels, with the total deviation of the walk, which was measured by following 224 x 224 pixels
    through it. As the published steps reach one pixel less to one side, its image also moves by 0.7
    to 2.2 pixels along each axis; this one stays in place. On synthetic pictures the mean absolute
    change is lower for it, by 20 % at severity 0.2 and 3 % at 1; the deviation of the picture is
    the same to 1 %. Fractions of a level are rounded, not cut off.

    Attributes:
        strengths: deviation of the displacement along each axis, in pixels of a 224-pixel image, at
            equally spaced severities from 0 to 1.
        reference: the same that counts as noise level 1.
        sigmas: of both blurs, in pixels of a 224-pixel image, at equally spaced severities.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, arXiv:1903.12261 (ImageNet-C).
    """

    unit: ClassVar[str] = "displacement, px of 224"
    strengths: tuple[float, ...] = (0.0, 0.71, 1.2, 2.09, 2.82, 3.93)
    reference: float = 0.71
    sigmas: tuple[float, ...] = (0.0, 0.7, 0.9, 1.0, 1.1, 1.5)

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"displaced by {float(self.strength(severity)):.3g} px of 224"

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

        def change(frames: Array) -> Array:
            num, height, width, channels = frames.shape
            deviation, sigma = (
                pixels(length, height, width)
                for length in (self.strength(severity), strength_at(severity, self.sigmas))
            )
            largest = float(pixels(max(self.sigmas), height, width))
            blurred = blur.gaussian_blur(frames, sigma, largest=largest)
            source = _displaced(key, deviation, height, width)
            moved = blurred.reshape(num, height * width, channels)[:, source]
            return blur.gaussian_blur(moved.reshape(frames.shape), sigma, largest=largest)

        return on_image(x, change, name="glass blur")

    @classmethod
    def example(cls) -> tuple["GlassBlur", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        # Up to 1 pixel of so small an image, blurred by up to 0.25.
        strengths, sigmas = (0.0, 4.5, 9.0, 13.5, 18.0, 22.4), (0.0, 1.0, 2.0, 3.0, 4.0, 5.6)
        return cls(strengths=strengths, sigmas=sigmas), (12, 10, 3), "uint8"


def _displaced(
    key: Key[Array, ""], deviation: Float[Array, ""] | float, height: int, width: int
) -> Int[Array, " p"]:
    """For each pixel, row by row, the number of the one whose value it takes."""
    pixel = np.arange(height * width, dtype=np.int32)
    step = deviation / ROUNDS**0.5
    spread = jnp.where(
        step < DEVIATIONS[-1],
        jnp.interp(step, DEVIATIONS, WIDTHS),
        # Rounding adds the variance of a uniform number.
        jnp.sqrt(jnp.maximum(step**2 - 1 / 12, 0)),
    )
    steps = jnp.round(spread * normal_noise(key, (ROUNDS * 2 * len(pixel),))).astype(jnp.int32)
    source = jnp.asarray(pixel)
    for down, right in steps.reshape(ROUNDS, 2, len(pixel)):
        row = jnp.clip(pixel // width + down, 0, height - 1)
        column = jnp.clip(pixel % width + right, 0, width - 1)
        source = source[row * width + column]
    return source
