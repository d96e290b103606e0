"""Additive Gaussian noise of a stated standard deviation, for images and feature vectors."""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.strength import TabledStrength, numbers_of_entries
from fusion_jax.precision import to_dtype_of


@dataclasses.dataclass
class GaussianNoise(TabledStrength):
    """x + sigma n, n ~ N(0, 1) independently for each entry; 8-bit input is rounded and saturates.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | sigma, standard deviations of the data | 0 | 1.6 | 3.2 | 4.8 | 6.4 | 8 |

    Attributes:
        deviation: standard deviation of the data in raw input units (the one that standardises it).
        deviations: the same for each entry of the last axis, in place of `deviation`, for vectors
            of features with units of their own; () means that all have one.
        strengths: sigma in units of `deviation`, at equally spaced severities from 0 to 1.
        reference: sigma, in the same units, that counts as noise level 1.
    """

    unit: ClassVar[str] = "sigma"
    deviation: float = 64.0
    deviations: tuple[float, ...] = ()
    strengths: tuple[float, ...] = (0.0, 1.6, 3.2, 4.8, 6.4, 8.0)
    reference: float = 1.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"sigma {float(self.strength(severity)):.3g}"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, "..."],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, "..."]:
        """Corrupt one example x [...]; dtype and shape stay.

        Raises:
            FusionError: where `deviations` has another length than the last axis of x.
        """
        deviation = numbers_of_entries(self.deviation, self.deviations, x, "deviations")
        # Flat: along an innermost axis of few channels nothing would be vectorised.
        flat = x.reshape(-1)
        noise = normal_noise(key, flat.shape)
        return to_dtype_of(flat + self.strength(severity) * deviation * noise, x).reshape(x.shape)

    @classmethod
    def example(cls) -> tuple["GaussianNoise", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (6, 5, 1), "uint8"
