"""What objectives share: the task's loss of the fused prediction and of each modality alone."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.types import Batch, ModelOutput


def unimodal_losses(output: ModelOutput, batch: Batch, *, task: Any) -> Float[Array, "b m"]:
    """The task's loss [B, M] of what each modality predicts alone, 0 on absent ones."""
    return jnp.where(batch.present, task.loss(output.unimodal, batch.target[:, None]), 0)


def supervised_loss(
    output: ModelOutput,
    batch: Batch,
    *,
    task: Any,
    loss_weights: Float[Array, " m"],
    unimodal_weight: float,
    fused_weight: float = 1.0,
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """Loss of each row; see `fusion_jax.objectives.supervised.Supervised`.

    Args:
        output: of the model on a view.
        batch: the view; absent modalities have no loss.
        task: gives the loss of a prediction.
        loss_weights: [M], from the balancer.
        unimodal_weight: factor of the unimodal losses, >= 0; with 0 they are not computed.
        fused_weight: factor of the fused prediction's loss, >= 0.

    Returns:
        loss [B] and metrics (name -> [B]).
    """
    fused = task.loss(output.prediction, batch.target)
    unimodal = jnp.zeros_like(fused)
    if unimodal_weight:
        each = unimodal_losses(output, batch, task=task)
        unimodal = jnp.sum(each * loss_weights[None, :], axis=-1)
    loss = fused_weight * fused + unimodal_weight * unimodal + output.fusion.aux_loss
    return loss, {"task_loss": fused, "scheduler_loss": output.fusion.aux_loss}
