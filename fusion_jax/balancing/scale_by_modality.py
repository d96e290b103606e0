"""The one Optax transformation that applies a balancer's scales to any parameter tree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from fusion_jax.errors import FusionError
from fusion_jax.rng import stream

PathToModality = Callable[[tuple[str, ...]], str | None]
SITES = ("update", "gradient")


def scale_by_modality(
    path_to_modality: PathToModality, modalities: tuple[str, ...], *, site: str = "update"
) -> optax.GradientTransformationExtraArgs:
    """Multiply what passes for each modality-specific parameter by its modality's scale.

    Pass the scales as an extra argument, [M] in the order of `modalities`:
    `tx.update(grads, state, params, update_scale=scale)`, or `gradient_scale=` for a transformation
    with `site="gradient"`; without it nothing is scaled. The site is a name alone: where the
    transformation stands in a chain decides what is scaled. Before an adaptive optimiser a constant
    factor cancels, after it the step itself is scaled. Before `optax.add_decayed_weights` weight
    decay is not scaled.

    At the site "gradient" there may be noise too (OGM-GE): with `gradient_noise` = s and
    `noise_key`, while any scale differs from 1, each modality-specific array of more than one axis
    gets noise of s times the standard deviation of its unscaled gradient.

    Args:
        path_to_modality: parameter path, a tuple of names such as ("encoders_audio", "Dense_0",
            "kernel"), to the modality that owns the parameter, or None for a shared one.
        modalities: names in the order of the M axis.
        site: which of the two extra arguments it takes, "update" or "gradient".

    Raises:
        FusionError: for another site.

    References:
        Peng et al., Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022,
        section 3.3, for the noise.
    """
    if site not in SITES:
        raise FusionError(f"site is {site!r}: choose one of {list(SITES)}")

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        *,
        update_scale: Float[Array, " m"] | None = None,
        gradient_scale: Float[Array, " m"] | None = None,
        gradient_noise: float = 0.0,
        noise_key: Key[Array, ""] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, optax.EmptyState]:
        del params, extra
        scales = update_scale if site == "update" else gradient_scale
        if scales is None:
            return updates, state
        noise = gradient_noise if site == "gradient" else 0.0
        if noise and noise_key is None:
            raise FusionError("gradient_noise is given without a noise_key: give both")

        def scale(path: tuple[Any, ...], value: Array) -> Array:
            names = tuple(_name(entry) for entry in path)
            owner = path_to_modality(names)
            if owner is None:
                return value
            scaled = value * scales[modalities.index(owner)].astype(value.dtype)
            if not noise or noise_key is None or value.ndim < 2:
                return scaled
            key = stream(noise_key, *names)
            draw = jax.random.normal(key, value.shape, value.dtype)
            return scaled + noise * jnp.any(scales != 1) * jnp.std(value) * draw

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _name(entry: Any) -> str:
    """The plain name in a JAX tree path entry (a dict key, attribute or index)."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
