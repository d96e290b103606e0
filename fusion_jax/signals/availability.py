"""How much of the input is there? The share of modalities that are present."""

import flax.linen as nn
import jax.numpy as jnp

from fusion_jax.types import SchedulerInput, Signal


class Availability(nn.Module):
    """Number present over number of modalities, the same for every modality of an example.

    Which of them are absent need not be said: a scheduler gives those no weight whatever it is
    told. How many are left changes how much the others can be trusted to correct one.
    """

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> Signal:
        """`Signal.value` is the share [B, M], in [0, 1]."""
        share = jnp.mean(inputs.present, axis=-1, keepdims=True, dtype=jnp.float32)
        value = jnp.broadcast_to(share, inputs.present.shape)
        return Signal(value=value, aux_loss=jnp.zeros(value.shape[0]))

    @classmethod
    def example(cls) -> "Availability":
        """A small instance for the conformance tests."""
        return cls()
