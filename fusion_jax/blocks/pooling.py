"""Maximum pooling whose gradient is fast on CPU.

XLA spreads the gradient of its own pooling with an index for every input position and a scatter
(docs/performance.md has its cost). Here the forward pass remembers which of its nine positions each
window took, and the gradient is compared with that.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

WINDOW, STRIDE, PAD = 3, 2, 1


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maximum over windows of 3 x 3 in steps of 2, with a margin of one position.

    Of equal values in a window one receives the gradient; a NaN is returned. The form is chosen for
    the platform while lowering.

    Args:
        x: maps [B, H, W, C] of a floating dtype.

    Returns:
        [B, ceil(H / 2), ceil(W / 2), C].
    """
    return jax.lax.platform_dependent(x, cpu=_pool, default=_xla_pool)


def _xla_pool(x: Array) -> Array:
    """XLA's own."""
    return nn.max_pool(x, (WINDOW, WINDOW), strides=(STRIDE, STRIDE), padding=((PAD, PAD),) * 2)


@jax.custom_vjp
def _pool(x: Array) -> Array:
    """By comparison of the nine positions of a window."""
    return _forward(x)[0]


def _forward(x: Array) -> tuple[Array, tuple[tuple[int, int], UInt8[Array, "b h2 w2 c"]]]:
    """The maximum, and what the gradient needs: the map's size and the position taken, 0 to 8."""
    b, h, w, c = x.shape
    rows, columns = -(-h // 2), -(-w // 2)
    after = (2 * rows - h, 2 * columns - w)
    padded = jnp.pad(
        x, ((0, 0), (PAD, after[0]), (PAD, after[1]), (0, 0)), constant_values=-jnp.inf
    )

    def at(i: int, j: int) -> Array:
        """The values at one position of all windows."""
        ends = (b, i + 2 * rows - 1, j + 2 * columns - 1, c)
        return jax.lax.slice(padded, (0, i, j, 0), ends, (1, STRIDE, STRIDE, 1))

    best = at(0, 0)
    taken = jnp.zeros(best.shape, jnp.uint8)
    for tap in range(1, WINDOW**2):
        values = at(*divmod(tap, WINDOW))
        taken = jnp.where(values > best, jnp.uint8(tap), taken)
        best = jnp.maximum(best, values)
    return best, ((h, w), taken)


def _backward(saved: tuple[tuple[int, int], Array], gradient: Array) -> tuple[Array]:
    """Each window's gradient at the position that it took.

    Windows overlap in every second row and column, so positions fall into four kinds by the parity
    of their row and column; each kind is one expression of the windows that hold it.
    """
    (h, w), taken = saved
    b, rows, columns, c = gradient.shape
    # One more window after the last, which took nothing.
    margin = ((0, 0), (0, 1), (0, 1), (0, 0))
    taken = jnp.pad(taken, margin, constant_values=WINDOW**2)
    gradient = jnp.pad(gradient, margin)

    def of(down: int, right: int) -> Array:
        """What positions at this parity receive."""
        found = jnp.zeros_like(gradient[:, :rows, :columns])
        # In even rows a window has its middle; odd rows are the last of one and the first of the
        # next. The same holds for columns.
        for i, below in ((1, 0),) if not down else ((2, 0), (0, 1)):
            for j, beside in ((1, 0),) if not right else ((2, 0), (0, 1)):
                here = (slice(None), slice(below, below + rows), slice(beside, beside + columns))
                found = found + jnp.where(taken[here] == WINDOW * i + j, gradient[here], 0)
        return found

    lines = [jnp.stack([of(down, 0), of(down, 1)], axis=3) for down in (0, 1)]
    return (jnp.stack(lines, axis=2).reshape(b, 2 * rows, 2 * columns, c)[:, :h, :w],)


_pool.defvjp(_forward, _backward)
