"""Snow: bright streaks in front of a whitened scene."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image, pixels
from fusion_jax.blocks.strength import TabledStrength, strength_at
from fusion_jax.blocks.texture import luminance
from fusion_jax.rng import stream


@dataclasses.dataclass
class Snow(TabledStrength):
    """k x + (1 - k) max(x, 1.5 grey(x) + 0.5), plus a layer of flakes and the same upside down.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | ImageNet-C level | 0 | 1 | 2 | 3 | 4 | 5 |
    | mean of the layer | 0 | 0.1 | 0.2 | 0.55 | 0.55 | 0.55 |
    | deviation of the layer | 0 | 0.3 | 0.3 | 0.3 | 0.3 | 0.3 |
    | size of a flake, pixels of 224 | 3 | 3 | 2 | 4 | 4.5 | 2.5 |
    | threshold | 0.5 | 0.5 | 0.5 | 0.9 | 0.85 | 0.85 |
    | longest streak, pixels of 224 | 20 | 20 | 24 | 24 | 24 | 24 |
    | deviation along a streak, pixels of 224 | 4 | 4 | 4 | 8 | 8 | 12 |
    | k, share of the scene that is not whitened | 1 | 0.8 | 0.7 | 0.7 | 0.65 | 0.55 |

    The numbers of a level are read from the tables below, linear in between. A layer is normal
    noise, blown up linearly to the size of a flake, 0 below the threshold, at most 1, and dragged
    out along a direction that is drawn within 45 degrees of the vertical, with weights
    exp(-i^2 / 2 deviation^2) at the i-th pixel. Lengths grow and shrink with the smaller side of
    the image; flakes are never smaller than a pixel. All frames of a video have one layer (snow
    that hangs still); with one key noise and direction are the same at all severities.

    The mean change is about the same at severities 0.4 and 0.6 (within 2 % on synthetic pictures),
    as published.

    As published, but for the crop that is blown up (here the corner) and steps of the streak in
    images of another size than 224. Grey is luminance where C is 3, else the mean of channels.

    Attributes:
        strengths: ImageNet-C levels in [0, 5], at equally spaced severities from 0 to 1.
        means: of the layer at levels 0 to 5, in shares of the range; so for all that follow.
        deviations: of the layer.
        sizes: of a flake.
        thresholds: below which there is no flake.
        lengths: of the longest streak.
        drags: deviation along a streak, > 0.
        kept: k.
        reference: level that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019.
    """

    unit: ClassVar[str] = "level"
    strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    means: tuple[float, ...] = (0.0, 0.1, 0.2, 0.55, 0.55, 0.55)
    deviations: tuple[float, ...] = (0.0, 0.3, 0.3, 0.3, 0.3, 0.3)
    sizes: tuple[float, ...] = (3.0, 3.0, 2.0, 4.0, 4.5, 2.5)
    thresholds: tuple[float, ...] = (0.5, 0.5, 0.5, 0.9, 0.85, 0.85)
    lengths: tuple[float, ...] = (20.0, 20.0, 24.0, 24.0, 24.0, 24.0)
    drags: tuple[float, ...] = (4.0, 4.0, 4.0, 8.0, 8.0, 12.0)
    kept: tuple[float, ...] = (1.0, 0.8, 0.7, 0.7, 0.65, 0.55)
    reference: float = 1.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        whitened = 1 - float(self._at_level(severity, self.kept))
        return (
            f"snow of level {float(self.strength(severity)):.3g}, {100 * whitened:.3g} % whitened"
        )

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
        kept = self._at_level(severity, self.kept)

        def snowed(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            flakes = self._streaks(key, self._flakes(key, severity, *frames.shape[1:3]), severity)
            # Whole levels, and one product to a sum: compilers join products with the sums around
            # them, where there is a choice to other last bits in another program.
            levels = jnp.round(255 * frames)
            white = jnp.maximum(levels, 1.5 * luminance(levels) + 127.5)
            both = (flakes + flakes[::-1, ::-1])[None, :, :, None]
            return (white + kept * (levels - white)) / 255 + both

        return on_image(x, snowed, name="snow")

    def _flakes(
        self, key: Key[Array, ""], severity: Float[Array, ""], height: int, width: int
    ) -> Float[Array, "h w"]:
        """The layer before it is dragged out, in [0, 1]."""
        size = jnp.maximum(pixels(self._at_level(severity, self.sizes), height, width), 1)
        down, across = (_blown_up(side, size) for side in (height, width))
        noise = jax.random.normal(stream(key, "flakes"), (height, width))
        blown = jnp.einsum("ih,hw,jw->ij", down, noise, across, precision=jax.lax.Precision.HIGHEST)
        mean, deviation, threshold = (
            self._at_level(severity, table)
            for table in (self.means, self.deviations, self.thresholds)
        )
        layer = mean + deviation * blown
        return jnp.where(layer < threshold, 0, jnp.clip(layer, 0, 1))

    def _streaks(
        self, key: Key[Array, ""], layer: Float[Array, "h w"], severity: Float[Array, ""]
    ) -> Float[Array, "h w"]:
        """The layer, dragged out along a drawn direction; its sides are repeated outwards."""
        steps = np.arange(math.ceil(max(self.lengths)) + 1, dtype=np.float32)
        length, drag = (self._at_level(severity, table) for table in (self.lengths, self.drags))
        # The last step fades out, so that nothing jumps as the length grows.
        weights = jnp.exp(-((steps / drag) ** 2) / 2) * jnp.clip(length + 1 - steps, 0, 1)
        slope = jax.random.uniform(stream(key, "wind"), minval=-np.pi / 4, maxval=np.pi / 4)
        reach = math.ceil(pixels(float(steps[-1]), *layer.shape))
        ways = pixels(jnp.asarray(steps), *layer.shape)
        down, across = (
            (reach + jnp.round(ways * part(slope))).astype(jnp.int32) for part in (jnp.cos, jnp.sin)
        )
        padded = jnp.pad(layer, reach, mode="edge")

        def step(total: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
            weight, *start = at
            return total + weight * jax.lax.dynamic_slice(padded, start, layer.shape), None

        shares = weights / weights.sum()
        return jax.lax.scan(step, jnp.zeros_like(layer), (shares, down, across))[0]

    def _at_level(
        self, severity: Float[Array, ""] | float, table: tuple[float, ...]
    ) -> Float[Array, ""]:
        """A number of the level that stands at this severity."""
        return strength_at(self.strength(severity) / (len(table) - 1), table)

    @classmethod
    def example(cls) -> tuple["Snow", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"


def _blown_up(side: int, size: Float[Array, ""]) -> Float[Array, "i h"]:
    """Linear interpolation of the first side / size numbers, the first and last at the sides."""
    apart = (side / size - 1) / max(side - 1, 1)
    distance = apart * jnp.arange(side)[:, None] - jnp.arange(side)[None]
    return jnp.maximum(1 - jnp.abs(distance), 0)
