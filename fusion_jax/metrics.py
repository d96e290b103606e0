"""Classification metrics: the device records each example, the host computes from records.

Records of parts of a data set concatenate to the records of the whole, so nothing is ever a mean of
batch means, and intervals and paired tests can be computed afterwards.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.stats import rankdata

from fusion_jax.precision import at_least_float32

BINS = 15


def classification_records(
    logits: Float[Array, "b k"], target: Int[Array, " b"]
) -> dict[str, Float[Array, " b"]]:
    """Per-example facts, in float32.

    Args:
        logits: [B, K].
        target: Int[B] in [0, K).

    Returns:
        "correct" (0 or 1), "confidence" (largest probability), "nll" (natural log), "brier"
        (squared distance of the probabilities from the truth, in [0, 2]) and "predicted" (the
        class), each [B].

    References:
        Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review
        1950.
    """
    log_probabilities = jax.nn.log_softmax(at_least_float32(logits))
    chosen = jnp.take_along_axis(log_probabilities, target[:, None], axis=-1)[:, 0]
    probabilities, predicted = jnp.exp(log_probabilities), jnp.argmax(logits, axis=-1)
    truth = jax.nn.one_hot(target, logits.shape[-1], dtype=probabilities.dtype)
    return {
        "correct": (predicted == target).astype(jnp.float32),
        "confidence": jnp.max(probabilities, axis=-1),
        "nll": -chosen,
        "brier": jnp.sum((probabilities - truth) ** 2, axis=-1),
        "predicted": predicted.astype(jnp.int32),
    }


def weighted_mean(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"] | None = None
) -> float:
    """Mean of per-example values in float64, each counted `weights` >= 0 times."""
    return float(np.average(np.asarray(values, np.float64), weights=weights))


def confidence_bins(confidence: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """Number from 0 of each confidence's bin, of equal width over (0, 1]; one holds its upper edge.

    Args:
        confidence: [N] in [0, 1]; 0 falls into the first.
        bins: how many.
    """
    edges = np.ceil(np.asarray(confidence, np.float64) * bins).astype(int)
    return np.clip(edges - 1, 0, bins - 1)


def expected_calibration_error(
    confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"], *, bins: int = BINS
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by bin size.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], 0 or 1.
        bins: number of bins over (0, 1]; a bin holds its upper edge.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    index = confidence_bins(confidence, bins)
    gap = np.bincount(index, weights=np.float64(correct) - np.float64(confidence), minlength=bins)
    return float(np.abs(gap).sum() / len(index))


def separation(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " k"]) -> float:
    """Probability that a value of `first` is above one of `second`, ties counting half (AUROC).

    1 where all of `first` lie above, 0.5 where nothing tells them apart, 0 where all lie below.

    References:
        Hanley and McNeil, The meaning and use of the area under a ROC curve, Radiology 1982.
    """
    ranks = rankdata(np.concatenate([first, second]).astype(np.float64))
    above = ranks[: len(first)].sum() - len(first) * (len(first) + 1) / 2
    return float(above / (len(first) * len(second)))
