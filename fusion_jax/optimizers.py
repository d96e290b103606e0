"""Optimisers as configuration: fields that build an Optax chain with balancing inside."""

import dataclasses

import jax
import optax

from fusion_jax.balancing.scale_by_modality import PathToModality, scale_by_modality


@dataclasses.dataclass
class AdamW:
    """AdamW with linear warm-up and cosine decay to 0.

    The balancer's scale acts between the Adam step and the weight decay: before Adam a constant
    factor cancels, and weight decay is not the modality's gradient.

    Attributes:
        learning_rate: peak value.
        warmup_fraction: part of training, in [0, 1).
        weight_decay: decoupled; biases and norms (arrays of one axis) are left out.
        clip_norm: global gradient norm, > 0.
    """

    learning_rate: float = 1e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 1e-4
    clip_norm: float = 1.0

    def build(
        self, *, num_steps: int, path_to_modality: PathToModality, modalities: tuple[str, ...]
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation for a run of `num_steps` steps."""
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.learning_rate,
            warmup_steps=max(1, round(self.warmup_fraction * num_steps)),
            decay_steps=max(2, num_steps),
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.scale_by_adam(),
            scale_by_modality(path_to_modality, modalities),
            optax.add_decayed_weights(self.weight_decay, mask=_matrices),
            optax.scale_by_learning_rate(schedule),
        )


def _matrices(params: optax.Params) -> optax.Params:
    """True where weight decay applies."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
