"""Multi-head attention with a key mask and a log-bias, the pre-norm transformer block, and pooling.

`jax.nn.dot_product_attention` is not used: it takes the softmax in float32 whatever the input is,
so that float64 keeps seven digits only, and a row without a valid key gets the mean of all values.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32, compute_dtype


def attend(
    query: Float[Array, "b t h d"],
    key: Float[Array, "b s h d"],
    value: Float[Array, "b s h d"],
    *,
    mask: Bool[Array, "b s"] | None = None,
    bias: Float[Array, "b s"] | None = None,
) -> Float[Array, "b t h d"]:
    """softmax(query key^T / sqrt(d) + bias) value over the valid keys.

    A bias log g of a key acts as g copies of that key. Logits and softmax are float32 or wider.

    Args:
        query: [B, T, heads, d].
        key: [B, S, heads, d], finite.
        value: [B, S, heads, d].
        mask: Bool[B, S], False on keys that do not exist; None means that all do.
        bias: [B, S], finite, added to the logits of each key for every head and query.

    Returns:
        [B, T, heads, d] in the dtype of `value`: exactly 0 in rows without a valid key.

    References:
        Vaswani et al., Attention Is All You Need, NeurIPS 2017, equation 1.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=wide)
    logits = logits / np.sqrt(query.shape[-1]).astype(wide)
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    if mask is not None:
        # A finite stand-in: with -inf a row without a valid key would be NaN. Its softmax is
        # uniform instead, over values that are all set to 0.
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(wide).min)
        value = jnp.where(mask[:, :, None, None], value, 0)
    shares = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bshd->bthd", shares, value)


class MultiHeadAttention(nn.Module):
    """Projections to queries, keys and values, `attend` in each head, and a projection back.

    Kernels start Xavier-uniform, biases at 0.

    Attributes:
        heads: number of heads; must divide the width of the queries.
        dtype: of the matrix products, "float32" or "bfloat16"; the softmax is float32 or wider.

    References:
        Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2.2.
    """

    heads: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s c"],
        *,
        mask: Bool[Array, "b s"] | None = None,
        bias: Float[Array, "b s"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Tokens x look at tokens of the context.

        Args:
            x: [B, T, D], where the queries come from.
            context: [B, S, C], where keys and values come from; finite in masked places too.
            mask: Bool[B, S], False on context tokens that do not exist; None means that all do.
            bias: [B, S], added to the logits of each key.

        Returns:
            [B, T, D]; the projection's bias alone in rows without a valid key.

        Raises:
            FusionError: where the heads do not divide D.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise FusionError(
                f"{self.heads} heads do not divide the width {width}: choose heads that do"
            )

        def project(name: str, y: Array) -> Array:
            dense = _dense(width, compute_dtype(self.dtype, x), name)
            return dense(y).reshape(*y.shape[:2], self.heads, -1)

        found = attend(
            project("query", x),
            project("key", context),
            project("value", context),
            mask=mask,
            bias=bias,
        )
        return _dense(width, compute_dtype(self.dtype, x), "out")(found.reshape(x.shape))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with one hidden GELU layer.

    The residual stream keeps the dtype of x; only the branches are computed in `dtype`.

    Attributes:
        heads: number of attention heads; must divide D.
        mlp_ratio: hidden width of the MLP over D.
        dtype: of the matrix products, "float32" or "bfloat16".

    References:
        Xiong et al., On Layer Normalization in the Transformer Architecture, ICML 2020, figure 1b.
    """

    heads: int = 4
    mlp_ratio: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s d"] | None = None,
        *,
        mask: Bool[Array, "b s"] | None = None,
        bias: Float[Array, "b s"] | None = None,
        num_out: int | None = None,
        drop: Callable[[Array], Array] = lambda y: y,
    ) -> Float[Array, "b n d"]:
        """Transform x.

        Args:
            x: [B, T, D], float32 or wider; finite in masked places too.
            context: [B, S, D], the tokens to look at; None means x itself.
            mask: Bool[B, S], False on tokens that must not be looked at.
            bias: [B, S], added to the attention logits of each token that is looked at.
            num_out: only the first `num_out` tokens are computed and returned; None means all.
            drop: applied to the output of each branch, for dropout.

        Returns:
            [B, num_out, D].
        """
        dtype = compute_dtype(self.dtype, x)
        queries = layer_norm("norm_attention")(x)
        keys = queries if context is None else layer_norm("norm_context")(context)
        attention = MultiHeadAttention(self.heads, self.dtype, name="attention")
        x = x[:, :num_out] + drop(attention(queries[:, :num_out], keys, mask=mask, bias=bias))
        hidden = _dense(self.mlp_ratio * x.shape[-1], dtype, "hidden")(layer_norm("norm_mlp")(x))
        return x + drop(_dense(x.shape[-1], dtype, "out")(nn.gelu(hidden)))


class TransformerPooling(nn.Module):
    """A learned CLS token reads the tokens by pre-norm self-attention; the result is norm(CLS).

    Noise spoils the mean of many positions; a reader that chooses among them survives it. Unlike in
    `TransformerFusion` each modality is read alone, so that conditions of modalities can be encoded
    apart.

    Attributes:
        depth: number of layers; the last computes the CLS token only.
        heads: attention heads; must divide D.
        mlp_ratio: hidden width of the MLPs over D.
        dtype: of the matrix products, "float32" or "bfloat16".

    References:
        The blocks are those of Rheude et al., Fusion or Confusion?, arXiv 2512.22991, which reads
        all modalities at once.
    """

    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], *, mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b d"]:
        """Pool tokens [B, N, D], of which those with `mask` False do not count, to [B, D].

        Raises:
            FusionError: for an unknown dtype, or heads that do not divide D.
        """
        tokens = at_least_float32(tokens)
        rows, _, width = tokens.shape
        cls = self.param("cls", nn.initializers.normal(0.02), (width,), jnp.float32)
        x = jnp.concatenate([jnp.broadcast_to(cls, (rows, 1, width)), tokens], axis=1)
        # The CLS token is always there to be looked at.
        valid = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        for i in range(self.depth):
            block = TransformerBlock(self.heads, self.mlp_ratio, self.dtype, name=f"block_{i}")
            x = block(x, mask=valid, num_out=1 if i == self.depth - 1 else None)
        return layer_norm("norm")(x[:, 0])


def layer_norm(name: str) -> nn.LayerNorm:
    """Layer normalisation in the dtype of its input, its moments in float32 or wider."""
    # E[x^2] - E[x]^2, the default, cancels badly for features with a large mean.
    return nn.LayerNorm(use_fast_variance=False, name=name)


def _dense(width: int, dtype: np.dtype, name: str) -> nn.Dense:
    """A linear map of tokens, Xavier-uniform."""
    return nn.Dense(width, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)
