"""Spatter: drops of water, and then mud, on the lens."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, Key, UInt8

from fusion_jax.blocks.images import on_image, pixels
from fusion_jax.blocks.strength import TabledStrength, strength_at
from fusion_jax.blocks.texture import gaussian_transfer, random_field, smooth, tint

WATER = (175.0, 238.0, 238.0)
MUD = (63.0, 42.0, 20.0)
# Deviation of the blur that wears off the rims of mud, in pixels of 224, and what is left of it.
RIM = 1.5
OPAQUE = 0.8


@dataclasses.dataclass
class Spatter(TabledStrength):
    """Liquid where a smooth random field is highest: bright by its depth as water, dark as mud.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, share of the image under liquid | 0 | 0.029 | 0.144 | 0.239 | 0.5 | 0.57 |
    | liquid | water | water | water | water | mud | mud |
    | size of drops, pixels of 224 | 4 | 4 | 3 | 2 | 1 | 1 |
    | light of water for each deviation of depth | 0.35 | 0.35 | 0.29 | 0.27 | | |
    | most light of water | 0.6 | 0.6 | 0.6 | 0.5 | | |

    The field is white noise, blurred by a Gaussian whose deviation is the size, scaled to
    deviation 1; liquid lies where it exceeds the value that a share s of normal numbers exceeds,
    and its excess is the depth. Water adds light of a pale turquoise. Mud covers: the mask of the
    liquid is blurred by 1.5 pixels, and what falls below 0.8 is worn off, which leaves a quarter to
    a third of s. Liquid is mud above severity 0.6, and from there to 0.8 what it is at 0.8: so the
    change does not fall in between. Lengths grow and shrink with the smaller side of the image, but
    not under 1 pixel (1.5 at the rim). All frames of a video have one spatter; with one key the
    field's random numbers are the same at all severities. Where C is not 3, colours count by their
    luminance.

    The shares follow from the published means (0.65, 0.65, 0.65, 0.65, 0.67), deviations (0.3; the
    last 0.4), blurs and thresholds (0.69, 0.68, 0.68, 0.65, 0.65). Different from the published
    form: water there is lit by the distance from its edges (Canny), equalised and embossed; here by
    depth, with light that gives the mean change measured there.

    Attributes:
        strengths: s in [0, 1), at equally spaced severities from 0 to 1.
        most_water: the largest s of water; what exceeds it is mud.
        least_mud: the smallest s of mud, in place of what lies between the two.
        sizes: of drops of water, at the same severities as s; so for the next two.
        lights: of water, in shares of the range for each deviation of depth.
        ceilings: most light of water.
        mud_size: size of drops of mud.
        reference: s that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, whose code has it among the extra corruptions.
    """

    unit: ClassVar[str] = "share under liquid"
    strengths: tuple[float, ...] = (0.0, 0.029, 0.144, 0.239, 0.5, 0.57)
    most_water: float = 0.239
    least_mud: float = 0.5
    sizes: tuple[float, ...] = (4.0, 4.0, 3.0, 2.0, 2.0, 2.0)
    lights: tuple[float, ...] = (0.35, 0.35, 0.29, 0.27, 0.27, 0.27)
    ceilings: tuple[float, ...] = (0.6, 0.6, 0.6, 0.5, 0.5, 0.5)
    mud_size: float = 1.0
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        share, muddy = self._liquid(severity)
        return f"{100 * float(share):.3g} % under {'mud' if muddy else 'water'}"

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

        def spattered(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            height, width, channels = frames.shape[1:]
            size, light, ceiling = (
                strength_at(severity, table) for table in (self.sizes, self.lights, self.ceilings)
            )
            share, muddy = self._liquid(severity)
            size = jnp.where(muddy, self.mud_size, size)
            blur = jnp.maximum(pixels(size, height, width), 1)
            field = random_field(key, gaussian_transfer(height, width, blur))
            depth = field - norm.isf(share)
            lit = jnp.clip(light * depth, 0, ceiling)[None, :, :, None]
            rim = max(pixels(RIM, height, width), RIM)
            mask = smooth((depth > 0).astype(jnp.float32), rim)[None, :, :, None]
            cover = jnp.where(mask < OPAQUE, 0, mask)
            under_water = jnp.minimum(frames + lit * tint(WATER, channels), 1)
            under_mud = frames + cover * (tint(MUD, channels) - frames)
            return jnp.where(muddy, under_mud, under_water)

        return on_image(x, spattered, name="spatter")

    def _liquid(
        self, severity: Float[Array, ""] | float
    ) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        """The share under liquid, and whether that is mud."""
        share = self.strength(severity)
        # The margin undoes rounding in the table.
        muddy = share > 1.001 * self.most_water
        return jnp.where(muddy, jnp.maximum(share, self.least_mud), share), muddy

    @classmethod
    def example(cls) -> tuple["Spatter", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"
