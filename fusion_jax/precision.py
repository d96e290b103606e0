"""Precision: reductions in float32 at least, and the field `dtype` that a module computes in.

Parameters, and what encoders and operators return, are float32, or float64 where the input is.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from fusion_jax.errors import FusionError


def at_least_float32(x: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """`x` as float32, or float64 where it already is: integers and bfloat16 are widened."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def compute_dtype(name: str, x: Shaped[Array, "..."]) -> np.dtype:
    """The dtype that a module's field `dtype` asks for.

    Args:
        name: "float32" (float64 where x is) or "bfloat16".
        x: the module's input.

    Raises:
        FusionError: for another name.
    """
    if name not in ("float32", "bfloat16"):
        raise FusionError(f"dtype is {name!r}: it must be 'float32' or 'bfloat16'")
    return jnp.dtype(name) if name == "bfloat16" else jnp.promote_types(x.dtype, jnp.float32)


def to_dtype_of(values: Float[Array, "..."], like: Array) -> Array:
    """Round and saturate float values to the dtype of `like`; floats are only cast.

    Both sides saturate: an 8-bit image does not wrap around.
    """
    if jnp.issubdtype(like.dtype, jnp.integer):
        info = jnp.iinfo(like.dtype)
        values = jnp.clip(jnp.round(values), info.min, info.max)
    return values.astype(like.dtype)
