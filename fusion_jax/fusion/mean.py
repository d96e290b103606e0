"""Weighted mean of the modalities' features."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.blocks.presence import weighted_parts
from fusion_jax.types import Features


class MeanFusion(nn.Module):
    """z = sum over present m of weight_m z_m: `SumFusion` divided by the number present.

    With equal weights and a linear head the prediction is the average of the unimodal logits, and
    it stays on one scale whatever is missing.
    """

    @nn.compact
    def __call__(
        self,
        features: dict[str, Features],
        weights: Float[Array, "b m"],
        present: Bool[Array, "b m"],
    ) -> Features:
        """Fuse.

        Args:
            features: name -> Features of one width D.
            weights: [B, M], sum 1 over present modalities.
            present: Bool[B, M].

        Returns:
            Features with pooled [B, D] only.
        """
        parts = weighted_parts(features, weights, present)
        count = jnp.maximum(jnp.sum(present, axis=-1, keepdims=True), 1)
        return Features(pooled=sum(parts[1:], parts[0]) / count.astype(parts[0].dtype))

    @classmethod
    def example(cls) -> "MeanFusion":
        """A small instance for the conformance tests."""
        return cls()
