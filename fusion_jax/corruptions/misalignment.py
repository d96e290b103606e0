"""Misalignment: an input that belongs to another example."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class Misalignment(TabledStrength):
    """The input is replaced by that of an example with another target, whole and clean.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | probability of being replaced | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |

    With one key, what is replaced at a severity is replaced at every higher one. The other example
    (the donor) is drawn by `fusion_jax.data.donors.donor_indices`. No input is noisy, so its noise
    level is 0: only what compares modalities can notice. With two modalities and nothing else to go
    by, no model can do better than to guess which one is wrong. Its target would be another
    example's, so no recipe trains on it.

    Attributes:
        strengths: probabilities in [0, 1], at equally spaced severities from 0 to 1.
        reference: unused.
    """

    unit: ClassVar[str] = "probability"
    needs_donor: ClassVar[bool] = True

    def noise_level(self, severity: Float[Array, "..."] | float) -> Float[Array, "..."]:
        """0: what is given is clean."""
        return jnp.zeros_like(jnp.asarray(severity, jnp.float32))

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % replaced by another's"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, "..."],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, "..."]:
        """`x` or the donor's input, both of one shape and dtype.

        Raises:
            FusionError: without a donor.
        """
        if donor is None:
            raise FusionError("Misalignment needs a donor: the same input of another example")
        return jnp.where(jax.random.uniform(key) < self.strength(severity), donor, x)

    @classmethod
    def example(cls) -> tuple["Misalignment", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (6,), "float32"
