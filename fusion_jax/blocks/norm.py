"""Normalisation by statistics of the batch or of one row.

`flax.linen.BatchNorm` averages per-device means, which is wrong for unequal numbers of valid rows
and NaN on a device that holds padding only; the one here sums first. `flax.linen.GroupNorm` and its
gradient sum in a form that XLA does slowly on CPU; the one here does not. LayerNorm is taken from
Flax as it is.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.axes import psum
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32
from fusion_jax.reduction import sum_positions


class BatchNorm(nn.Module):
    """Normalisation by the statistics of the valid rows of the global batch.

    Statistics and the arithmetic are in float32 or wider; the result has the dtype of the input, so
    that a network in bfloat16 stays in it.

    Attributes:
        momentum: decay of the running statistics, in [0, 1).
        epsilon: added to the variance.
        scale_init: initial value of the scale.

    References:
        Ioffe and Szegedy, Batch Normalization, ICML 2015, Algorithm 1.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ... c"], *, train: bool, mask: Bool[Array, " b"] | None = None
    ) -> Float[Array, "b ... c"]:
        """Normalise the last axis.

        Args:
            x: [B, ..., C].
            train: use and record the batch's statistics; else the running ones.
            mask: Bool[B], rows that enter the statistics; None means all. Statistics of a batch
                without a valid row stay as they were.
        """
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        use_mean, use_variance = mean.value, variance.value
        if train:
            use_mean, use_variance, any_valid = _moments(x, mask)
            if not self.is_initializing():
                keep = jnp.where(any_valid, self.momentum, 1.0)
                for running, new in ((mean, use_mean), (variance, use_variance)):
                    kept = keep * running.value + (1 - keep) * jax.lax.stop_gradient(new)
                    # The state keeps its dtype, or the next step would be another program.
                    running.value = kept.astype(running.value.dtype)
        factor = scale * jax.lax.rsqrt(use_variance + self.epsilon)
        shift = bias - use_mean * factor
        return (x * _as_row(factor, x) + _as_row(shift, x)).astype(x.dtype)


class GroupNorm(nn.Module):
    """Normalisation of each row by groups of channels, as `flax.linen.GroupNorm`.

    Same parameters and initial values. Statistics and the arithmetic are in float32 or wider; the
    result has the dtype of the input. Deviations are taken from the mean, so that a large mean does
    not cancel them; Flax's default subtracts squares. Its gradient is written out, so that its sums
    are fast on CPU too; forward-mode differentiation (`jax.jvp`) does not pass through it.

    Attributes:
        num_groups: number of groups; must divide the channels.
        epsilon: added to the variance.
        scale_init: initial value of the scale.
        relu: whether a ReLU follows; its gradient is then taken in the same pass.

    References:
        Wu and He, Group Normalization, ECCV 2018, equations 1 and 2.
    """

    num_groups: int
    epsilon: float = 1e-6
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()
    relu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... c"]:
        """Normalise x [B, ..., C].

        Raises:
            FusionError: where the groups do not divide the channels.
        """
        channels = x.shape[-1]
        if self.num_groups < 1 or channels % self.num_groups:
            raise FusionError(
                f"{self.num_groups} groups do not divide {channels} channels: change one of them"
            )
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        rows = x.reshape(x.shape[0], -1, channels)
        y = _group_norm(rows, scale, bias, self.num_groups, self.epsilon, self.relu)
        return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _group_norm(
    x: Float[Array, "b p c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    epsilon: float,
    relu: bool,
) -> Float[Array, "b p c"]:
    """The formula scale (x - mean) / deviation + bias, cut off at 0 with `relu`."""
    return _group_norm_forward(x, scale, bias, groups, epsilon, relu)[0]


def _group_norm_forward(
    x: Array, scale: Array, bias: Array, groups: int, epsilon: float, relu: bool
) -> tuple[Array, tuple[Array, ...]]:
    """The result, and what the gradient needs: x, the parameters, mean and 1 / deviation [B, C]."""
    values = at_least_float32(x)
    mean = _group_mean(sum_positions(values), x.shape[1], groups)
    deviations = values - mean[:, None]
    variance = _group_mean(sum_positions(jnp.square(deviations)), x.shape[1], groups)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = deviations * (_as_row(scale, inverse) * inverse)[:, None] + _as_row(bias, x)
    y = nn.relu(y) if relu else y
    return y.astype(x.dtype), (x, scale, bias, mean, inverse)


def _group_norm_backward(
    groups: int, epsilon: float, relu: bool, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    """Gradients of x, scale and bias.

    With d = x - mean, r = 1 / deviation and g the gradient of the result,

        dx = scale r g - r mean(scale g) - r^3 d mean(scale g d),

    means over the positions and channels of a group.
    """
    x, scale, bias, mean, inverse = saved
    deviations = at_least_float32(x) - mean[:, None]
    weight = _as_row(scale, inverse)
    factor = (weight * inverse)[:, None]
    gradient = at_least_float32(gradient)
    if relu:
        gradient = jnp.where(deviations * factor + _as_row(bias, x) > 0, gradient, 0)
    total = sum_positions(gradient)
    product = sum_positions(gradient * deviations)
    level = inverse * _group_mean(weight * total, x.shape[1], groups)
    slope = inverse**3 * _group_mean(weight * product, x.shape[1], groups)
    dx = factor * gradient - level[:, None] - slope[:, None] * deviations
    dscale, dbias = jnp.sum(product * inverse, axis=0), jnp.sum(total, axis=0)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def _group_mean(totals: Array, positions: int, groups: int) -> Array:
    """Mean of the group that a channel is in, [B, C], from sums over positions [B, C].

    On CPU as a product: the result then lies in memory channel by channel. XLA would take `repeat`
    into the passes over the map and look the group up for every number there.
    """
    rows, channels = totals.shape
    size = channels // groups

    def by_product(totals: Array) -> Array:
        group = jnp.arange(channels) // size
        same = (group[:, None] == group[None]).astype(totals.dtype)
        return jnp.matmul(totals, same, precision=jax.lax.Precision.HIGHEST) / (positions * size)

    def plain(totals: Array) -> Array:
        means = jnp.mean(totals.reshape(rows, groups, size), axis=-1) / positions
        return jnp.repeat(means, size, axis=-1)

    return jax.lax.platform_dependent(totals, cpu=by_product, default=plain)


def _as_row(values: Array, like: Array) -> Array:
    """[C] with leading axes of size 1, to broadcast against [B, ..., C] in plain sight."""
    return values.reshape((1,) * (like.ndim - 1) + (-1,))


def _moments(x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Mean [C], biased variance [C] and whether any row was valid, over the global batch."""
    valid = jnp.ones(x.shape[0], bool) if mask is None else mask
    axes = tuple(range(x.ndim - 1))
    rows = valid.reshape(valid.shape + (1,) * (x.ndim - 1))
    positions = x.size // (x.shape[0] * x.shape[-1])
    values = jnp.where(rows, x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    count = psum(jnp.sum(valid, dtype=values.dtype)) * positions
    safe = jnp.maximum(count, 1)
    mean = psum(jnp.sum(values, axis=axes)) / safe
    # Two passes: E[x^2] - E[x]^2 cancels badly for activations with a large mean.
    centred = jnp.where(rows, values - _as_row(mean, x), 0)
    return mean, psum(jnp.sum(centred**2, axis=axes)) / safe, count > 0
