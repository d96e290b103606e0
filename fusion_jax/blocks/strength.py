"""From severity in [0, 1] to a physical strength, by a table."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def strength_at(
    severity: Float[Array, "..."] | float, table: tuple[float, ...]
) -> Float[Array, "..."]:
    """Linear interpolation in a table of strengths at equally spaced severities from 0 to 1.

    Args:
        severity: [...], in [0, 1].
        table: strengths; the first stands at severity 0, the last at 1.
    """
    return jnp.interp(
        jnp.asarray(severity, jnp.float32),
        np.linspace(0, 1, len(table), dtype=np.float32),
        np.asarray(table, np.float32),
    )


# Not frozen: configuration overrides set fields in place, and ml_collections refuses frozen.
@dataclasses.dataclass
class TabledStrength:
    """What corruptions with a table of strengths have in common.

    Attributes:
        strengths: at equally spaced severities from 0 to 1, linear in between; 0 at severity 0.
        reference: the strength that counts as noise level 1.
    """

    strengths: tuple[float, ...] = (0.0, 1.0)
    reference: float = 1.0

    def strength(self, severity: Float[Array, "..."] | float) -> Float[Array, "..."]:
        """Physical strength at a severity, in the unit that the corruption states."""
        return strength_at(severity, self.strengths)

    def noise_level(self, severity: Float[Array, "..."] | float) -> Float[Array, "..."]:
        """Strength in units of the reference: what a noise estimator is trained on."""
        return self.strength(severity) / self.reference


def to_dtype_of(values: Float[Array, "..."], like: Array) -> Array:
    """Round and saturate float values to the dtype of `like`; floats are only cast.

    Both sides saturate: an 8-bit image does not wrap around.
    """
    if jnp.issubdtype(like.dtype, jnp.integer):
        info = jnp.iinfo(like.dtype)
        values = jnp.clip(jnp.round(values), info.min, info.max)
    return values.astype(like.dtype)
