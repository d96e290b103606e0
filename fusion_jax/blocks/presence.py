"""Arithmetic over the modality axis that respects which modalities are present."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.axes import next_row
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32
from fusion_jax.types import Features


def masked_softmax(
    logits: Float[Array, "... m"], present: Bool[Array, "... m"]
) -> Float[Array, "... m"]:
    """Softmax over the present entries of the last axis, in float32.

    Args:
        logits: [..., M], any finite values.
        present: Bool[..., M].

    Returns:
        [..., M] in [0, 1]: sum 1 over present entries, exactly 0 on absent ones, all zero where
        nothing is present.
    """
    # A finite stand-in, not -inf: inf - inf would be NaN where nothing is present.
    logits = jnp.where(present, at_least_float32(logits), jnp.finfo(jnp.float32).min)
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    mass = jnp.where(present, jnp.exp(jnp.where(present, shifted, 0)), 0)
    total = jnp.sum(mass, axis=-1, keepdims=True)
    return mass / jnp.where(total == 0, 1, total)


def uniform_weights(present: Bool[Array, "... m"]) -> Float[Array, "... m"]:
    """Equal weights over the present modalities: [..., M], sum 1 (0 where nothing is present)."""
    count = jnp.sum(present, axis=-1, keepdims=True, dtype=jnp.float32)
    return present / jnp.maximum(count, 1)


def permuted_weights(
    weights: Float[Array, "b m"], present: Bool[Array, "b m"]
) -> Float[Array, "b m"]:
    """The weights of the next row of the batch, over what is present in this row: [B, M], sum 1.

    Equal weights where the next row gives none to what is present here.
    """
    other = jnp.where(present, next_row(weights), 0)
    mass = jnp.sum(other, axis=-1, keepdims=True)
    shares = other / jnp.where(mass == 0, 1, mass)
    return jnp.where(mass == 0, uniform_weights(present), shares)


def gain(weights: Float[Array, "b m"], present: Bool[Array, "b m"]) -> Float[Array, "b m"]:
    """The factor that a fusion operator applies to each modality: number present times weight.

    Uniform weights give exactly 1, so they reproduce the plain operator bit for bit.

    Args:
        weights: [B, M], sum 1 over present modalities.
        present: Bool[B, M].
    """
    count = jnp.sum(present, axis=-1, keepdims=True, dtype=jnp.float32)
    return jnp.where(present, count * weights, 0)


def scaled(x: Float[Array, "b ..."], factor: Float[Array, " b"]) -> Float[Array, "b ..."]:
    """`x` times a factor per row; exactly 0, without gradient into `x`, where the factor is 0."""
    rows = factor.reshape(factor.shape + (1,) * (x.ndim - 1)).astype(x.dtype)
    return jnp.where(rows == 0, 0, x) * rows


def weighted_parts(
    features: dict[str, Features], weights: Float[Array, "b m"], present: Bool[Array, "b m"]
) -> list[Float[Array, "b d"]]:
    """Pooled features of each modality times its gain, in sorted order; 0 where absent."""
    factors = gain(weights, present)
    names = sorted(features)
    return [scaled(features[name].pooled, factors[:, m]) for m, name in enumerate(names)]


def wide_parts(
    features: dict[str, Features], weights: Float[Array, "b m"], present: Bool[Array, "b m"]
) -> list[Float[Array, "b d"]]:
    """As `weighted_parts`, but in float32 or wider, for operators that go on computing."""
    wide = {
        name: Features(pooled=at_least_float32(value.pooled)) for name, value in features.items()
    }
    return weighted_parts(wide, weights, present)


def pair_shares(present: Bool[Array, "b m"], source: int | None = None) -> Float[Array, "b m m"]:
    """Equal shares of the ordered pairs (s, t), s != t, of present modalities: s acts on t.

    Where there is no such pair, each present modality is paired with itself.

    Args:
        present: Bool[B, M].
        source: the one modality that acts on the others; None means that each acts on each other.

    Returns:
        [B, M, M], source first: sum 1, all zero where nothing is present.
    """
    own = jnp.eye(present.shape[1], dtype=bool)
    acts = ~own if source is None else ~own & (jnp.arange(present.shape[1])[:, None] == source)
    both = present[:, :, None] & present[:, None, :]
    pairs = both & acts[None]
    pairs = jnp.where(jnp.any(pairs, axis=(1, 2), keepdims=True), pairs, both & own[None])
    count = jnp.sum(pairs, axis=(1, 2), keepdims=True, dtype=jnp.float32)
    return pairs / jnp.maximum(count, 1)


def log_gain(
    weights: Float[Array, "b m"], present: Bool[Array, "b m"]
) -> tuple[Float[Array, "b m"], Bool[Array, "b m"]]:
    """Fusion weights as a bias of attention logits.

    The bias log g of all keys of a modality multiplies its attention mass by its gain g, as if it
    had g times as many tokens. Uniform weights give exactly 0.

    Args:
        weights: [B, M], sum 1 over present modalities.
        present: Bool[B, M].

    Returns:
        log gain [B, M], finite, 0 where the modality must be masked, and Bool[B, M], False where it
        must be: absent, or of weight 0.
    """
    factors = at_least_float32(gain(weights, present))
    # Below the smallest normal number the gradient 1 / g would overflow.
    usable = factors >= jnp.finfo(jnp.float32).tiny
    return jnp.log(jnp.where(usable, factors, 1)), usable


class WeightedTokens(NamedTuple):
    """The tokens of one modality, ready for attention.

    Attributes:
        values: [B, N, D], float32 or wider; exactly 0 where not valid.
        valid: Bool[B, N]: the modality is present, its weight is not 0, and the token counts.
        bias: [B, N], log gain.
    """

    values: Float[Array, "b n d"]
    valid: Bool[Array, "b n"]
    bias: Float[Array, "b n"]


def weighted_tokens(
    features: dict[str, Features],
    weights: Float[Array, "b m"],
    present: Bool[Array, "b m"],
    *,
    level: str = "tokens",
) -> dict[str, WeightedTokens]:
    """Tokens, key mask and attention bias of each modality, in sorted order.

    Args:
        features: name -> Features of one width D.
        weights: [B, M], sum 1 over present modalities.
        present: Bool[B, M].
        level: "tokens" takes the tokens, and the pooled features as one token where there are none;
            "pooled" takes the pooled features of every modality.

    Raises:
        FusionError: for another level.
    """
    if level not in ("tokens", "pooled"):
        raise FusionError(f"level is {level!r}: it must be 'tokens' or 'pooled'")
    bias, usable = log_gain(weights, present)
    made = {}
    for m, name in enumerate(sorted(features)):
        values, mask = features[name].tokens, features[name].token_mask
        if values is None or level == "pooled":
            values, mask = features[name].pooled[:, None, :], None
        valid = jnp.broadcast_to(usable[:, m, None], values.shape[:2])
        valid = valid if mask is None else valid & mask
        values = jnp.where(valid[:, :, None], at_least_float32(values), 0)
        made[name] = WeightedTokens(
            values, valid, jnp.broadcast_to(bias[:, m, None], values.shape[:2])
        )
    return made


def token_mean(tokens: Float[Array, "b n d"], valid: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """Mean over the valid tokens, in float32 or wider: [B, D], 0 where there is none."""
    rows = valid[:, :, None]
    total = jnp.sum(jnp.where(rows, at_least_float32(tokens), 0), axis=1)
    return total / jnp.maximum(jnp.sum(rows, axis=1, dtype=jnp.float32), 1)
