"""Motion blur: a point becomes a fading streak, as behind a camera that moves."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks import blur
from fusion_jax.blocks.images import PUBLISHED_SIDE, on_image, pixels
from fusion_jax.blocks.strength import TabledStrength, strength_at


@dataclasses.dataclass
class MotionBlur(TabledStrength):
    """Each pixel becomes the mean of those on a line from it, weighted by exp(-d^2 / 2 sigma^2).

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | sigma, pixels of a 224-pixel image | 0 | 3 | 5 | 8 | 12 | 15 |
    | length of the line, pixels of a 224-pixel image | 0 | 20 | 30 | 30 | 30 | 40 |

    Published severities 1 to 5 are 0.2 to 1; the length is twice the published radius. In other
    images both are scaled with the shorter side. The direction is drawn once for an example: all
    frames of a video share it, and with one key all severities do. The line goes one way from its
    pixel, so the image moves by about 0.8 sigma as it blurs.

    Each point on the line is read at the nearest pixel, as in the published form, and beyond the
    border the image is continued by its nearest pixel. It differs in rounding alone: fractions of a
    level are rounded, not cut off.

    Attributes:
        strengths: sigma in pixels of a 224-pixel image, at equally spaced severities from 0 to 1.
        reference: sigma that counts as noise level 1.
        lengths: of the line in pixels of a 224-pixel image, at equally spaced severities.
        largest_angle: of the line from the horizontal, degrees; the direction is uniform up to it
            on both sides.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, arXiv:1903.12261 (ImageNet-C).
    """

    unit: ClassVar[str] = "sigma, px of 224"
    strengths: tuple[float, ...] = (0.0, 3.0, 5.0, 8.0, 12.0, 15.0)
    reference: float = 3.0
    lengths: tuple[float, ...] = (0.0, 20.0, 30.0, 30.0, 30.0, 40.0)
    largest_angle: float = 45.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        length = float(strength_at(severity, self.lengths))
        return (
            f"streak of sigma {float(self.strength(severity)):.3g} and length {length:.3g} "
            "px of 224"
        )

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
        limit = math.radians(self.largest_angle)
        angle = jax.random.uniform(key, minval=-limit, maxval=limit)

        def change(frames: Array) -> Array:
            height, width = frames.shape[1:3]
            # In images of more than 224 pixels the points must lie closer, or gaps would show.
            density = max(1, math.ceil(min(height, width) / PUBLISHED_SIDE))
            distance, weights = self._streak(severity, density)
            way = jnp.asarray(pixels(1.0, height, width) * distance)
            rows, columns = (jnp.round(way * part) for part in (jnp.sin(angle), jnp.cos(angle)))
            largest = float(pixels(max(self.lengths), height, width))
            return blur.spread(frames, rows, columns, weights, largest=largest)

        return on_image(x, change, name="motion blur")

    def _streak(
        self, severity: Float[Array, ""], density: int
    ) -> tuple[np.ndarray, Float[Array, " p"]]:
        """Points of the line [P], in pixels of a 224-pixel image from its start; their weights."""
        distance = np.arange(math.ceil(max(self.lengths) * density) + 1, dtype=np.float32) / density
        sigma = jnp.maximum(self.strength(severity), 1e-6)
        # The point at the very end counts in full, those beyond fade out within one step.
        within = jnp.clip((strength_at(severity, self.lengths) - distance) * density + 1, 0, 1)
        return distance, within * jnp.exp(-0.5 * (distance / sigma) ** 2)

    @classmethod
    def example(cls) -> tuple["MotionBlur", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        # A line that is long enough for each direction to meet other pixels.
        strengths, lengths = (
            (0.0, 20.0, 40.0, 60.0, 80.0, 100.0),
            (0.0, 50.0, 100.0, 150.0, 200.0, 250.0),
        )
        return cls(strengths=strengths, lengths=lengths), (40, 36, 3), "uint8"
