"""Fog: a cloudy veil of light over an image."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength, strength_at
from fusion_jax.blocks.texture import power_transfer, random_field

# Of the published clouds.
MEAN = 0.5


@dataclasses.dataclass
class Fog(TabledStrength):
    """(x + a f) m / (m + a), f in [0, 1] a cloud of noise, m the largest of x.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | ImageNet-C level | 0 | 1 | 2 | 3 | 4 | 5 |
    | a, light of the fog over light of the scene | 0 | 1.5 | 2 | 2.5 | 2.5 | 3 |
    | e, exponent of the cloud | 2.4 | 2.4 | 2.4 | 2.35 | 2.1 | 1.92 |
    | deviation of the cloud | 0.178 | 0.178 | 0.178 | 0.187 | 0.19 | 0.189 |

    The numbers of a level are read from the tables below, linear in between. All channels and all
    frames of a video have one cloud. With one key its random numbers are the same at all
    severities.

    Different from the published form, where f is a plasma fractal of the diamond-square algorithm,
    scaled to reach 0 and 1 in each image: here it is normal noise of amplitude (1 + r^2)^(-e / 2)
    at r cycles a side, around 0.5, clipped to [0, 1]. Mean, deviation and e (by the energy of
    differences between neighbours) are those measured on 150 published clouds of 224 pixels for
    each level. It can be computed at once for an image of any shape.

    Attributes:
        strengths: ImageNet-C levels in [0, 5], at equally spaced severities from 0 to 1.
        amounts: a at levels 0 to 5.
        exponents: e at levels 0 to 5.
        deviations: of the cloud at levels 0 to 5.
        reference: level that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019.
    """

    unit: ClassVar[str] = "level"
    strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    amounts: tuple[float, ...] = (0.0, 1.5, 2.0, 2.5, 2.5, 3.0)
    exponents: tuple[float, ...] = (2.4, 2.4, 2.4, 2.35, 2.1, 1.92)
    deviations: tuple[float, ...] = (0.178, 0.178, 0.178, 0.187, 0.19, 0.189)
    reference: float = 1.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{float(self._at_level(severity, self.amounts)):.3g} parts of fog to 1 of scene"

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
        amount, exponent, deviation = (
            self._at_level(severity, table)
            for table in (self.amounts, self.exponents, self.deviations)
        )

        def fogged(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            field = random_field(key, power_transfer(frames.shape[1], frames.shape[2], exponent))
            cloud = jnp.clip(MEAN + deviation * field, 0, 1)
            # A black image stays black, as published.
            largest = jnp.maximum(frames.max(), 1e-6)
            return (frames + amount * cloud[None, :, :, None]) * (largest / (largest + amount))

        return on_image(x, fogged, name="fog")

    def _at_level(
        self, severity: Float[Array, ""] | float, table: tuple[float, ...]
    ) -> Float[Array, ""]:
        """A number of the level that stands at this severity."""
        return strength_at(self.strength(severity) / (len(table) - 1), table)

    @classmethod
    def example(cls) -> tuple["Fog", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"
