"""Values of an image between its pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sample_at(
    frames: Float[Array, "n h w c"], down: Float[Array, "i j"], across: Float[Array, "i j"]
) -> Float[Array, "n i j c"]:
    """Linear interpolation at places given in pixels; beyond its sides the image is mirrored.

    `jax.scipy.ndimage.map_coordinates` sums four products, which compilers join with the sums in an
    order of their own, to other last bits in another program; here each sum has one product.

    Args:
        frames: [N, H, W, C].
        down: [I, J] rows, 0 at the centre of the first pixel.
        across: [I, J] columns.
    """
    count, height, width, channels = frames.shape
    row, column = jnp.floor(down), jnp.floor(across)
    rows, columns = (start.astype(jnp.int32) for start in (row, column))
    flat = frames.reshape(count, height * width, channels)

    def at(step_down: int, step_across: int) -> Float[Array, "n i j c"]:
        index = _mirrored(rows + step_down, height) * width
        index = index + _mirrored(columns + step_across, width)
        return jnp.take(flat, index, axis=1)

    part_down, part_across = (
        (place - start)[None, :, :, None] for place, start in ((down, row), (across, column))
    )
    upper, lower = (
        left + part_across * (right - left)
        for left, right in ((at(0, 0), at(0, 1)), (at(1, 0), at(1, 1)))
    )
    return upper + part_down * (lower - upper)


def _mirrored(index: Array, side: int) -> Array:
    """Numbers of pixels of an image that is repeated as its mirror image beyond its sides."""
    folded = jnp.mod(index, 2 * side)
    return jnp.minimum(folded, 2 * side - 1 - folded)
