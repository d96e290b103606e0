"""Optimisers as configuration: fields that build an Optax chain with balancing inside."""

import dataclasses
from typing import Any

import jax
import optax

from fusion_jax.balancing.scale_by_modality import PathToModality, scale_by_modality
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class AdamW:
    """AdamW with linear warm-up and cosine decay to 0.

    A balancer's scale acts where the balancer says: on the update, between the Adam step and the
    weight decay, or on the gradient, before Adam, where a constant factor cancels. Weight decay is
    not the modality's gradient and is never scaled.

    Attributes:
        learning_rate: peak value.
        warmup_fraction: part of training, in [0, 1).
        weight_decay: decoupled; biases and norms (arrays of one axis) are left out.
        clip_norm: global gradient norm, clipped before a balancer scales; 0 for no clipping.
        frozen: paths of parameters that never change, with all below them: ("encoders_audio",
            "encoders_video/Conv_0"). They get no step, no weight decay and no optimiser memory, and
            do not count in the gradient norm that is clipped. Batch statistics are no parameters
            and still follow the batches.
    """

    learning_rate: float = 1e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    frozen: tuple[str, ...] = ()

    def build(
        self, *, num_steps: int, path_to_modality: PathToModality, modalities: tuple[str, ...]
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation for a run of `num_steps` steps.

        Its `init` raises a FusionError where `frozen` names what is no parameter, or every one.
        """
        trained = optax.chain(
            _clip(self.clip_norm),
            scale_by_modality(path_to_modality, modalities, site="gradient"),
            optax.scale_by_adam(),
            scale_by_modality(path_to_modality, modalities, site="update"),
            optax.add_decayed_weights(self.weight_decay, mask=_matrices),
            optax.scale_by_learning_rate(
                _schedule(self.learning_rate, self.warmup_fraction, num_steps)
            ),
        )
        return _without_frozen(trained, self.frozen)


@dataclasses.dataclass
class SGD:
    """SGD with momentum, linear warm-up and cosine decay to 0, as most published hosts train.

    A balancer's scale on the gradient acts before weight decay and momentum, so that momentum
    gathers scaled gradients and the decay is not scaled; on the update it acts on their sum.

    Attributes:
        learning_rate: peak value.
        momentum: in [0, 1).
        warmup_fraction: part of training, in [0, 1).
        weight_decay: added to the gradient (L2); biases and norms are left out.
        clip_norm: see `AdamW`.
        frozen: see `AdamW`.
    """

    learning_rate: float = 1e-2
    momentum: float = 0.9
    warmup_fraction: float = 0.05
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    frozen: tuple[str, ...] = ()

    def build(
        self, *, num_steps: int, path_to_modality: PathToModality, modalities: tuple[str, ...]
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation for a run of `num_steps` steps; see `AdamW.build`."""
        trained = optax.chain(
            _clip(self.clip_norm),
            scale_by_modality(path_to_modality, modalities, site="gradient"),
            optax.add_decayed_weights(self.weight_decay, mask=_matrices),
            optax.trace(self.momentum),
            scale_by_modality(path_to_modality, modalities, site="update"),
            optax.scale_by_learning_rate(
                _schedule(self.learning_rate, self.warmup_fraction, num_steps)
            ),
        )
        return _without_frozen(trained, self.frozen)


def _clip(norm: float) -> optax.GradientTransformation:
    """Clipping to a global norm; 0 for none, where Optax would clip everything to nothing."""
    return optax.clip_by_global_norm(norm) if norm else optax.identity()


def _schedule(peak: float, warmup_fraction: float, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine decay to 0 at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=max(1, round(warmup_fraction * num_steps)),
        decay_steps=max(2, num_steps),
    )


def _without_frozen(
    trained: optax.GradientTransformationExtraArgs, frozen: tuple[str, ...]
) -> optax.GradientTransformationExtraArgs:
    """`trained` for all parameters but the frozen ones."""
    if not frozen:
        return trained
    return optax.partition(
        {"trained": trained, "frozen": optax.set_to_zero()},
        lambda params: frozen_or_trained(params, frozen),
    )


def _matrices(params: optax.Params) -> optax.Params:
    """True where weight decay applies."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def frozen_or_trained(params: optax.Params, frozen: tuple[str, ...]) -> optax.Params:
    """The tree of `params` with "frozen" or "trained" in the place of each array.

    Args:
        params: nested dicts of arrays.
        frozen: paths from the top, joined by "/"; each stands for all that is below it.

    Raises:
        FusionError: for a path that leads nowhere, or where nothing is left to train.

    Example:
        >>> import numpy as np
        >>> params = {"head": {"bias": np.zeros(2)}, "encoders_a": {"bias": np.zeros(3)}}
        >>> frozen_or_trained(params, ("head",))
        {'encoders_a': {'bias': 'trained'}, 'head': {'bias': 'frozen'}}
    """
    known = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    prefixes = [tuple(name.split("/")) for name in frozen]
    for name, prefix in zip(frozen, prefixes, strict=True):
        if not any(_below(path, prefix) for path in known):
            tops = ", ".join(sorted({path[0] for path in known}))
            raise FusionError(
                f"config.optimizer.frozen names {name!r}, which is no parameter: "
                f"the top-level paths are {tops}"
            )
    if all(any(_below(path, prefix) for prefix in prefixes) for path in known):
        raise FusionError("config.optimizer.frozen names every parameter: leave some to train")

    def label(path: tuple[Any, ...], _: Any) -> str:
        names = _names(path)
        return "frozen" if any(_below(names, prefix) for prefix in prefixes) else "trained"

    return jax.tree_util.tree_map_with_path(label, params)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The plain names along a JAX tree path."""
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def _below(path: tuple[str, ...], prefix: tuple[str, ...]) -> bool:
    """Whether a path goes through the place that a prefix names."""
    return path[: len(prefix)] == prefix
