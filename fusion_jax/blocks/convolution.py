"""Convolution in the form that is fast at its shape.

XLA's convolution on CPU falls off its fast path where a map has fewer positions than the kernel,
which is where a ResNet on small images spends its last stages, and it is slow at every size for
kernels of one position. A matrix product does not mind: benchmarks/bench_convolution.py has the
numbers.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.errors import FusionError

Padding = str | Sequence[tuple[int, int]]


class Conv(nn.Module):
    """Convolution of any rank, as `flax.linen.Conv` (same parameters, same initial values).

    On CPU, kernels of one position and maps with fewer positions than the kernel are computed as
    patches times a matrix; everything else, and every other platform, uses XLA's convolution.

    Attributes:
        features: output channels.
        kernel_size: one size per spatial axis; the input has as many.
        strides: step on every spatial axis.
        padding: "SAME", "VALID" or a pair (before, after) per spatial axis.
        use_bias: adds a bias per output channel.
        dtype: of the computation; None follows the input and the parameters.
    """

    features: int
    kernel_size: tuple[int, ...] = (3, 3)
    strides: int = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... d"]:
        """Convolve x [B, *spatial, C] to [B, *spatial, features].

        Raises:
            FusionError: where the kernel has another number of axes than the map.
        """
        if x.ndim != len(self.kernel_size) + 2:
            raise FusionError(
                f"a kernel of size {self.kernel_size} needs an input of "
                f"{len(self.kernel_size) + 2} axes, not of shape {x.shape}: give one size for "
                "each axis between batch and channels"
            )
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = convolve(x, kernel, stride=self.strides, padding=self.padding)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def convolve(
    x: Float[Array, "b ... c"], kernel: Float[Array, "... c d"], *, stride: int, padding: Padding
) -> Float[Array, "b ... d"]:
    """Convolution in the form that is fast at this shape on the platform compiled for.

    The choice is made while lowering, so it is right for programs compiled ahead of time for
    another platform, and the compiled program holds the chosen form only.

    Args:
        x: [B, *spatial, C].
        kernel: [*sizes, C, D].
        stride: on every spatial axis.
        padding: "SAME", "VALID" or a pair per spatial axis.
    """
    rank = kernel.ndim - 2
    sizes, strides = kernel.shape[:rank], (stride,) * rank
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:-1], sizes, strides, padding)
    else:
        pads = [(low, high) for low, high in padding]

    positions = math.prod(_output_sizes(x, kernel, stride, pads))
    taps = math.prod(sizes)
    by_product = 0 < positions < taps or (positions and taps == 1)
    direct, product, kept = _forms(stride, tuple(pads))
    return jax.lax.platform_dependent(
        x, kernel, cpu=product if by_product else kept, default=direct
    )


@functools.cache
def _forms(stride: int, pads: tuple[tuple[int, int], ...]) -> tuple[Callable[..., Array], ...]:
    """The three forms; always the same functions, so that calls without `jit` compile once."""

    def direct(x: Array, kernel: Array) -> Array:
        return convolve_direct(x, kernel, stride=stride, pads=pads)

    def product(x: Array, kernel: Array) -> Array:
        return convolve_patches(x, kernel, stride=stride, pads=pads)

    def kept(x: Array, kernel: Array) -> Array:
        return convolve_kept(x, kernel, stride, pads)

    return direct, product, kept


def convolve_direct(
    x: Float[Array, "b ... c"],
    kernel: Float[Array, "... c d"],
    *,
    stride: int,
    pads: Sequence[tuple[int, int]],
) -> Float[Array, "b ... d"]:
    """XLA's convolution; arguments as `convolve`, with padding as pairs."""
    rank = kernel.ndim - 2
    # Batch first and channels last; in a kernel, input channels before output channels.
    maps, kernels = (0, rank + 1, *range(1, rank + 1)), (rank + 1, rank, *range(rank))
    return _convolve_as(x, kernel, stride, pads, (maps, kernels, maps))


