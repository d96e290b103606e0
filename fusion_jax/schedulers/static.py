"""Equal weights: the baseline that every other scheduler has to beat."""

import flax.linen as nn

from fusion_jax.blocks.collect_signals import collect_signals
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
        values, aux = collect_signals(self.signals, inputs, train=train)
        return FusionWeights(uniform_weights(inputs.present), aux, values)

    @classmethod
    def example(cls) -> "StaticScheduler":
        """A small instance for the conformance tests."""
        return cls()
