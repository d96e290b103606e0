"""Concatenation of the modalities' features."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.blocks.presence import weighted_parts
from fusion_jax.types import Features


class ConcatFusion(nn.Module):
    """z = [g_1 z_1; ...; g_M z_M] in the order of sorted names, g_m = number present x weight_m.

    An absent modality is a block of zeros.
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
            Features with pooled [B, M x D] only.
        """
        parts = weighted_parts(features, weights, present)
        return Features(pooled=jnp.concatenate(parts, axis=-1))

    @classmethod
    def example(cls) -> "ConcatFusion":
        """A small instance for the conformance tests."""
        return cls()