def _convolve_as(
    x: Array,
    kernel: Array,
    stride: int,
    pads: Sequence[tuple[int, int]],
    layout: tuple[tuple[int, ...], ...],
) -> Array:
    """XLA's convolution of arrays in a layout: the axes of x, of the kernel and of the result.

    Of each they are those of batch and channels (of a kernel: outputs and inputs), then the spatial
    ones.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * (kernel.ndim - 2),
        list(pads),
        dimension_numbers=jax.lax.ConvDimensionNumbers(*layout),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolve_kept(
    x: Float[Array, "b ... c"],
    kernel: Float[Array, "... c d"],
    stride: int,
    pads: tuple[tuple[int, int], ...],
) -> Float[Array, "b ... d"]:
    """As `convolve_direct`; its gradient reads x from memory in place of computing it again.

    For the gradient of the kernel XLA turns the batch to the innermost axis. Where x comes out of
    simple arithmetic (a norm and a ReLU), XLA on CPU computes that again at each entry in the order
    of the turned map, against the caches, and takes up to twenty times as long as for turning x
    itself. Under `vmap` over kernels nothing is kept.

    Its gradients are also convolutions whose arrays lie as in a forward pass. XLA on CPU turns
    others so by itself, but not inside of loops, where they take thirty times as long.
    """
    return convolve_direct(x, kernel, stride=stride, pads=pads)


def _convolve_kept_jvp(
    stride: int, pads: tuple[tuple[int, int], ...], primals: tuple[Any, ...], tangents: Any
) -> tuple[Array, Any]:
    """The product rule, with x kept for the kernel's part."""
    (x, kernel), (dx, dkernel) = primals, tangents
    rank = kernel.ndim - 2
    spatial, zero = tuple(range(1, rank + 1)), jax.custom_derivatives.SymbolicZero

    # Only the transposes of these two are used in training, and they lie as in a forward pass.
    parts = []
    if not isinstance(dx, zero):
        maps, swapped = (0, rank + 1, *spatial), (rank, rank + 1, *range(rank))
        turned_kernel = jnp.swapaxes(kernel, -1, -2)
        parts.append(_convolve_as(dx, turned_kernel, stride, pads, (maps, swapped, maps)))
    if not isinstance(dkernel, zero):
        rows_last = jnp.swapaxes(_in_memory(x, kernel), 0, -1)
        inputs_first = jnp.moveaxis(dkernel, rank, 0)
        turned, rows_inside = (rank + 1, 0, *spatial), (rank, rank + 1, *range(rank))
        layout = (turned, turned, rows_inside)
        part = _convolve_as(rows_last, inputs_first, stride, pads, layout)
        parts.append(jnp.moveaxis(part, rank, 0))
    y = convolve_direct(x, kernel, stride=stride, pads=pads)
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


convolve_kept.defjvp(_convolve_kept_jvp, symbolic_zeros=True)


def _in_memory(x: Array, numbers: Array) -> Array:
    """x, as an array that XLA must write down: it cannot know that the condition always holds.

    (A number equals itself unless it is NaN, and then the result is useless anyway.)
    """
    number = numbers.reshape(-1)[0]
    return jax.lax.cond(number == number, lambda x: x, jnp.negative, x)


def convolve_patches(
    x: Float[Array, "b ... c"],
    kernel: Float[Array, "... c d"],
    *,
    stride: int,
    pads: Sequence[tuple[int, int]],
) -> Float[Array, "b ... d"]:
    """Each output position's patch as one row, times the kernel as a matrix.

    Taps that meet nothing but padding are left out: on a map of one position, a 3x3 kernel has one
    tap and not nine.

    Args:
        x: [B, *spatial, C].
        kernel: [*sizes, C, D].
        stride: on every spatial axis.
        pads: (before, after) per spatial axis, >= 0.
    """
    outputs = _output_sizes(x, kernel, stride, pads)
    axes = zip(x.shape[1:-1], kernel.shape, pads, outputs, strict=False)
    used = [_used_taps(*axis, stride=stride) for axis in axes]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    spans = [(size - 1) * stride + 1 for size in outputs]
    parts = []
    for taps in itertools.product(*used):
        ends = [tap + span for tap, span in zip(taps, spans, strict=True)]
        parts.append(
            jax.lax.slice(
                padded,
                (0, *taps, 0),
                (x.shape[0], *ends, x.shape[-1]),
                (1, *(stride,) * len(taps), 1),
            )
        )
    patches = jnp.concatenate(parts, axis=-1).reshape(-1, len(parts) * x.shape[-1])
    matrix = kernel[tuple(slice(taps[0], taps[-1] + 1) for taps in used)]
    product = patches @ matrix.reshape(-1, kernel.shape[-1])
    return product.reshape(x.shape[0], *outputs, kernel.shape[-1])


def _output_sizes(
    x: Array, kernel: Array, stride: int, pads: Sequence[tuple[int, int]]
) -> tuple[int, ...]:
    """Number of output positions on each spatial axis."""
    axes = zip(x.shape[1:-1], kernel.shape, pads, strict=False)
    return tuple((size + sum(pad) - taps) // stride + 1 for size, taps, pad in axes)


def _used_taps(size: int, taps: int, pad: tuple[int, int], outputs: int, *, stride: int) -> range:
    """The smallest range of an axis' taps that holds all that ever meet the input."""
    used = [
        tap
        for tap in range(taps)
        if any(0 <= output * stride + tap - pad[0] < size for output in range(outputs))
    ]
    return range(used[0], used[-1] + 1) if used else range(taps)
