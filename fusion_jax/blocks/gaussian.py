"""Gaussian codes: how far a diagonal Gaussian is from a prior of one variance."""

import jax.numpy as jnp
from jaxtyping import Array, Float


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
