"""Gaussian codes: features that are drawn, with how uncertain each of them is."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.axes import row_ids
from fusion_jax.precision import at_least_float32
from fusion_jax.rng import example_keys
from fusion_jax.types import Features

# Of log sigma^2: sigma within e^-5 .. e^5, where nothing overflows in float32.
LOG_VARIANCE_LIMIT = 10.0


class GaussianCode(nn.Module):
    """The last layer of a probabilistic encoder: z ~ N(mu, sigma^2) at each position.

    Training draws z, keyed by row (the "dropout" random stream); evaluation takes mu.

    Attributes:
        features: D.
        dtype: of the two projections.

    References:
        Wei et al., UDML, arXiv 2603.19681, probabilistic encoder.
    """

    features: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], *, train: bool, grid: tuple[int, ...] | None = None
    ) -> Features:
        """Features with tokens [B, N, D] and the statistics that `code_divergence` needs.

        Args:
            x: [B, N, C].
            train: draw, or take the mean.
            grid: see `fusion_jax.types.Features`.
        """
        mean, log_variance = (
            at_least_float32(nn.Dense(self.features, dtype=self.dtype, name=name)(x))
            for name in ("mean", "log_variance")
        )
        log_variance = jnp.clip(log_variance, -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        tokens = mean
        if train:
            keys = example_keys(self.make_rng("dropout"), row_ids(x.shape[0]))
            noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys)
            tokens = mean + jnp.exp(0.5 * log_variance) * noise
        return Features(
            pooled=jnp.mean(tokens, axis=1),
            tokens=tokens,
            log_variance=jnp.mean(log_variance, axis=1),
            second_moment=jnp.mean(mean**2 + jnp.exp(log_variance), axis=1),
            grid=grid,
        )


def code_divergence(
    second_moment: Float[Array, "... d"],
    log_variance: Float[Array, "... d"],
    prior_variance: Float[Array, "..."] | float,
) -> Float[Array, "..."]:
    """KL(N(mu, sigma^2) || N(0, v)) summed over D, in nats: 0.5 (s / v - log(sigma^2 / v) - 1).

    Only the second moment s = mu^2 + sigma^2 and log sigma^2 enter, so means of both over the
    positions of a map give the mean of the positions' divergences.

    Args:
        second_moment: [..., D], mu^2 + sigma^2.
        log_variance: [..., D], log sigma^2.
        prior_variance: [...], v > 0.

    References:
        Wei et al., UDML, arXiv 2603.19681, regulariser of the probabilistic encoder.

    Example:
        >>> mu, log_variance = jnp.zeros(3), jnp.zeros(3)
        >>> float(code_divergence(mu**2 + jnp.exp(log_variance), log_variance, 1.0))
        0.0
    """
    v = jnp.broadcast_to(jnp.asarray(prior_variance), second_moment.shape[:-1])[..., None]
    return 0.5 * jnp.sum(second_moment / v - log_variance + jnp.log(v) - 1, axis=-1)
