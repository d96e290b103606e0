"""Weighted sum of the modalities' features."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from fusion_jax.blocks.presence import weighted_parts
from fusion_jax.types import Features


class SumFusion(nn.Module):
    """z = sum over present m of (number present x weight_m) z_m."""

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
        return Features(pooled=sum(parts[1:], parts[0]))

    @classmethod
    def example(cls) -> "SumFusion":
        """A small instance for the conformance tests."""
        return cls()
