"""The same weights for every example: the control for whether adapting to examples pays."""

import flax.linen as nn
import jax.numpy as jnp

from fusion_jax.blocks.collect_signals import collect_signals
from fusion_jax.blocks.presence import masked_softmax, uniform_weights
from fusion_jax.errors import FusionError
from fusion_jax.types import FusionWeights, SchedulerInput


class ConstantScheduler(nn.Module):
    """Fixed shares, over the present modalities; such as the mean weights of another scheduler.

    Attributes:
        shares: > 0, one for each modality in the order of their sorted names; () is equal shares.
        signals: computed for logs and reports and trained by their own losses.
    """

    shares: tuple[float, ...] = ()
    signals: tuple[nn.Module, ...] = ()

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> FusionWeights:
        """Weights [B, M].

        Raises:
            FusionError: where `shares` is not one positive number per modality.
        """
        found, aux = collect_signals(self.signals, inputs, train=train)
        if not self.shares:
            return FusionWeights(uniform_weights(inputs.present), aux, found)
        if len(self.shares) != len(inputs.modalities) or min(self.shares) <= 0:
            raise FusionError(
                f"scheduler.shares is {self.shares}: give one positive number for each of "
                f"{list(inputs.modalities)}"
            )
        logs = jnp.log(jnp.asarray(self.shares, jnp.float32))
        weights = masked_softmax(jnp.broadcast_to(logs[None], inputs.present.shape), inputs.present)
        return FusionWeights(weights, aux, found)

    @classmethod
    def example(cls) -> "ConstantScheduler":
        """A small instance for the conformance tests."""
        return cls()
