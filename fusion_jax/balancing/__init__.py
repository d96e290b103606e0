"""Balancers re-weight losses and updates per modality during training."""

from fusion_jax.balancing.scale_by_modality import scale_by_modality

__all__ = ["scale_by_modality"]
