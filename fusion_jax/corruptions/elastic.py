"""Elastic distortion: neighbourhoods of pixels are displaced at random."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image, pixels
from fusion_jax.blocks.sampling import sample_at
from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.blocks.texture import gaussian_transfer, random_field
from fusion_jax.rng import stream


@dataclasses.dataclass
class Elastic(TabledStrength):
    """x(p + d u(p)), u a smooth random field of two independent components of mean square 1.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | d, RMS displacement along each axis, pixels of 224 | 0 | 1.02 | 1.32 | 1.73 | 2.04 | 2.44 |

    The field is white noise blurred by a Gaussian of deviation `width`, mirrored at the sides.
    Between pixels values are interpolated linearly; outside, the image is mirrored. Lengths grow
    and shrink with the smaller side of the image. All frames of a video have one displacement.
    With one key, pixels move along the same lines at all severities.

    The table is that of the `imagecorruptions` package: uniform numbers of up to 1.12 pixels,
    blurred by 2.24 pixels, times 12.5, 16.25, 21.25, 25 and 30; d is what that makes. Normal
    numbers stand in the place of the uniform ones. The form of ImageNet-C mixes jitter of the whole
    image (by up to 24, 49, 5, 5 and 5 pixels) into displacements of several widths, so that no one
    length of it grows with severity; it is not offered.

    Attributes:
        strengths: d in pixels of a 224-pixel image, at equally spaced severities from 0 to 1.
        width: deviation of the blur, in pixels of a 224-pixel image.
        reference: d that counts as noise level 1.

    References:
        Michaelis et al., "Benchmarking Robustness in Object Detection: Autonomous Driving when
        Winter is Coming", arXiv 1907.07484. Hendrycks & Dietterich, "Benchmarking Neural Network
        Robustness to Common Corruptions and Perturbations", ICLR 2019. Simard, Steinkraus and
        Platt, "Best practices for convolutional neural networks", ICDAR 2003.
    """

    unit: ClassVar[str] = "pixels of 224"
    strengths: tuple[float, ...] = (0.0, 1.02, 1.32, 1.73, 2.04, 2.44)
    width: float = 2.24
    reference: float = 1.0

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
        """Corrupt one image or video x [..., H, W, C]; dtype and shape stay.

        Raises:
            FusionError: for anything but an 8-bit image.
        """

        def displaced(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            _, height, width, _ = frames.shape
            transfer = gaussian_transfer(height, width, pixels(self.width, height, width))
            distance = pixels(self.strength(severity), height, width)
            places = [
                place + distance * random_field(stream(key, axis), transfer)
                for place, axis in zip(
                    np.mgrid[:height, :width].astype(np.float32), ("down", "across"), strict=True
                )
            ]
            return sample_at(jnp.round(255 * frames), *places) / 255

        return on_image(x, displaced, name="elastic distortion")

    @classmethod
    def example(cls) -> tuple["Elastic", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"
