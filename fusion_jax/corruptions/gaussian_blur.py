"""Gaussian blur of an image."""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks import blur
from fusion_jax.blocks.images import on_image, pixels
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class GaussianBlur(TabledStrength):
    """Each pixel becomes the mean of its surroundings, weighted by exp(-d^2 / 2 sigma^2).

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | sigma, pixels of a 224-pixel image | 0 | 1 | 2 | 3 | 4 | 6 |

    Published severities 1 to 5 are 0.2 to 1. In other images sigma is scaled with the shorter side.
    Where it is then below a pixel, the kernel still has the deviation sigma. Beyond the border the
    image is continued by its nearest pixel. Nothing is drawn: all frames and seeds get the same. It
    differs from the published form in rounding (that cuts fractions of a level off) and in that
    the kernel is not cut off at 4 sigma.

    Attributes:
        strengths: sigma in pixels of a 224-pixel image, at equally spaced severities from 0 to 1.
        reference: sigma that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, arXiv:1903.12261 (ImageNet-C, the extra corruptions).
    """

    unit: ClassVar[str] = "sigma, px of 224"
    deterministic: ClassVar[bool] = True
    strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
    reference: float = 1.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"sigma {float(self.strength(severity)):.3g} px of 224"

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
            size = frames.shape[1:3]
            sigma = pixels(self.strength(severity), *size)
            largest = float(pixels(max(self.strengths), *size))
            return blur.gaussian_blur(frames, sigma, largest=largest)

        return on_image(x, change, name="Gaussian blur")

    @classmethod
    def example(cls) -> tuple["GaussianBlur", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        # Up to 1 pixel of so small an image.
        return cls(strengths=(0.0, 4.5, 9.0, 13.5, 18.0, 22.4)), (12, 10, 3), "uint8"
