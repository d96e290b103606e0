"""Normalisation by running statistics of clean and noisy examples alike."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.axes import psum, total

# Where a running variance is this small, an entry says nothing.
EPSILON = 1e-5


class RunningNorm(nn.Module):
    """x less its running mean, over its running deviation, entry by entry.

    The statistics are of all examples seen in training so far, with forgetting; they have no
    gradient, and evaluation uses them as they are. They start at mean 0 and variance 1.

    Attributes:
        decay: of the running statistics, in [0, 1).
    """

    decay: float = 0.99

    @nn.compact
    def __call__(
        self, x: Float[Array, "b c"], rows: Bool[Array, " b"], *, train: bool
    ) -> Float[Array, "b c"]:
        """Normalise x [B, C]; in training its rows with `rows` True enter the statistics."""
        mean = self.variable("scheduler", "mean", jnp.zeros, x.shape[1:], jnp.float32)
        square = self.variable("scheduler", "square", jnp.ones, x.shape[1:], jnp.float32)
        if train and not self.is_initializing():
            stopped = jax.lax.stop_gradient(x)
            number = psum(jnp.sum(rows, dtype=jnp.float32))
            sums = psum((total(stopped, rows), total(stopped**2, rows)))
            step = jnp.where(number > 0, 1 - self.decay, 0)
            over = jnp.maximum(number, 1)
            mean.value = (1 - step) * mean.value + step * sums[0] / over
            square.value = (1 - step) * square.value + step * sums[1] / over
        variance = jnp.maximum(square.value - mean.value**2, EPSILON)
        return (x - mean.value[None]) / jnp.sqrt(variance)[None]
