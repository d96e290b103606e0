"""The values that travel between layers: one type per idea, the same in training and evaluation.

Axes: B batch, M modality (order: `sorted(names)`, everywhere), D feature, N token, K class.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree


@struct.dataclass
class Batch:
    """A batch of examples; NumPy arrays on the host until it is placed on the devices.

    Attributes:
        inputs: modality name -> pytree of Array[B, ...]; rows of a missing modality hold any
            values.
        present: Bool[B, M], False where a modality is missing.
        target: pytree of Array[B, ...]; for classification Int[B].
        mask: Bool[B], False on the padding rows of a last batch.
        example_id: Int[B], stable and unique over the splits of a data set; keys all noise.
        donors: modality name -> inputs of another example for each row, for corruptions that need
            one; None where none does.
    """

    inputs: dict[str, Any]
    present: Bool[Array, "b m"]
    target: PyTree
    mask: Bool[Array, " b"]
    example_id: Int[Array, " b"]
    donors: dict[str, Any] | None = None


@struct.dataclass
class Features:
    """What an encoder returns, projected to one width D that all encoders of a model share.

    Attributes:
        pooled: [B, D].
        tokens: [B, N, D] or None. A spatial map is tokens in row-major order.
        token_mask: Bool[B, N] or None (all tokens count).
        log_variance: [B, D] or None, of a probabilistic encoder: mean over positions of
            log sigma^2.
        second_moment: [B, D] or None, of a probabilistic encoder: mean over positions of
            mu^2 + sigma^2.
        frequency_ratio: [B] or None, of the preprocessed input, where a signal asks for it.
        statistics: [B, S] or None, of the preprocessed input, where a signal asks for them
            (`fusion_jax.blocks.input_statistics`).
        grid: positions along each axis of the map that the tokens are, or None; a static value,
            whose product is N.
    """

    pooled: Float[Array, "b d"]
    tokens: Float[Array, "b n d"] | None = None
    token_mask: Bool[Array, "b n"] | None = None
    log_variance: Float[Array, "b d"] | None = None
    second_moment: Float[Array, "b d"] | None = None
    frequency_ratio: Float[Array, " b"] | None = None
    statistics: Float[Array, "b s"] | None = None
    grid: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class SchedulerInput:
    """What signals and schedulers may look at.

    Attributes:
        features: modality name -> Features.
        present: Bool[B, M].
        mask: Bool[B].
        predict: Bool[..., B, M] -> logits [..., B, K]: the model's own head on a chosen subset of
            the present modalities, in evaluation mode and with stopped gradient. None for tasks
            without a per-example prediction.
        progress: training fraction in [0, 1]; 1 in evaluation.
        frequency_ratio: [B, M] of the preprocessed inputs, or None where no signal asks for it.
        noise_level: [B, M] injected noise amplitude in units of the corruption's reference
            amplitude (0 = clean), known in training only. It may feed losses and the choice of
            clean examples, never weights.
    """

    features: dict[str, Features]
    present: Bool[Array, "b m"]
    mask: Bool[Array, " b"]
    progress: Float[Array, ""] | float
    predict: Callable[[Array], Array] | None = struct.field(pytree_node=False, default=None)
    unimodal: Float[Array, "b m k"] | None = None
    frequency_ratio: Float[Array, "b m"] | None = None
    noise_level: Float[Array, "b m"] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in the order of the M axis."""
        return tuple(sorted(self.features))

    @classmethod
    def complete(
        cls,
        codes: dict[str, Float[Array, "b d"]],
        predict: Callable[[Array], Array] | None,
        *,
        progress: Float[Array, ""] | float = 1.0,
        noise_level: Float[Array, "b m"] | None = None,
        statistics: dict[str, Float[Array, "b s"]] | None = None,
    ) -> "SchedulerInput":
        """The input for rows with every modality present and no padding, in a model of one's own.

        Args:
            codes: modality name -> features of one width D.
            predict: see the attributes; its argument may be used as factors of the modalities.
            progress: training fraction in [0, 1].
            noise_level: [B, M], in training.
            statistics: modality name -> `fusion_jax.blocks.input_statistics` of the inputs, for
                signals that read them.
        """
        rows = next(iter(codes.values())).shape[0]
        return cls(
            features={
                name: Features(pooled=code, statistics=(statistics or {}).get(name))
                for name, code in codes.items()
            },
            present=jnp.ones((rows, len(codes)), bool),
            mask=jnp.ones(rows, bool),
            progress=progress,
            predict=predict,
            noise_level=noise_level,
        )


@struct.dataclass
class Signal:
    """A per-modality reliability cue.

    Attributes:
        value: [B, M], finite; on absent modalities any finite value.
        aux_loss: [B], the loss that trains the signal itself (0 where there is none).
    """

    value: Float[Array, "b m"]
    aux_loss: Float[Array, " b"]


@struct.dataclass
class FusionWeights:
    """What a scheduler returns.

    Attributes:
        weights: [B, M], >= 0, sum 1 over the present modalities, exactly 0 on absent ones; all zero
            where nothing is present.
        aux_loss: [B], summed over the scheduler's signals and its own terms.
        signals: name -> [B, M], for logs and reports.
    """

    weights: Float[Array, "b m"]
    aux_loss: Float[Array, " b"]
    signals: dict[str, Float[Array, "b m"]]


@struct.dataclass
class ModelOutput:
    """What a model returns.

    Attributes:
        prediction: for classification logits [B, K], float32.
        unimodal: [B, M, K], the head on each modality alone (with gradient); zeros-input logits
            where the modality is absent, so mask them with `present`.
        fusion: FusionWeights.
        features: modality name -> Features.
        present: Bool[B, M], what the model was given: in training after modality dropout.
        noise_level: [B, M] injected noise as in `SchedulerInput`, or None where it is not known;
            for objectives.
    """

    prediction: PyTree
    unimodal: PyTree
    fusion: FusionWeights
    features: dict[str, Features]
    present: Bool[Array, "b m"]
    noise_level: Float[Array, "b m"] | None = None


@struct.dataclass
class TrainState:
    """Everything that training carries, and all that a checkpoint holds.

    Attributes:
        step: Int[], number of finished steps; also the data position.
        params: trained parameters.
        collections: the other Linen collections (batch statistics, scheduler state).
        opt_state: Optax state.
        balancer: state of the balancer.
        objective: state of the objective.
        key: root random key, never split and never changed.
    """

    step: Int[Array, ""]
    params: PyTree
    collections: dict[str, PyTree]
    opt_state: PyTree
    balancer: PyTree
    objective: PyTree
    key: jax.Array


Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
