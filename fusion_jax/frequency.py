"""Block DCT, FFT and the frequency ratio metric: how much of an input is low in frequency.

Pure functions of one-dimensional signals [B, T, C], images [B, H, W, C] and frames [B, T, H, W, C]
(a frame counts like a channel). Everything is per example and in float32 at least, with full
precision of the matrix products: in bfloat16, a TPU's default, the official metric moves by a
third. What follows from a ratio is not decided here.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from fusion_jax.axes import map_rows
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32

MODES = ("robust", "official", "low_only", "direct_sum", "weighted_sum")
TRANSFORMS = ("dct", "fft")
PADDINGS = ("error", "edge", "crop")
FLIPS = ("block", "global")

# The constant that the released code adds to the signed high band.
OFFICIAL_EPSILON = 1e-6
# Floor of a mean absolute DCT coefficient, and of a mean power: inputs are standardised, and 8-bit
# images have steps of about 0.01 then, so what lies below is rounding.
AMPLITUDE_FLOOR = 1e-3
POWER_FLOOR = 1e-6
LOW_SHARE = 0.9
LOW_EDGE, HIGH_EDGE = 1 / 8, 3 / 8
# Below it the FFT has no bin between 0 and the low edge.
FFT_SMALLEST = 8


def dct_matrix(size: int) -> Float[np.ndarray, "u i"]:
    """Orthonormal DCT-II: coefficient u of samples x is `matrix[u] @ x`; float64.

    References:
        Ahmed, Natarajan and Rao, Discrete Cosine Transform, IEEE Transactions on Computers, 1974.
    """
    u, i = np.mgrid[:size, :size]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * i + 1) * u / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix


def block_dct(
    x: Shaped[Array, "b h w c"], block: int = 8, *, padding: str = "error"
) -> Float[Array, "b i j c u v"]:
    """Orthonormal two-dimensional DCT-II of each block.

    Args:
        x: [B, H, W, C].
        block: side of a block in samples, >= 1.
        padding: what to do where H or W is no multiple of `block`: "error", "edge" (repeat the last
            row and column) or "crop" (leave the rest out).

    Returns:
        [B, H / block, W / block, C, block, block]; the last two axes are vertical and horizontal
        frequency.

    Raises:
        FusionError: for sizes that do not divide, unless padded, and for another rank.
    """
    if x.ndim != 4:
        raise FusionError(f"block_dct takes images [B, H, W, C], not shape {x.shape}")
    fitted = _fit(at_least_float32(x), block, padding)
    along_height, along_width = _matrices(fitted, dct_matrix(block))
    cut = fitted.reshape(
        x.shape[0], -1, along_height.shape[1], fitted.shape[2] // block, block, x.shape[3]
    )
    return jnp.einsum(
        "bihjwc,uh,vw->bijcuv",
        cut,
        jnp.asarray(along_height, fitted.dtype),
        jnp.asarray(along_width, fitted.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


def frequency_ratio(
    x: Shaped[Array, "b ..."],
    *,
    mode: str = "robust",
    transform: str = "dct",
    block: int = 8,
    corner: int = 2,
    flip: str = "block",
    padding: str = "error",
) -> Float[Array, " b"]:
    """The frequency ratio of each example: low over high frequencies, >= 0 and finite.

    With low and high the `corner` x `corner` coefficients of a block at its lowest and its highest
    frequencies:

    * "robust": sum over blocks of abs(low) over the same of abs(high), per channel, with a floor
      in the denominator; then the mean over channels. Flat blocks count by what they hold, not
      more.
    * "official": sum over blocks, coefficients and channels of abs(low / (high + 1e-6)), high
      flipped so that the lowest stands over the highest. Not finite where a coefficient is
      -1e-6 exactly, as published; flat blocks dominate it.
    * "low_only", "direct_sum" and "weighted_sum": sums of abs(low), of abs(low) + abs(high), and
      of 0.9 abs(low) + 0.1 abs(high), the ablations of the paper (the last two by their names
      alone: the paper gives no formula).

    With `transform="fft"` (mode "robust" only): power at up to 1/8 cycle per sample over power at
    3/8 and more of the windowed example without its mean, with a floor in both, per channel.

    Args:
        x: [B, T] or [B, T, C] signals, [B, H, W, C] images (signals where H or W is 1) or
            [B, T, H, W, C] frames; preprocessed to about unit variance, or any feature map.
        mode: one of the above.
        transform: "dct" or "fft".
        block: side of a DCT block.
        corner: coefficients along each axis of a band, at most half of `block`.
        flip: "block" flips high inside its block, as the released code does; "global" flips the
            map of all blocks' high coefficients, as equation 4 is written ("official" only).
        padding: see `block_dct`; not used by "fft".

    Returns:
        [B], without unit.

    Raises:
        FusionError: for unknown names, sizes that do not divide, and inputs smaller than a block.

    References:
        Lu et al., MWAM, arXiv 2602.22644, equations 3 and 4 and table 8. "robust" and the FFT are
        ours: docs/methods.md.

    Example:
        >>> import jax.numpy as jnp
        >>> ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 16), (1, 16, 16))[..., None]
        >>> noise = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 1)))
        >>> bool(frequency_ratio(ramp)[0] > 10 * frequency_ratio(noise)[0])
        True
    """
    _check_choice("mode", mode, MODES)
    _check_choice("transform", transform, TRANSFORMS)
    _check_choice("flip", flip, FLIPS)
    if transform == "fft" and mode != "robust":
        raise FusionError(f"mode {mode!r} is defined on DCT blocks: use transform='dct'")
    if not 1 <= corner <= block // 2:
        raise FusionError(f"corner is {corner}: blocks of {block} have corners of 1..{block // 2}")
    maps = _as_maps(at_least_float32(x))
    if transform == "fft":
        _check_size(maps, FFT_SMALLEST)
        return map_rows(_power_ratio)(maps)
    return _dct_ratio(_fit(maps, block, padding), mode, block, corner, flip)


# Compiled by itself, so that a call outside `jit` does not run its many slices one by one.
@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _dct_ratio(
    x: Float[Array, "b h w c"], mode: str, block: int, corner: int, flip: str
) -> Float[Array, " b"]:
    """The metric of maps whose sides are multiples of a block (or of height 1)."""
    low = _band(x, block, np.arange(corner))
    # Falling, so that the lowest frequency stands over the highest: flipped inside each block.
    high = _band(x, block, block - 1 - np.arange(corner))
    return _combine(mode, low, high, flip)


def _combine(mode: str, low: Array, high: Array, flip: str) -> Float[Array, " b"]:
    """The metric from [B, I, U, J, V, C]: low by rising frequency, high by falling frequency."""
    within = (1, 2, 3, 4)
    if mode == "official":
        # Both flips mirror the frequencies, "global" the places of the blocks too.
        opposite = high if flip == "block" else jnp.flip(high, (1, 3))
        return jnp.abs(low / (opposite + OFFICIAL_EPSILON)).sum(axis=(*within, 5))
    if mode == "robust":
        return jnp.mean(
            jnp.abs(low).mean(axis=within) / (jnp.abs(high).mean(axis=within) + AMPLITUDE_FLOOR),
            axis=-1,
        )
    low_sum, high_sum = (jnp.abs(band).sum(axis=(*within, 5)) for band in (low, high))
    shares = {"low_only": (1, 0), "direct_sum": (1, 1), "weighted_sum": (LOW_SHARE, 1 - LOW_SHARE)}
    return shares[mode][0] * low_sum + shares[mode][1] * high_sum


def _band(
    x: Float[Array, "b h w c"], block: int, frequencies: np.ndarray
) -> Float[Array, "b i u j v c"]:
    """The chosen coefficients of each block along both axes (along the width where H is 1).

    Weighted sums of slices, along the height and then along the width. A few coefficients of small
    blocks are little work for a matrix product, and XLA would copy its operands into another order
    first, on TPU with the samples of a block on an axis padded to 128. The program has one product
    for each sample and coefficient of an axis.
    """
    along_height, along_width = _matrices(x, dct_matrix(block)[frequencies])
    height = along_height.shape[1]
    cut = x.reshape(x.shape[0], x.shape[1] // height, height, *x.shape[2:])
    rows = _weighted_sums(along_height, [cut[:, :, i] for i in range(height)], axis=2)
    return _weighted_sums(along_width, [rows[:, :, :, i::block] for i in range(block)], axis=4)


def _matrices(x: Float[Array, "b h w c"], matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What transforms along the height and along the width: a height of 1 stays as it is."""
    return (matrix if x.shape[1] > 1 else np.ones((1, 1))), matrix


