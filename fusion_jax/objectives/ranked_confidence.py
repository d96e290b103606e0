"""QMF's objective: a modality may not be sure of examples that it has been wrong about so far."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fusion_jax.axes import all_rows, next_row
from fusion_jax.blocks.supervised_loss import supervised_loss, unimodal_losses
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32
from fusion_jax.types import Batch, ModelOutput

# A range of losses smaller than this is no range: all examples then rank alike.
SMALLEST_RANGE = 1e-6
# A float32 sum of more losses may not change by one more.
MOST_VISITS = 2**24


@dataclasses.dataclass
class RankedConfidence:
    """`Supervised`'s loss plus a rank loss between each row and the next of the global batch.

    loss_i = supervised_i + rank_weight sum_{m present in i and j} max(0, sign(h_im - h_jm)
    (c_im - c_jm) + |h_im - h_jm|), with j the row after i (the first after the last): the example
    with the larger history must have the smaller confidence, by at least the difference.

    * History h_im in [0, 1]: mean loss of modality m alone over the earlier visits of the example,
      between the lowest (0) and the highest (1) of these means. A visit is a row of a step in which
      the modality is present. h has no gradient. A pair counts once both examples were visited.
    * Confidence c_im = confidence_scale T log sum_k exp(logit_imk / T), of what m predicts alone:
      minus the signal `Energy`, so the loss shapes what `QMFScheduler` weighs by. A fixed scale and
      not a squashing into [0, 1], because that has no gradient where it saturates, and not a range
      of the batch, because then a row's confidence would depend on the other rows. Logits in nats
      differ by about ten, so a tenth of them is on the scale of h, and a common shift cancels.

    Padding is in no pair: of a batch with padding at its end, the last row has no partner. With
    gradient accumulation the rows of a part are paired among themselves.

    Attributes:
        rank_weight: factor of the rank loss, >= 0.
        unimodal_weight: factor of the unimodal losses, >= 0. With 0 nothing teaches the head to
            predict from one modality, and the confidence means little.
        num_examples: rows of the history, one for each `example_id` modulo this number. Ids that
            span less than it have a row each; others share rows, in silence. It costs 8 bytes for
            each row and modality.
        temperature: T > 0; that of the scheduler's `Energy`.
        confidence_scale: > 0, in units of h for each nat.
        decay: in [0, 1], what lowest and highest keep in each step of their distance from the means
            of that step's examples, inside of which they never lie. Means fall in training: with 1
            the highest would be that of the first steps for ever, and all margins would vanish.
        views: the forward pass it needs; see `Supervised`.

    References:
        Zhang et al., Provable Dynamic Fusion for Low-Quality Multimodal Data, arXiv 2306.02050; the
        loss is of Moon et al., Confidence-Aware Learning for Deep Neural Networks, arXiv
        2007.01458, who count right answers where QMF averages losses. The decay is ours.
    """

    rank_weight: float = 1.0
    unimodal_weight: float = 1.0
    num_examples: int = 65536
    temperature: float = 1.0
    confidence_scale: float = 0.1
    decay: float = 0.99
    views: tuple[str, ...] = ("corrupted",)

    def init(self, num_modalities: int) -> Any:
        """An empty history: sum and number of losses [N, M], lowest and highest mean [M].

        Raises:
            FusionError: for numbers out of range.
        """
        self._check()
        table = (self.num_examples, num_modalities)
        return {
            "loss": jnp.zeros(table),
            "visits": jnp.zeros(table, jnp.int32),
            "lowest": jnp.zeros(num_modalities),
            "highest": jnp.zeros(num_modalities),
        }

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
        output, batch = outputs[self.views[0]], batches[self.views[0]]
        supervised, metrics = supervised_loss(
            output,
            batch,
            task=task,
            loss_weights=loss_weights,
            unimodal_weight=self.unimodal_weight,
        )
        counted = batch.present & batch.mask[:, None]
        rows = jnp.mod(batch.example_id, self.num_examples)
        history, visits = _look_up(state, rows)
        energy = jax.nn.logsumexp(at_least_float32(output.unimodal) / self.temperature, axis=-1)
        confidence = self.confidence_scale * self.temperature * energy
        rank = jnp.sum(rank_losses(confidence, history, counted & (visits > 0)), axis=-1)
        losses = unimodal_losses(output, batch, task=task)
        # Asking what was read before anything is written also lets XLA write in place: without
        # this dependence it copies both tables in every step.
        counted &= jnp.isfinite(history) & (visits < MOST_VISITS)
        after = _remember(state, rows, losses, counted, decay=self.decay)
        loss = supervised + self.rank_weight * rank
        return loss, after, metrics | {"rank_loss": rank}

    def _check(self) -> None:
        """Refuse numbers out of range; `not` refuses NaN too."""
        rules = {
            "rank_weight": (0 <= self.rank_weight < math.inf, "0 or more"),
            "unimodal_weight": (0 <= self.unimodal_weight < math.inf, "0 or more"),
            "num_examples": (self.num_examples >= 1, "at least 1"),
            "temperature": (0 < self.temperature < math.inf, "above 0"),
            "confidence_scale": (0 < self.confidence_scale < math.inf, "above 0"),
            "decay": (0 <= self.decay <= 1, "in [0, 1]"),
        }
        for name, (fine, rule) in rules.items():
            if not fine:
                raise FusionError(
                    f"config.objective.{name} is {getattr(self, name)}: it must be {rule}"
                )

    @classmethod
    def example(cls) -> "RankedConfidence":
        """A small instance for the conformance tests."""
        return cls(num_examples=50)


def rank_losses(
    confidence: Float[Array, "b m"], history: Float[Array, "b m"], counted: Bool[Array, "b m"]
) -> Float[Array, "b m"]:
    """max(0, sign(h_i - h_j) (c_i - c_j) + |h_i - h_j|) of each row i and the next row j.

    Args:
        confidence: c [B, M], the larger the surer; the gradient flows through it alone.
        history: h [B, M], the larger the less reliable.
        counted: Bool[B, M]; a pair with a row that does not count has loss 0.
    """
    history = jax.lax.stop_gradient(history)
    other_confidence, other_history, other_counted = next_row((confidence, history, counted))
    difference = history - other_history
    violation = jnp.sign(difference) * (confidence - other_confidence) + jnp.abs(difference)
    return jnp.where(counted & other_counted, jnp.maximum(violation, 0), 0)


def _look_up(state: Any, rows: Int[Array, " b"]) -> tuple[Float[Array, "b m"], Int[Array, "b m"]]:
    """History [B, M] in [0, 1] of rows of the table, and their numbers of visits."""
    visits = state["visits"][rows]
    mean = state["loss"][rows] / jnp.maximum(visits, 1)
    span = jnp.maximum(state["highest"] - state["lowest"], SMALLEST_RANGE)
    history = jnp.clip((mean - state["lowest"][None, :]) / span[None, :], 0, 1)
    return history, visits


def _remember(
    state: Any,
    rows: Int[Array, " b"],
    losses: Float[Array, "b m"],
    counted: Bool[Array, "b m"],
    *,
    decay: float,
) -> Any:
    """The state after a visit of these rows; what is not finite never enters.

    Every device enters the rows of the global batch into its own copy of the table, so no table is
    ever summed over devices.
    """
    rows, losses, counted = all_rows((rows, jax.lax.stop_gradient(losses), counted))
    counted &= jnp.isfinite(losses)
    kept = state["loss"].dtype  # A scan over parts carries the state, and its types.
    loss = state["loss"].at[rows].add(jnp.where(counted, losses, 0).astype(kept))
    visits = state["visits"].at[rows].add(counted.astype(jnp.int32))
    mean = loss[rows] / jnp.maximum(visits[rows], 1)
    some = jnp.any(counted, axis=0)
    # Without a row that counts the values below are not used.
    low = jnp.min(jnp.where(counted, mean, jnp.max(mean)), axis=0)
    high = jnp.max(jnp.where(counted, mean, jnp.min(mean)), axis=0)
    lowest = jnp.minimum(low, low + decay * (state["lowest"] - low))
    highest = jnp.maximum(high, high + decay * (state["highest"] - high))
    return {
        "loss": loss,
        "visits": visits,
        "lowest": jnp.where(some, lowest, state["lowest"]).astype(kept),
        "highest": jnp.where(some, highest, state["highest"]).astype(kept),
    }
