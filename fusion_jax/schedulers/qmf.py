"""QMF's weighting: more weight to the modality that predicts with more confidence alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fusion_jax.blocks.collect_signals import collect_signals
from fusion_jax.blocks.presence import masked_softmax
from fusion_jax.signals.energy import Energy
from fusion_jax.types import FusionWeights, SchedulerInput


def _default_signals() -> tuple[nn.Module, ...]:
    return (Energy(),)


class QMFScheduler(nn.Module):
    """w = softmax over present modalities of -scale x signal, the signal without gradient.

    The scale is learned by the task's loss and starts at 0, so weighting starts static. The rank
    loss of the paper, which ties confidence to the history of an example's loss, is an objective:
    `fusion_jax.objectives.ranked_confidence.RankedConfidence`.

    Attributes:
        signals: each larger = less reliable; one scale for each.

    References:
        Zhang et al., Provable Dynamic Fusion for Low-Quality Multimodal Data, arXiv 2306.02050. The
        paper multiplies unimodal logits by a fixed tenth of the confidence; fusion weights that
        sum to 1, and the learned scale, are ours.
    """

    signals: tuple[nn.Module, ...] = dataclasses.field(default_factory=_default_signals)

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> FusionWeights:
        """Weights [B, M], with the signals' values and losses."""
        found, aux = collect_signals(self.signals, inputs, train=train)
        scales = self.param("scales", nn.initializers.zeros, (len(self.signals),))
        values = jax.lax.stop_gradient(jnp.stack(list(found.values())))
        weights = masked_softmax(-jnp.einsum("s,sbm->bm", scales, values), inputs.present)
        return FusionWeights(weights, aux, found)

    @classmethod
    def example(cls) -> "QMFScheduler":
        """A small instance for the conformance tests."""
        return cls()
