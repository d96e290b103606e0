"""Equal weights: the baseline that every other scheduler has to beat."""

import flax.linen as nn
import jax.numpy as jnp

from fusion_jax.blocks.presence import uniform_weights
from fusion_jax.types import FusionWeights, SchedulerInput


class StaticScheduler(nn.Module):
    """Equal weight for each present modality.

    Attributes:
        signals: computed for logs and reports and trained by their own losses; the weights ignore
            them.
    """

    signals: tuple[nn.Module, ...] = ()

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> FusionWeights:
        """Weights [B, M]: 1 / number present."""
        found = {type(signal).__name__: signal(inputs, train=train) for signal in self.signals}
        aux = sum((signal.aux_loss for signal in found.values()), jnp.zeros(inputs.mask.shape[0]))
        return FusionWeights(
            weights=uniform_weights(inputs.present),
            aux_loss=aux,
            signals={name: signal.value for name, signal in found.items()},
        )

    @classmethod
    def example(cls) -> "StaticScheduler":
        """A small instance for the conformance tests."""
        return cls()
