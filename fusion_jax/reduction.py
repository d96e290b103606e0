"""Sums over positions in the form that is fast on the platform compiled for.

XLA on CPU walks down a column for every channel, one number at a time, or goes through a window
form that is no faster: a sum over the positions of a map takes up to seven times as long as reading
it. Sums of a few shifted maps are vectors of channels (docs/performance.md has the times).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Maps that are added at once. XLA still computes what is summed on the way (a square, a mask) where
# at most 15 operations read it, and two sums may read the same.
_TERMS = 7


def sum_positions(x: Float[Array, "b p c"]) -> Float[Array, "b c"]:
    """Sum of x [B, P, C] over its positions, [B, C].

    What x is computed from is computed on the way, so that only its inputs are read from memory.
    """
    return jax.lax.platform_dependent(x, cpu=_by_terms, default=_plain)


def _plain(x: Array) -> Array:
    """XLA's own."""
    return jnp.sum(x, axis=1)


def _by_terms(x: Array) -> Array:
    """Every `_TERMS` positions are added; a product with ones adds what is left of them."""
    rows, positions, channels = x.shape
    steps = positions // _TERMS
    if steps < 2:
        return _by_product(x)
    whole = steps * _TERMS
    terms = [
        jax.lax.slice(x, (0, term, 0), (rows, whole - _TERMS + term + 1, channels), (1, _TERMS, 1))
        for term in range(_TERMS)
    ]
    total = _by_product(sum(terms[1:], terms[0]))
    return total + _by_product(x[:, whole:]) if whole < positions else total


def _by_product(x: Array) -> Array:
    """A row of ones times each matrix [P, C]."""
    ones = jnp.ones(x.shape[:2], x.dtype)
    dimensions = (((1,), (1,)), ((0,), (0,)))
    return jax.lax.dot_general(ones, x, dimensions, precision=jax.lax.Precision.HIGHEST)
