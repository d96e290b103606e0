"""Stuck channels of a series: each holds its value from a random time on."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fusion_jax.blocks.over_time import check_floats
from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.rng import stream


@dataclasses.dataclass
class StuckSensor(TabledStrength):
    """Each channel gets stuck with a stated probability: from its own random step on, x stays.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | fraction of channels that get stuck | 0 | 0.1 | 0.2 | 0.4 | 0.6 | 0.8 |

    Channels are drawn one by one: the fraction is met on average. The step is uniform over the
    series, so that half of a stuck channel is held on average. With one key, what is stuck at a
    severity is stuck at every higher one, from the same step on. The table is our own.

    Attributes:
        strengths: fractions in [0, 1], at equally spaced severities from 0 to 1.
        reference: fraction that counts as noise level 1.
    """

    unit: ClassVar[str] = "fraction"
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % of channels stuck"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Array, "t c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Float[Array, "t c"]:
        """Corrupt one series x [T, C] of floats; dtype and shape stay.

        Raises:
            FusionError: for what is no series.
        """
        check_floats(x, axes=2, name="a stuck sensor", takes="series [T, C] of floats")
        length, channels = x.shape
        stuck = jax.random.uniform(stream(key, "channel"), (channels,)) < self.strength(severity)
        onset = jax.random.randint(stream(key, "onset"), (channels,), 0, length)
        held = jnp.take_along_axis(x, onset[None], axis=0)
        late = jnp.arange(length)[:, None] > onset[None]
        return jnp.where(stuck[None] & late, held, x)

    @classmethod
    def example(cls) -> tuple["StuckSensor", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (20, 12), "float32"
