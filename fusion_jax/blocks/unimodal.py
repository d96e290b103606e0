"""What each modality alone predicts, and measures of distributions, for signals."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
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


def subset_logits(
    inputs: SchedulerInput, subsets: Bool[np.ndarray, "s m"], *, user: str
) -> Float[Array, "s b k"]:
    """Logits of the model's head on subsets of the modalities, without gradient: [S, B, K].

    Those of a single modality are `unimodal_logits`, which others need too; `predict` is asked for
    the rest. Errors are those of `predictor_of`.
    """
    predict, single = predictor_of(inputs, user=user), subsets.sum(axis=-1) == 1
    asked = subsets[~single]
    rows = jnp.broadcast_to(asked[:, None, :], (len(asked), *inputs.present.shape))
    several = iter(at_least_float32(jax.lax.stop_gradient(predict(rows))))
    alone = unimodal_logits(inputs, user=user)
    return jnp.stack(
        [
            alone[:, subset.argmax()] if one else next(several)
            for subset, one in zip(subsets, single, strict=True)
        ]
    )


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
