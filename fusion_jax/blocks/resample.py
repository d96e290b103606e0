"""Reading a waveform between its samples, in arithmetic that rounds alike in every program.

A product beside a sum may be rounded once or twice, as the compiler likes, and it chooses otherwise
in programs for other numbers of rows. Positions are therefore counted in whole numbers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Positions are counted in 65536ths of a sample, in blocks of 1024 samples so that 32 bits do for
# 16 million samples.
FRACTION_BITS = 16
BLOCK_BITS = 10


def multiples(
    steps: Int[Array, " t"], rate: Float[Array, ""]
) -> tuple[Int[Array, " t"], Float[Array, " t"]]:
    """Steps x rate, as whole numbers and fractions.

    Args:
        steps: [T] whole numbers of any sign, below 2^24 in size.
        rate: in (0, 64), rounded to 65536ths.

    Returns:
        [T] whole parts (rounded down), [T] fractions in [0, 1); exact at rate 1.
    """
    fixed = jnp.round(rate * 2**FRACTION_BITS).astype(jnp.int32)
    whole_rate, part_rate = fixed >> FRACTION_BITS, fixed & (2**FRACTION_BITS - 1)
    block, step = steps >> BLOCK_BITS, steps & (2**BLOCK_BITS - 1)
    # A block of samples times the fraction of the rate, in 64ths.
    of_blocks = block * part_rate
    spare = FRACTION_BITS - BLOCK_BITS
    rest = ((of_blocks & (2**spare - 1)) << BLOCK_BITS) + step * part_rate
    whole = steps * whole_rate + (of_blocks >> spare) + (rest >> FRACTION_BITS)
    part = (rest & (2**FRACTION_BITS - 1)).astype(jnp.float32) / 2**FRACTION_BITS
    return whole, part


def read_between(
    signal: Float[Array, " n"], whole: Int[Array, " t"], part: Float[Array, " t"]
) -> Float[Array, " t"]:
    """The signal at positions whole + part, by linear interpolation; zeros before and after it.

    Args:
        signal: [N].
        whole: [T] of any sign and size.
        part: [T] in [0, 1).
    """
    around = jnp.pad(signal, 2)
    index = jnp.clip(whole + 2, 0, len(signal) + 2)
    here = around[index]
    # Cutting the last bit of the product keeps the compiler from rounding product and sum as one.
    towards = jax.lax.reduce_precision(part * (around[index + 1] - here), 8, 22)
    return here + towards
