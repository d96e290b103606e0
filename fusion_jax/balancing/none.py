"""No balancing: every modality is trained as its gradient says."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.types import Batch, ModelOutput


@dataclasses.dataclass
class NoBalancer:
    """The neutral balancer: all weights and scales are 1. It shows the protocol in full.

    A balancer may have more attributes (fields, properties, methods). `site`: where `update_scale`
    acts, "update" (the default: on the finished step of an adaptive optimiser) or "gradient" (on
    what the optimiser is given). `gradient_noise`: with site "gradient", noise in standard
    deviations of each gradient, see `fusion_jax.balancing.scale_by_modality`. `drop_rates`: a
    method (state, key) -> [M], the probability with which each modality is dropped from each
    example of a step, on top of the recipe's modality dropout.
    """

    def init(self, num_modalities: int) -> Any:
        """State before the first step; any pytree of arrays. Here: nothing."""
        return {}

    def observe(
        self, state: Any, batch: Batch, output: ModelOutput
    ) -> tuple[Float[Array, " m"], Float[Array, " m"], Any]:
        """Look at a training step and decide.

        Args:
            state: as returned by `init` or the last `observe`.
            batch: the clean view, preprocessed, with its presence and mask.
            output: the model's output on the objective's first view, with stopped gradient; its
                `present` is after modality dropout.

        Returns:
            loss_weights [M] of the unimodal losses, update_scale [M] of the updates of
            modality-specific parameters, and the next state, whose [M] numbers are logged. Batch
            statistics must go through `fusion_jax.axes.psum`.
        """
        ones = jnp.ones(batch.present.shape[1], jnp.float32)
        return ones, ones, state

    @classmethod
    def example(cls) -> "NoBalancer":
        """A small instance for the conformance tests."""
        return cls()
