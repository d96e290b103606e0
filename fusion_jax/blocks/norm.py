"""Normalisation by statistics of the batch or of one row.

`flax.linen.BatchNorm` averages per-device means, which is wrong for unequal numbers of valid rows
and NaN on a device that holds padding only; the one here sums first. `flax.linen.GroupNorm` sums
over positions and the channels of a group at once, which XLA does slowly on CPU; the one here sums
over positions, channel by channel, first. LayerNorm is taken from Flax as it is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.axes import psum
from fusion_jax.errors import FusionError


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
    not cancel them; Flax's default subtracts squares.

    Attributes:
        num_groups: number of groups; must divide the channels.
        epsilon: added to the variance.
        scale_init: initial value of the scale.

    References:
        Wu and He, Group Normalization, ECCV 2018, equations 1 and 2.
    """

    num_groups: int
    epsilon: float = 1e-6
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

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
        values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = self._of_group(values)
        # The mean is where the variance is smallest: it has no part in the variance's gradient.
        deviation = values - jax.lax.stop_gradient(mean)
        variance = self._of_group(jnp.square(deviation))
        factor = _as_row(scale, x) * jax.lax.rsqrt(variance + self.epsilon)
        return ((values - mean) * factor + _as_row(bias, x)).astype(x.dtype)

    def _of_group(self, x: Array) -> Array:
        """Mean of the group that a channel is in, [B, 1, ..., C]."""
        rows, channels = x.shape[0], x.shape[-1]
        each = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        groups = jnp.mean(each.reshape(rows, self.num_groups, -1), axis=-1)
        spread = jnp.repeat(groups, channels // self.num_groups, axis=-1)
        return spread.reshape(rows, *(1,) * (x.ndim - 2), channels)


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
