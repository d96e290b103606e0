"""Drift of a series: each channel wanders off slowly."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.over_time import check_floats
from fusion_jax.blocks.strength import TabledStrength, numbers_of_entries


@dataclasses.dataclass
class Drift(TabledStrength):
    """x[t] + s deviation w[t], w a random walk with variance (t + 1) / T, one for each channel.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, standard deviations of the data at the last step | 0 | 0.5 | 1 | 1.5 | 2 | 3 |

    w is the sum of the first t + 1 of T draws of N(0, 1), over sqrt(T): whatever the length, the
    drift at the last step has deviation s over examples, and over all steps its RMS is s / sqrt(2)
    on average. With one key, w is the same at every severity. The table is our own.

    Attributes:
        deviation: standard deviation of the data in raw input units.
        deviations: the same for each channel, in place of `deviation`; () where all have one.
        strengths: s in units of `deviation`, at equally spaced severities from 0 to 1.
        reference: s, in the same units, that counts as noise level 1.
    """

    unit: ClassVar[str] = "deviations"
    deviation: float = 1.0
    deviations: tuple[float, ...] = ()
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    reference: float = 0.5

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"drift of {float(self.strength(severity)):.3g} deviations"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Array, "t c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Float[Array, "t c"]:
        """Corrupt one series x [T, C] of floats; dtype and shape stay.

        Raises:
            FusionError: for what is no series, and where `deviations` has another length than C.
        """
        check_floats(x, axes=2, name="drift", takes="series [T, C] of floats")
        deviation = numbers_of_entries(self.deviation, self.deviations, x, "deviations")
        size = self.strength(severity) * deviation / np.float32(np.sqrt(x.shape[0]))
        # Scaled before they are summed, and the last bit cut: a product beside a sum may be rounded
        # once or twice, and the compiler chooses otherwise in programs for other numbers of rows.
        steps = jax.lax.reduce_precision(size * normal_noise(key, (x.size,)), 8, 22)
        return (x + jnp.cumsum(steps.reshape(x.shape), axis=0)).astype(x.dtype)

    @classmethod
    def example(cls) -> tuple["Drift", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (20, 3), "float32"
