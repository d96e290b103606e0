"""Too little contrast: pixels move towards the mean of their image."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class Contrast(TabledStrength):
    """x + s (mean(x) - x), the mean over the pixels of each frame and channel.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, share of the contrast that is lost | 0 | 0.6 | 0.7 | 0.8 | 0.9 | 0.95 |
    | contrast that is kept | 1 | 0.4 | 0.3 | 0.2 | 0.1 | 0.05 |

    Nothing is drawn. As published.

    Attributes:
        strengths: s in [0, 1], at equally spaced severities from 0 to 1.
        reference: s that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019.
    """

    unit: ClassVar[str] = "contrast lost"
    deterministic: ClassVar[bool] = True
    strengths: tuple[float, ...] = (0.0, 0.6, 0.7, 0.8, 0.9, 0.95)
    reference: float = 0.6

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * (1 - float(self.strength(severity))):.3g} % of the contrast"

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

        def flattened(frames: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
            # Whole levels, whose sum has the same bits in any order, and a mean in steps of 1/256
            # level: compilers join a product, as in a division, with what follows or do not.
            levels = jnp.round(255 * frames)
            total = levels.astype(jnp.int32).sum(axis=(1, 2), keepdims=True)
            mean = jnp.round(256 * (total / (frames.shape[1] * frames.shape[2]))) / 256
            return (levels + self.strength(severity) * (mean - levels)) / 255

        return on_image(x, flattened, name="contrast")

    @classmethod
    def example(cls) -> tuple["Contrast", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"
