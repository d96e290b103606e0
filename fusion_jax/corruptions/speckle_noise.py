"""Speckle noise: Gaussian noise in proportion to the brightness."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class SpeckleNoise(TabledStrength):
    """x + sigma x n, n ~ N(0, 1) for each entry, x in [0, 1]; rounded, and saturates.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | sigma, share of the brightness | 0 | 0.15 | 0.2 | 0.35 | 0.45 | 0.6 |

    Published severities 1 to 5 are 0.2 to 1. Each channel of each pixel of each frame is drawn by
    itself, and with one key the same n serves every severity. It differs from the published form in
    nothing but rounding: that cuts fractions of a level off, this rounds them.

    Attributes:
        strengths: sigma, at equally spaced severities from 0 to 1.
        reference: sigma that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, arXiv:1903.12261 (ImageNet-C, the extra corruptions).
    """

    unit: ClassVar[str] = "sigma, share of brightness"
    strengths: tuple[float, ...] = (0.0, 0.15, 0.2, 0.35, 0.45, 0.6)
    reference: float = 0.15

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"noise of {100 * float(self.strength(severity)):.3g} % of the brightness"

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
        sigma = self.strength(severity)

        def change(frames: Array) -> Array:
            # Flat: along an innermost axis of few channels nothing would be vectorised.
            flat = frames.reshape(-1)
            noise = normal_noise(key, flat.shape)
            return jnp.reshape(flat * (1 + sigma * noise), frames.shape)

        return on_image(x, change, name="speckle noise")

    @classmethod
    def example(cls) -> tuple["SpeckleNoise", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"
