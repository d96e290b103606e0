"""The one Optax transformation that applies a balancer's scales to any parameter tree."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree

PathToModality = Callable[[tuple[str, ...]], str | None]


def scale_by_modality(
    path_to_modality: PathToModality, modalities: tuple[str, ...]
) -> optax.GradientTransformationExtraArgs:
    """Multiply the update of each modality-specific parameter by its modality's scale.

    Pass the scales as an extra argument: `tx.update(grads, state, params, update_scale=scale)`, [M]
    in the order of `modalities`; without it nothing is scaled. Where it stands in a chain decides
    what is scaled: before an adaptive optimiser a constant factor cancels, after it the step itself
    is scaled.

    Args:
        path_to_modality: parameter path, a tuple of names such as ("encoders_audio", "Dense_0",
            "kernel"), to the modality that owns the parameter, or None for a shared one.
        modalities: names in the order of the M axis.
    """

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        *,
        update_scale: Float[Array, " m"] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, optax.EmptyState]:
        del params, extra
        if update_scale is None:
            return updates, state

        def scale(path: tuple[Any, ...], value: Array) -> Array:
            owner = path_to_modality(tuple(_name(entry) for entry in path))
            if owner is None:
                return value
            return value * update_scale[modalities.index(owner)].astype(value.dtype)

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _name(entry: Any) -> str:
    """The plain name in a JAX tree path entry (a dict key, attribute or index)."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
