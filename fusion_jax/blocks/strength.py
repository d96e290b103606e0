"""From severity in [0, 1] to a physical strength, by a table."""

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


def to_dtype_of(values: Float[Array, "..."], like: Array) -> Array:
    """Round and saturate float values to the dtype of `like`; floats are only cast.

    Both sides saturate: an 8-bit image does not wrap around.
    """
    if jnp.issubdtype(like.dtype, jnp.integer):
        info = jnp.iinfo(like.dtype)
        values = jnp.clip(jnp.round(values), info.min, info.max)
    return values.astype(like.dtype)
