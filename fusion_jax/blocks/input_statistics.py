"""A few numbers of an input that change with its noise, whatever it shows."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.precision import at_least_float32

# Below this a deviation is that of a constant input.
SMALLEST = 1e-6


def input_statistics(x: Array) -> Float[Array, "b s"]:
    """Statistics of each example that noise moves without bound.

    Mean, log deviation, skewness and log kurtosis of all entries; for each axis of at least three
    entries the log deviation of first and second differences, by which noise is told from slow
    structure. Encoders normalise such scales away; here they stay, so that what is learned from
    weak noise carries on to noise that is stronger than any in training.

    Args:
        x: [B, ...] preprocessed inputs, finite.

    Returns:
        [B, S], float32 or wider: S = 4 + 2 x the number of such axes. An axis of one channel has
        none.

    References:
        Differences as a measure of noise: Immerkaer, Fast Noise Variance Estimation, Computer
        Vision and Image Understanding 1996.
    """
    x = at_least_float32(x)
    axes = tuple(range(1, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    deviation = jnp.maximum(jnp.sqrt(jnp.mean(centred**2, axis=axes)), SMALLEST)
    unit = centred / deviation.reshape(-1, *(1,) * len(axes))
    found = [
        mean.reshape(-1),
        jnp.log(deviation),
        jnp.mean(unit**3, axis=axes),
        jnp.log(jnp.maximum(jnp.mean(unit**4, axis=axes), SMALLEST)),
    ]
    for axis in axes:
        if x.shape[axis] < 3:
            continue
        for order in (1, 2):
            size = jnp.mean(jnp.diff(x, n=order, axis=axis) ** 2, axis=axes)
            found.append(0.5 * jnp.log(jnp.maximum(size, SMALLEST**2)))
    return jnp.stack(found, axis=-1)
