"""A lost segment of a series: one stretch of its steps is missing in all channels."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fusion_jax.blocks.over_time import check_floats, inside, random_stretch
from fusion_jax.blocks.strength import TabledStrength, numbers_of_entries


@dataclasses.dataclass
class SegmentDropout(TabledStrength):
    """One stretch, a stated share of the steps, is replaced by the mean in all channels.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | share of the steps that is lost | 0 | 0.1 | 0.2 | 0.4 | 0.6 | 0.8 |

    The place is uniform; start and end are rounded to whole steps. With one key, what is lost at a
    severity is lost at every higher one. The table is our own.

    Attributes:
        mean: what lost values become, in raw input units.
        means: the same for each channel, in place of `mean`; () where all have one.
        strengths: shares in [0, 1], at equally spaced severities from 0 to 1.
        reference: share that counts as noise level 1.
    """

    unit: ClassVar[str] = "share of steps"
    mean: float = 0.0
    means: tuple[float, ...] = ()
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % of the steps lost"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Array, "t c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Float[Array, "t c"]:
        """Corrupt one series x [T, C] of floats; dtype and shape stay.

        Raises:
            FusionError: for what is no series, and where `means` has another length than C.
        """
        check_floats(x, axes=2, name="segment dropout", takes="series [T, C] of floats")
        mean = numbers_of_entries(self.mean, self.means, x, "means")
        fill = jnp.broadcast_to(mean, x.size).reshape(x.shape).astype(x.dtype)
        length = x.shape[0]
        start, end = random_stretch(key, self.strength(severity), float(length))
        return jnp.where(inside(length, start, end)[:, None], fill, x)

    @classmethod
    def example(cls) -> tuple["SegmentDropout", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (1000, 2), "float32"
