"""Frost: a camera that looks through an iced-up window."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.blocks.texture import power_transfer, random_field, tint
from fusion_jax.rng import stream

# Mean colour of the five frost photographs that the published form draws from.
COLOUR = (146.0, 167.0, 179.0)
# What the photographs have: the range of their means over the mean of all, the deviation of a
# crop of 224 pixels over that mean; and an exponent that leaves as much fine detail.
MEANS = (0.7, 1.3)
DEVIATION = 0.144
EXPONENT = 1.2
MOST_LIGHT = 1.4


@dataclasses.dataclass
class Frost(TabledStrength):
    """t ((1 - s) x + s f), f a picture of frost, t = min(1 / (1 - s), 1.4) for the added light.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, the frost's share of the light | 0 | 0.286 | 0.429 | 0.5 | 0.519 | 0.556 |
    | weight of the image | 1 | 1 | 0.8 | 0.7 | 0.67 | 0.62 |
    | weight of the frost | 0 | 0.4 | 0.6 | 0.7 | 0.73 | 0.78 |

    A stand-in: the published form pastes crops of five photographs, whose licence and size keep
    them out of here. f is made from noise: bright creases where a field of spectrum
    1/frequency^1.2 passes 0, as veins of crystals, bluish, with a mean drawn for each example. Its
    mean colour, range of means and deviation are those measured on the photographs; the exponent
    is one that leaves about as much fine detail in the result. It has none of their large forms
    (feathers, a clear middle), nor their differences in hue. Published weights at the last two
    severities are 0.65 and 0.7, 0.6 and 0.75; t keeps 1.4 there, because with less light the
    change would fall as severity grows. All frames of a video have one frost; with one key it is
    the same at all severities. Where C is not 3 it is grey.

    Attributes:
        strengths: s in [0, 1), at equally spaced severities from 0 to 1.
        reference: s that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019.
    """

    unit: ClassVar[str] = "share of light"
    strengths: tuple[float, ...] = (0.0, 0.2857, 0.4286, 0.5, 0.5185, 0.5556)
    reference: float = 0.2857

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % of the light from frost"

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
        share = self.strength(severity)
        light = jnp.minimum(1 / (1 - share), MOST_LIGHT)

        def frozen(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            return light * (frames + share * (_frost(key, *frames.shape[1:]) - frames))

        return on_image(x, frozen, name="frost")

    @classmethod
    def example(cls) -> tuple["Frost", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"


def _frost(key: Key[Array, ""], height: int, width: int, channels: int) -> Float[Array, "1 h w c"]:
    """A picture of frost [1, H, W, C] in [0, 1]."""
    field = random_field(stream(key, "crystals"), power_transfer(height, width, EXPONENT))
    # Mean and deviation of the absolute value of a standard normal number.
    crystals = (np.sqrt(2 / np.pi) - jnp.abs(field)) / np.sqrt(1 - 2 / np.pi)
    mean = jax.random.uniform(stream(key, "mean"), minval=MEANS[0], maxval=MEANS[1])
    # One product to a sum: of two, compilers join either with the addition, to other last bits.
    light = mean + DEVIATION * crystals[None, :, :, None]
    return jnp.clip(tint(COLOUR, channels) * light, 0, 1)
