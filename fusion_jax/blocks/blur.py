"""Blurring images by an amount that is traced: what the blurs among the corruptions share.

Frames are [N, H, W, C]. Beyond the border the image is continued by its nearest pixel, and every
kernel has the sum 1, so a uniform image stays as it is. No kernel's size depends on a traced value.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _deviations_of_sampled_gaussians(widths: np.ndarray) -> np.ndarray:
    """Standard deviations of the kernels exp(-d^2 / 2 w^2) at whole d, one for each width w."""
    squares = np.arange(-20, 21, dtype=np.float64)[None] ** 2
    kernels = np.exp(-squares / (2 * widths[:, None] ** 2))
    return np.sqrt((kernels * squares).sum(axis=1) / kernels.sum(axis=1))


# Accelerators would round the image to a few bits of mantissa.
HIGHEST = jax.lax.Precision.HIGHEST

# A Gaussian narrower than a pixel, read off at whole pixels, falls between them and blurs next to
# nothing. In small images all lengths are that short: there the kernel is a wider Gaussian, whose
# deviation as a kernel is the one asked for. From 1 pixel on the two are the same.
WIDTHS = np.arange(0.15, 2.0, 0.01)
DEVIATIONS = _deviations_of_sampled_gaussians(WIDTHS)


def gaussian_blur(
    frames: Float[Array, "n h w c"], sigma: Float[Array, ""] | float, *, largest: float
) -> Float[Array, "n h w c"]:
    """The image weighted by a Gaussian around each pixel.

    Args:
        frames: [N, H, W, C].
        sigma: standard deviation of the kernel along each axis, in pixels of this image.
        largest: static; sigma is never above it.
    """
    reach = math.ceil(4 * largest)
    rows, columns = (_gaussian_weights(sigma, size, reach) for size in frames.shape[1:3])
    padded = _continued(_planes(frames), reach)
    blurred = jnp.einsum("ih,nchw,jw->ncij", rows, padded, columns, precision=HIGHEST)
    return jnp.moveaxis(blurred, 1, -1)


def spread(
    frames: Float[Array, "n h w c"],
    rows: Float[Array, " p"],
    columns: Float[Array, " p"],
    weights: Float[Array, " p"],
    *,
    largest: float,
) -> Float[Array, "n h w c"]:
    """The weighted mean of the image at a cloud of points around each pixel.

    Between pixels the image is linear in each direction. The sum is taken through a Fourier
    transform, whose cost does not depend on the number of points.

    Args:
        frames: [N, H, W, C].
        rows: [P] of each point, downwards from the pixel, in pixels of this image.
        columns: [P], rightwards.
        weights: [P], >= 0, with a sum above 0.
        largest: static; no row or column is farther than it.
    """
    reach = math.ceil(largest)
    cells = np.arange(-reach, reach + 1, dtype=np.float32)
    across, along = (
        jnp.clip(1 - jnp.abs(offsets[None] - cells[:, None]), 0, 1) for offsets in (rows, columns)
    )
    shares = weights / jnp.sum(weights)
    kernel = jnp.einsum("kp,p,lp->kl", across, shares, along, precision=HIGHEST)
    padded = _continued(_planes(frames), reach)
    size = padded.shape[-2:]
    spectrum = jnp.fft.rfft2(padded) * jnp.conj(jnp.fft.rfft2(kernel, s=size))[None, None]
    # The sum wraps around in what was padded, which is cut off.
    height, width = frames.shape[1:3]
    return jnp.moveaxis(jnp.fft.irfft2(spectrum, s=size)[..., :height, :width], 1, -1)


def _gaussian_weights(
    sigma: Float[Array, ""] | float, size: int, reach: int
) -> Float[Array, "size padded"]:
    """For each of `size` pixels, its weights on an axis that is padded by `reach` on both sides."""
    width = jnp.where(sigma < WIDTHS[-1], jnp.interp(sigma, DEVIATIONS, WIDTHS), sigma)
    offsets = np.arange(size + 2 * reach)[None] - reach - np.arange(size)[:, None]
    weights = jnp.exp(-0.5 * (offsets.astype(np.float32) / width) ** 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _planes(frames: Float[Array, "n h w c"]) -> Float[Array, "n c h w"]:
    """Channels before pixels: an innermost axis of 3 channels keeps compilers from vectorising."""
    return jnp.moveaxis(frames, -1, 1)


def _continued(planes: Float[Array, "n c h w"], reach: int) -> Float[Array, "n c h2 w2"]:
    """The image with its border repeated outwards, `reach` pixels on every side."""
    return jnp.pad(planes, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
