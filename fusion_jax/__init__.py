"""Multimodal models that know, example by example, which modality to trust."""

from typing import Any

from fusion_jax.errors import FusionError

__version__ = "0.1.0"
__all__ = ["FusionError", "Prediction", "Predictor", "load"]


def __getattr__(name: str) -> Any:
    """Import the predictor on first use: a user of the pure functions does not pay for Orbax."""
    if name in ("Prediction", "Predictor", "load"):
        from fusion_jax import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
