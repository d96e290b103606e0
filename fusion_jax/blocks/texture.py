"""Random fields over an image, smoothing, and the colours of what lies between scene and camera.

A field is white noise whose cosine transform is multiplied by a transfer function: normal numbers
stay independent and normal under an orthonormal transform, so they are drawn as its coefficients.
Sides are mirrored, never wrapped around, and any traced width or exponent will do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fusion_jax.frequency import dct_matrix

# Weights of red, green and blue in luminance (ITU-R BT.601).
LUMINANCE = (0.299, 0.587, 0.114)


def gaussian_transfer(
    height: int, width: int, sigma: Float[Array, ""] | float
) -> Float[Array, "h w"]:
    """Transfer function of a Gaussian blur of deviation sigma, in pixels: 1 at frequency 0."""
    down, across = (np.pi * np.arange(side, dtype=np.float32) / side for side in (height, width))
    return _exponential(-(sigma**2) / 2 * (down[:, None] ** 2 + across[None] ** 2))


def power_transfer(
    height: int, width: int, exponent: Float[Array, ""] | float
) -> Float[Array, "h w"]:
    """Transfer function (1 + r^2)^(-exponent / 2), r in cycles per longer side."""
    down, across = (np.arange(side, dtype=np.float32) / (2 * side) for side in (height, width))
    squares = max(height, width) ** 2 * (down[:, None] ** 2 + across[None] ** 2)
    return _exponential(-exponent / 2 * np.log1p(squares))


def random_field(key: Key[Array, ""], transfer: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Normal noise [H, W] of the given transfer function, scaled to expected mean square 1.

    Args:
        key: one typed key.
        transfer: [H, W] for each vertical and horizontal frequency, 0, 1/2, 1, ... cycles a side.
    """
    coefficients = jax.random.normal(key, transfer.shape) * transfer
    return _from_cosines(coefficients / (transfer**2).mean() ** 0.5)


def smooth(image: Float[Array, "h w"], sigma: Float[Array, ""] | float) -> Float[Array, "h w"]:
    """Gaussian blur of deviation sigma, in pixels; the image is mirrored at its sides."""
    height, width = image.shape
    down, across = _matrices(height, width)
    cosines = jnp.einsum("uh,hw,vw->uv", down, image, across, precision=jax.lax.Precision.HIGHEST)
    return _from_cosines(cosines * gaussian_transfer(height, width, sigma))


def luminance(frames: Float[Array, "... c"]) -> Float[Array, "... 1"]:
    """The grey of each pixel: of red, green and blue where C is 3, else the mean of channels."""
    if frames.shape[-1] != 3:
        return frames.mean(axis=-1, keepdims=True)
    red, green, blue = (frames[..., i : i + 1] for i in range(3))
    # One product to a sum: of two, compilers join either with the addition, to other last bits.
    return green + LUMINANCE[0] * (red - green) + LUMINANCE[2] * (blue - green)


def tint(colour: tuple[float, float, float], channels: int) -> Float[np.ndarray, "1 1 1 c"]:
    """A colour for each channel: red, green and blue where C is 3, else its luminance for all.

    Args:
        colour: in 8-bit levels.
        channels: C.

    Returns:
        [1, 1, 1, C] in [0, 1].
    """
    levels, weights = (np.asarray(values, np.float32) for values in (colour, LUMINANCE))
    levels = levels if channels == 3 else np.full(channels, levels @ weights)
    return levels[None, None, None] / 255


def _from_cosines(coefficients: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """The image of these coefficients of an orthonormal cosine transform."""
    down, across = _matrices(*coefficients.shape)
    return jnp.einsum(
        "uh,uv,vw->hw", down, coefficients, across, precision=jax.lax.Precision.HIGHEST
    )


def _exponential(values: np.ndarray | Float[Array, "h w"]) -> Float[Array, "h w"]:
    """What can be known while tracing is made by NumPy.

    XLA evaluates it while compiling in some programs and at run time in others, with other bits.
    """
    return np.exp(values) if isinstance(values, np.ndarray) else jnp.exp(values)


def _matrices(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine transforms along the height and along the width."""
    return dct_matrix(height).astype(np.float32), dct_matrix(width).astype(np.float32)