def _weighted_sums(matrix: np.ndarray, parts: list[Array], *, axis: int) -> Array:
    """One sum of the parts for each row of weights, stacked on a new axis."""
    sums = [
        functools.reduce(
            jnp.add, (float(weight) * part for weight, part in zip(row, parts, strict=True))
        )
        for row in matrix
    ]
    return jnp.stack(sums, axis)


def _power_ratio(x: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Low over high power of windowed examples; a height of 1 is a signal."""
    axes = (1, 2) if x.shape[1] > 1 else (2,)
    # Without the zeros at both ends, so that short examples keep all their samples.
    sides = [np.hanning(x.shape[axis] + 2)[1:-1] if axis in axes else np.ones(1) for axis in (1, 2)]
    shape = np.multiply.outer(*sides)[None, :, :, None]
    window = jnp.asarray(shape / np.sqrt(np.mean(shape**2)), x.dtype)
    centred = x - x.mean(axis=axes, keepdims=True)
    power = jnp.abs(jnp.fft.rfftn(centred * window, axes=axes)) ** 2
    size = math.prod(x.shape[axis] for axis in axes)
    # Half of a real input's spectrum is not computed: its bins count twice.
    width = x.shape[2]
    twice = np.full(power.shape[2], 2.0)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    radius = np.abs(np.fft.rfftfreq(width))
    if len(axes) == 2:
        radius = np.hypot(np.fft.fftfreq(x.shape[1])[:, None], radius)
    else:
        radius = radius[None]
    low, high = (
        jnp.einsum("bhwc,hw->bc", power, jnp.asarray(band * twice / size**2, x.dtype))
        for band in (radius <= LOW_EDGE, radius >= HIGH_EDGE)
    )
    return jnp.mean((low + POWER_FLOOR) / (high + POWER_FLOOR), axis=-1)


def _as_maps(x: Float[Array, "b ..."]) -> Float[Array, "b h w c"]:
    """Any input as maps: a signal (also an image of width 1) has height 1, frames are channels."""
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4:
        return jnp.swapaxes(x, 1, 2) if x.shape[2] == 1 else x
    if x.ndim == 5:
        frames_last = jnp.moveaxis(x, 1, 3)
        return frames_last.reshape(*frames_last.shape[:3], -1)
    raise FusionError(
        "a frequency ratio is of [B, T], [B, T, C], [B, H, W, C] or [B, T, H, W, C], "
        f"not of shape {x.shape}"
    )


def _fit(x: Float[Array, "b h w c"], block: int, padding: str) -> Float[Array, "b h w c"]:
    """Maps whose sides are multiples of a block (a height of 1 stays)."""
    _check_choice("padding", padding, PADDINGS)
    sides = (2,) if x.shape[1] == 1 else (1, 2)
    rest = {axis: x.shape[axis] % block for axis in sides}
    _check_size(x, block)
    if not any(rest.values()):
        return x
    if padding == "error":
        raise FusionError(
            f"{_size(x)} is no multiple of the block of {block}: use padding='edge' or 'crop'"
        )
    if padding == "crop":
        keep = {axis: x.shape[axis] - rest[axis] for axis in sides}
        return x[:, : keep.get(1, 1), : keep[2]]
    widths = [(0, -x.shape[axis] % block if axis in sides else 0) for axis in range(4)]
    return jnp.pad(x, widths, mode="edge")


def _check_size(x: Float[Array, "b h w c"], smallest: int) -> None:
    """Refuse maps with a side that is too small; a height of 1 is none."""
    sides = (2,) if x.shape[1] == 1 else (1, 2)
    if any(x.shape[axis] < smallest for axis in sides):
        raise FusionError(
            f"{_size(x)} is smaller than a block of {smallest}: use a smaller block, or leave this "
            "modality out of the frequency ratio"
        )


def _size(x: Array) -> str:
    """The size of one example, in words."""
    height = f"{x.shape[1]} x " if x.shape[1] > 1 else ""
    return f"an input of {height}{x.shape[2]} samples"


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse an unknown word."""
    if value not in choices:
        raise FusionError(f"{name} is {value!r}: choose one of {list(choices)}")
