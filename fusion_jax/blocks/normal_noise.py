"""Normal random numbers, drawn in the same pass over memory as the arithmetic that uses them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

# Threefry-2x32 with 20 rounds: rotations of the rounds, by fours in turn, and the parity constant.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)
GROUPS = 5
# Giles's polynomials for single precision, the highest power first: near 0, and in the tails.
CENTRAL = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)


def normal_noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws of `jax.random.normal(key, shape)`, float32, to five digits, in a form that fuses.

    On a CPU, JAX runs the rounds of its generator as a loop over whole arrays, and the logarithm in
    its inverse error function is a costly one; together they take most of the time of adding noise.
    Here the rounds are written out, so that they stay in registers, and a plain logarithm does, to
    more digits than JAX's. Use it on flat shapes: an innermost axis of 3 channels keeps the
    compiler from vectorising. Keys of another generator than "threefry2x32", and settings under
    which JAX numbers its draws otherwise, get JAX's own.

    Args:
        key: one typed key.
        shape: of the result.

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Giles, "Approximating
        the erfinv function", GPU Computing Gems 2, 2011.
    """
    size = math.prod(shape)
    own = str(jax.random.key_impl(key)) == "threefry2x32"
    own &= getattr(jax.config, "jax_threefry_partitionable", True)
    if not (own and 0 < size < 2**32):
        return jax.random.normal(key, shape, jnp.float32)
    words = jax.random.key_data(key)
    # Draw i is the generator's answer to the 64-bit number i, its two halves joined by xor.
    low = jax.lax.iota(jnp.uint32, size)
    first, second = _threefry(words[0], words[1], jnp.zeros_like(low), low)
    return _normal_of(first ^ second).reshape(shape)


def _threefry(
    key_high: UInt32[Array, ""],
    key_low: UInt32[Array, ""],
    high: UInt32[Array, " n"],
    low: UInt32[Array, " n"],
) -> tuple[UInt32[Array, " n"], UInt32[Array, " n"]]:
    """Threefry-2x32-20 of the numbers (high, low) under one key."""
    schedule = tuple(
        jnp.broadcast_to(word, low.shape)
        for word in (key_high, key_low, key_high ^ key_low ^ PARITY)
    )
    high, low = high + schedule[0], low + schedule[1]
    for group in range(GROUPS):
        for rotation in ROTATIONS[group % 2]:
            high = high + low
            turned = (low << np.uint32(rotation)) | (low >> np.uint32(32 - rotation))
            low = high ^ turned
        high = high + schedule[(group + 1) % 3]
        low = low + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return high, low


def _normal_of(bits: UInt32[Array, " n"]) -> Float[Array, " n"]:
    """Standard normal numbers from 32 random bits each: the inverse error function of a uniform."""
    # 23 bits as the fraction of a float in [1, 2), then stretched over the open interval (-1, 1).
    mantissa = (bits >> np.uint32(9)) | np.uint32(0x3F800000)
    unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(least, unit * (np.float32(1) - least) + least)
    return np.float32(np.sqrt(2)) * _inverse_error(uniform)


def _inverse_error(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """The inverse error function on (-1, 1), to a relative error of 5e-7."""
    size = -jnp.log((1 - x) * (1 + x))
    central = size < 5
    variable = jnp.where(central, size - np.float32(2.5), jnp.sqrt(size) - np.float32(3))
    value = jnp.zeros_like(x)
    for inner, outer in zip(CENTRAL, TAIL, strict=True):
        value = value * variable + jnp.where(central, np.float32(inner), np.float32(outer))
    return x * value
