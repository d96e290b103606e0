"""What each modality alone predicts, and measures of distributions, for signals."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32
from fusion_jax.types import SchedulerInput


def predictor_of(inputs: SchedulerInput, *, user: str) -> Callable[[Array], Array]:
    """The `predict` of a scheduler's input.

    Args:
        inputs: of the scheduler.
        user: what needs it, for the message.

    Raises:
        FusionError: where the task has no per-example prediction.
    """
    if inputs.predict is None:
        raise FusionError(
            f"{user} needs a per-example prediction; this task has none: use another signal"
        )
    return inputs.predict


def unimodal_logits(inputs: SchedulerInput, *, user: str) -> Float[Array, "b m k"]:
    """Logits of the model's head on each modality alone, without gradient: [B, M, K].

    Arguments and errors are those of `predictor_of`.
    """
    if inputs.unimodal is not None:
        return at_least_float32(jax.lax.stop_gradient(inputs.unimodal))
    predict, num = predictor_of(inputs, user=user), len(inputs.modalities)
    shape = (num, *inputs.present.shape)
    alone = jnp.broadcast_to(jnp.eye(num, dtype=bool)[:, None, :], shape)
    logits = at_least_float32(jax.lax.stop_gradient(predict(alone)))
    return jnp.swapaxes(logits, 0, 1)


def entropy_share(
    logits: Float[Array, "... k"], valid: Bool[Array, "... k"] | None = None
) -> Float[Array, "..."]:
    """Entropy of softmax(logits) over its largest value, in [0, 1]; 0 with fewer than two entries.

    Args:
        logits: [..., K], finite.
        valid: Bool[..., K], False on entries that do not exist; None means that all do.
    """
    valid = jnp.ones(logits.shape, bool) if valid is None else valid
    logits = jnp.where(valid, logits, jnp.finfo(logits.dtype).min)
    logs = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.where(valid, jnp.exp(logs) * logs, 0), axis=-1)
    size = valid.sum(axis=-1)
    largest = jnp.log(jnp.maximum(size, 2).astype(logits.dtype))
    return jnp.where(size > 1, jnp.clip(entropy / largest, 0, 1), 0)


def jensen_shannon(
    first: Float[Array, "... k"], second: Float[Array, "... k"]
) -> Float[Array, "..."]:
    """Jensen-Shannon divergence of distributions over its largest value log 2, in [0, 1].

    References:
        Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 1991.
    """

    def entropy(p: Array) -> Array:
        # log of at least the smallest normal number: 0 log 0 is 0, with a finite gradient.
        return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)), axis=-1)

    divergence = entropy((first + second) / 2) - (entropy(first) + entropy(second)) / 2
    # Rounding may leave a tiny negative number.
    return jnp.clip(divergence / jnp.log(2.0), 0, 1)
