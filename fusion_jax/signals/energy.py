"""How confident is the model from one modality alone? The energy of its logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.blocks.unimodal import unimodal_logits
from fusion_jax.types import SchedulerInput, Signal


class Energy(nn.Module):
    """Free energy of the prediction from each modality alone: low where a class has a high logit.

    It needs no training of its own and no label. It says how far the head's logits rise, so it
    means something once the head was trained on single modalities (`Supervised.unimodal_weight`).

    Attributes:
        temperature: T > 0 in -T log sum exp(logit / T).

    References:
        Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020, equation 4; as the
        confidence of a modality: Zhang et al., QMF, arXiv 2306.02050.
    """

    temperature: float = 1.0

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> Signal:
        """`Signal.value` is the energy [B, M], 0 on absent modalities.

        Raises:
            FusionError: where the task has no per-example prediction.
        """
        energy = unimodal_energy(inputs, self.temperature)
        value = jnp.where(inputs.present, energy, 0)
        return Signal(value=value, aux_loss=jnp.zeros(value.shape[0]))

    @classmethod
    def example(cls) -> "Energy":
        """A small instance for the conformance tests."""
        return cls()


def unimodal_energy(inputs: SchedulerInput, temperature: float) -> Float[Array, "b m"]:
    """-T log sum_k exp(logit_k / T) of what each modality alone predicts, without gradient."""
    logits = unimodal_logits(inputs, user="energy")
    return -temperature * jax.nn.logsumexp(logits / temperature, axis=-1)
