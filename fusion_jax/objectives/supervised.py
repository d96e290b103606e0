"""The default objective: the task's loss on one view."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float

from fusion_jax.blocks.supervised_loss import supervised_loss
from fusion_jax.types import Batch, ModelOutput


@dataclasses.dataclass
class Supervised:
    """Task loss of the fused prediction, plus weighted losses of each present modality alone.

    loss_i = fused_weight task(prediction_i) + unimodal_weight sum_{present m} loss_weights_m
    task(unimodal_im) + aux_i

    Attributes:
        fused_weight: factor of the fused prediction's loss, >= 0; with 0 each modality learns by
            itself, and fusion is of finished predictions.
        unimodal_weight: factor of the unimodal losses, >= 0.
        views: the forward passes it needs; "corrupted" is the batch after the recipe's noise and
            modality dropout ("clean" would be the batch as loaded).
    """

    fused_weight: float = 1.0
    unimodal_weight: float = 0.0
    views: tuple[str, ...] = ("corrupted",)

    def init(self, num_modalities: int) -> Any:
        """State before the first step; any pytree of arrays. Here: nothing."""
        return {}

    def __call__(
        self,
        outputs: dict[str, ModelOutput],
        batches: dict[str, Batch],
        state: Any,
        *,
        task: Any,
        loss_weights: Float[Array, " m"],
    ) -> tuple[Float[Array, " b"], Any, dict[str, Float[Array, " b"]]]:
        """Loss of each row; the training step takes the mean over the rows that are not padding.

        Args:
            outputs: view -> ModelOutput.
            batches: view -> Batch (its `present` is after modality dropout).
            state: as returned by `init` or the last call.
            task: gives the loss of a prediction.
            loss_weights: [M], from the balancer.

        Returns:
            loss [B], next state, metrics (name -> [B]).
        """
        output, batch = outputs[self.views[0]], batches[self.views[0]]
        loss, metrics = supervised_loss(
            output,
            batch,
            task=task,
            loss_weights=loss_weights,
            fused_weight=self.fused_weight,
            unimodal_weight=self.unimodal_weight,
        )
        return loss, state, metrics

    @classmethod
    def example(cls) -> "Supervised":
        """A small instance for the conformance tests."""
        return cls(unimodal_weight=0.5)
