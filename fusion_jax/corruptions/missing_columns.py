"""Missing columns of a table or channels of a series: each becomes its mean."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fusion_jax.blocks.over_time import check_floats
from fusion_jax.blocks.strength import TabledStrength, numbers_of_entries


@dataclasses.dataclass
class MissingColumns(TabledStrength):
    """Each entry of the last axis is missing with a stated probability and replaced by its mean.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | fraction of columns that is missing | 0 | 0.1 | 0.2 | 0.4 | 0.6 | 0.8 |

    A column is missing whole, at all steps of a series. Columns are drawn one by one: the fraction
    is met on average. With one key, what is missing at a severity is missing at every higher one.
    Nothing but the value says that it is missing. The table is that of impulse noise.

    Attributes:
        mean: what missing values become, in raw input units.
        means: the same for each entry of the last axis, in place of `mean`; () where all have one.
        strengths: fractions in [0, 1], at equally spaced severities from 0 to 1.
        reference: fraction that counts as noise level 1.
    """

    unit: ClassVar[str] = "fraction"
    mean: float = 0.0
    means: tuple[float, ...] = ()
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % of columns missing"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Array, "... c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Float[Array, "... c"]:
        """Corrupt one vector of features [C] or series [T, C], floats; dtype and shape stay.

        Raises:
            FusionError: for integers, for what has no axis, and where `means` has another length
                than the last axis.
        """
        check_floats(x, axes=1, name="missing columns", takes="floats [..., C]")
        mean = numbers_of_entries(self.mean, self.means, x, "means")
        fill = jnp.broadcast_to(mean, x.size).reshape(x.shape).astype(x.dtype)
        missing = jax.random.uniform(key, x.shape[-1:]) < self.strength(severity)
        return jnp.where(jnp.broadcast_to(missing, x.shape), fill, x)

    @classmethod
    def example(cls) -> tuple["MissingColumns", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (40,), "float32"
