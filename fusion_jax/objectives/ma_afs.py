"""MA-AFS's objective: what teaches a scheduler whom to trust, from a clean and a corrupted view."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.axes import any_row, masked_mean
from fusion_jax.blocks.presence import masked_softmax
from fusion_jax.blocks.supervised_loss import supervised_loss, unimodal_losses
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32
from fusion_jax.types import Batch, ModelOutput

# A weight of 0 has no logarithm; below this nothing is gained by lowering it further.
SMALLEST_WEIGHT = 1e-6


@dataclasses.dataclass
class MAAFSObjective:
    """`Supervised`'s loss on the corrupted view, plus losses of the fusion weights.

    | term | of each row |
    |---|---|
    | calibration | KL(q, w), q = softmax over present m of -loss_m: weights follow who is right |
    | ranking | a modality that alone is corrupted must weigh less than when clean |
    | balance | equal weights to be kept on average: max(0, 1/2 - entropy of the mean weights) |
    | consistency | KL(clean prediction, corrupted prediction), the clean one without gradient |

    Calibration and balance are of the corrupted view, since on clean inputs training losses all go
    to 0. Ranking is max(0, w_corrupted - w_clean + margin severity w_clean), so its margin shrinks
    with the weight; severity is the noise level l as l / (1 + l). Where only the corrupted view is
    asked for (ranking and consistency 0), the clean one is not computed.

    Attributes:
        unimodal_weight: of the losses of each modality alone, >= 0.
        calibration, ranking, balance, consistency: factors of the terms, >= 0; 0 turns one off.
        margin: of the ranking, as a share of the clean weight, in [0, 1].
        temperature: of q, > 0.

    References:
        The losses of Bennett et al., MA-AFS, arXiv 2506.12733, are not public; these are ours.
    """

    unimodal_weight: float = 1.0
    calibration: float = 0.1
    ranking: float = 0.1
    balance: float = 0.01
    consistency: float = 0.1
    margin: float = 0.1
    temperature: float = 1.0

    @property
    def views(self) -> tuple[str, ...]:
        """The forward passes it needs."""
        return ("corrupted", "clean") if self.ranking or self.consistency else ("corrupted",)

    def init(self, num_modalities: int) -> Any:
        """State before the first step: nothing.

        Raises:
            FusionError: for a factor below 0.
        """
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0 or (
                field.name == "temperature" and not self.temperature
            ):
                raise FusionError(
                    f"config.objective.{field.name} is {getattr(self, field.name)}: it must be "
                    f"{'above 0' if field.name == 'temperature' else '0 or more'}"
                )
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
        """Loss of each row; see `fusion_jax.objectives.supervised.Supervised.__call__`."""
        output, batch = outputs["corrupted"], batches["corrupted"]
        loss, metrics = supervised_loss(
            output,
            batch,
            task=task,
            loss_weights=loss_weights,
            unimodal_weight=self.unimodal_weight,
        )
        terms = {}
        if self.calibration:
            losses = unimodal_losses(output, batch, task=task)
            terms["calibration"] = calibration_loss(
                output.fusion.weights, losses, output.present, temperature=self.temperature
            )
        if self.balance:
            terms["balance"] = balance_loss(output, batch.mask)
        if self.ranking:
            terms["ranking"] = ranking_loss(output, outputs["clean"], self.margin)
        if self.consistency:
            terms["consistency"] = consistency_loss(output, outputs["clean"])
        for name, value in terms.items():
            loss = loss + getattr(self, name) * value
        return loss, state, metrics | {f"{name}_loss": value for name, value in terms.items()}

    @classmethod
    def example(cls) -> "MAAFSObjective":
        """A small instance for the conformance tests."""
        return cls()


def calibration_loss(
    weights: Float[Array, "b m"],
    losses: Float[Array, "b m"],
    present: Bool[Array, "b m"] | None = None,
    *,
    temperature: float = 1.0,
) -> Float[Array, " b"]:
    """KL(q, w) over the present modalities, q = softmax(-loss / temperature) without gradient.

    Args:
        weights: [B, M] fusion weights.
        losses: [B, M], of what each modality alone predicts.
        present: Bool[B, M]; None means that all are.
        temperature: > 0.
    """
    present = jnp.ones(weights.shape, bool) if present is None else present
    share = masked_softmax(-jax.lax.stop_gradient(losses) / temperature, present)
    logs = _log(share, present) - _log(weights, present)
    return jnp.sum(jnp.where(present, share * logs, 0), axis=-1)


def balance_loss(output: ModelOutput, mask: Bool[Array, " b"]) -> Float[Array, " b"]:
    """max(0, 1/2 - entropy of the batch's mean weights / log M), the same for every row.

    The mean is over rows with everything present; without any of them, or with one modality, 0.
    """
    num = output.present.shape[-1]
    rows = mask & output.present.all(axis=-1)
    if num == 1:
        return jnp.zeros(mask.shape)
    mean = masked_mean(output.fusion.weights, rows)
    entropy = -jnp.sum(mean * jnp.log(jnp.maximum(mean, SMALLEST_WEIGHT)))
    lacking = jnp.maximum(0.5 - entropy / jnp.log(float(num)), 0)
    return jnp.broadcast_to(jnp.where(any_row(rows), lacking, 0), mask.shape)


def ranking_loss(corrupted: ModelOutput, clean: ModelOutput, margin: float) -> Float[Array, " b"]:
    """max(0, w_corrupted - w_clean + margin severity w_clean) where one modality alone is noisy.

    Counted where the same modalities are present in both views. The clean weight has no gradient:
    the noisy one must fall.
    """
    level = corrupted.noise_level
    if level is None:
        return jnp.zeros(corrupted.present.shape[0])
    noisy = (level > 0) & corrupted.present
    same = (corrupted.present == clean.present).all(axis=-1, keepdims=True)
    alone = noisy & same & (noisy.sum(axis=-1, keepdims=True) == 1)
    before = jax.lax.stop_gradient(clean.fusion.weights)
    severity = level / (1 + level)
    excess = corrupted.fusion.weights - before + margin * severity * before
    return jnp.sum(jnp.where(alone, jnp.maximum(excess, 0), 0), axis=-1)


def consistency_loss(corrupted: ModelOutput, clean: ModelOutput) -> Float[Array, " b"]:
    """KL(clean prediction, corrupted prediction) of each row, gradient to the corrupted one."""
    target = jax.nn.log_softmax(jax.lax.stop_gradient(at_least_float32(clean.prediction)))
    found = jax.nn.log_softmax(at_least_float32(corrupted.prediction))
    return jnp.sum(jnp.exp(target) * (target - found), axis=-1)


def _log(weights: Float[Array, "b m"], present: Bool[Array, "b m"]) -> Float[Array, "b m"]:
    """Logarithm of weights, 0 where absent."""
    return jnp.where(present, jnp.log(jnp.maximum(weights, SMALLEST_WEIGHT)), 0)
