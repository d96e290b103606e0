"""What corruptions of images share: which arrays are images, and lengths in pixels."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fusion_jax.errors import FusionError
from fusion_jax.precision import to_dtype_of

# Published strengths are for images of this side; lengths grow and shrink with the image.
PUBLISHED_SIDE = 224


def on_image(
    x: UInt8[Array, "*frames h w c"],
    change: Callable[[Float[Array, "n h w c"]], Float[Array, "n h w c"]],
    *,
    name: str,
) -> UInt8[Array, "*frames h w c"]:
    """Change an 8-bit image, or the frames of a video, as floats in [0, 1].

    Args:
        x: [H, W, C] or [T, H, W, C], 8-bit.
        change: frames [N, H, W, C] in [0, 1] -> the same, which may leave [0, 1].
        name: of the corruption, for the message.

    Returns:
        8-bit as x, rounded and saturated.

    Raises:
        FusionError: for another dtype, or fewer than three axes.
    """
    if x.dtype != jnp.uint8 or x.ndim < 3:
        raise FusionError(
            f"{name} met an input of {x.dtype} {x.shape}: it takes 8-bit images [..., H, W, C]"
        )
    frames = x.reshape((-1, *x.shape[-3:])).astype(jnp.float32) / 255
    return to_dtype_of(255 * change(frames), x).reshape(x.shape)


def pixels(length: Float[Array, ""] | float, height: int, width: int) -> Float[Array, ""] | float:
    """A length that is published in pixels of a 224-pixel image, in pixels of this one."""
    return length * (min(height, width) / PUBLISHED_SIDE)
