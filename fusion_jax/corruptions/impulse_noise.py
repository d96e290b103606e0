"""Impulse ("salt and pepper") noise: some entries are replaced by the extremes."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.strength import TabledStrength, numbers_of_entries
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class ImpulseNoise(TabledStrength):
    """A fraction of the entries is replaced, one half by the low extreme, one half by the high.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | fraction of entries that is replaced | 0 | 0.1 | 0.2 | 0.4 | 0.6 | 0.8 |

    Each entry is drawn by itself: the fraction is met on average. In 8-bit images [..., H, W, C]
    pixels are replaced, all channels together, by 0 or 255; in floats [...] (feature vectors,
    series, spectrograms) single entries, by mean -/+ `distance` x deviation. With one key, what is
    replaced at a severity is replaced at every higher one. No recipe trains on it: it is for
    evaluation on noise of another kind than the one trained on.

    Attributes:
        mean: mean of the data in raw input units; floats only.
        means: the same for each entry of the last axis, in place of `mean`; () where all have one.
        deviation: standard deviation of the data in raw input units; floats only.
        deviations: the same for each entry of the last axis, in place of `deviation`; () where all
            have one.
        distance: of the extremes from the mean, in deviations, > 0; floats only.
        strengths: fractions in [0, 1], at equally spaced severities from 0 to 1.
        reference: fraction that counts as noise level 1. At 0.1 and distance 3, what is added to
            standardised floats has the variance of the data, as the reference of Gaussian noise.
    """

    unit: ClassVar[str] = "fraction"
    mean: float = 0.0
    means: tuple[float, ...] = ()
    deviation: float = 1.0
    deviations: tuple[float, ...] = ()
    distance: float = 3.0
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % replaced"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, "..."],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, "..."]:
        """Corrupt one example x [...]; dtype and shape stay.

        Raises:
            FusionError: for integers that are no 8-bit image, and where `means` or `deviations` has
                another length than the last axis of x.
        """
        low, high = self._extremes(x)
        drawn = (*x.shape[:-1], 1) if x.dtype == jnp.uint8 else x.shape
        # One draw decides whether and by what: the lowest part turns low, the highest part high.
        uniform = jnp.broadcast_to(jax.random.uniform(key, drawn), x.shape)
        half = self.strength(severity) / 2
        return jnp.where(uniform < half, low, jnp.where(uniform >= 1 - half, high, x))

    def _extremes(self, x: Shaped[Array, "..."]) -> tuple[Array, Array]:
        """What entries of x are replaced by, low and high, in its shape and dtype."""
        if x.dtype == jnp.uint8 and x.ndim >= 3:
            return jnp.zeros_like(x), jnp.full_like(x, 255)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise FusionError(
                f"impulse noise met an input of {x.dtype} {x.shape}: "
                "it takes 8-bit images [..., H, W, C] and floats"
            )
        mean = numbers_of_entries(self.mean, self.means, x, "means")
        deviation = numbers_of_entries(self.deviation, self.deviations, x, "deviations")
        reach = self.distance * deviation
        low, high = (
            jnp.broadcast_to(extreme, x.size).reshape(x.shape).astype(x.dtype)
            for extreme in (mean - reach, mean + reach)
        )
        return low, high

    @classmethod
    def example(cls) -> tuple["ImpulseNoise", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (6, 5, 3), "uint8"
