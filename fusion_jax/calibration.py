"""How far a stated confidence can be trusted: on the host, from per-example records.

All of it is in float64 and depends on no order of the examples: of examples with one and the same
confidence none comes first, each counts the mean correctness of them all. The equal-width
calibration error, which every evaluation reports, is in `fusion_jax.metrics`.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import softmax

from fusion_jax.errors import FusionError
from fusion_jax.metrics import BINS, confidence_bins, separation

TEMPERATURES = (1e-3, 1e3)
# What rounding in single precision may add to a confidence, and to a sum of probabilities.
ROUNDING = 1e-6
SUM_ROUNDING = 1e-3


class NoTemperature(FusionError):
    """No temperature is best for the examples it was to be fitted on."""


class Reliability(NamedTuple):
    """A reliability diagram over equal-width bins of (0, 1], each holding its upper edge.

    Attributes:
        examples: Int[bins], how many are in each bin.
        confidence: [bins] in [0, 1], their mean confidence; NaN where the bin is empty.
        accuracy: [bins] in [0, 1], their accuracy; NaN where the bin is empty.
    """

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def adaptive_calibration_error(
    confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"], *, bins: int = BINS
) -> float:
    """Mean gap between confidence and accuracy over equal-mass bins, weighted by bin size.

    In the order of confidence, the examples are cut into `bins` runs whose sizes differ by at most
    one, the larger first. Examples of one confidence may fall on both sides of a cut; each counts
    the mean correctness of them all, which is what a bin holds on average over their orders. With
    fewer than a few dozen examples in a bin, chance alone opens gaps: with one in each bin the
    result is the mean of |correct - confidence|, however well calibrated the model is.

    Args:
        confidence: [N] in [0, 1], of the predicted class. (Nixon et al. also average over all the
            other classes; this is their adaptive binning on the predicted one.)
        correct: [N], 0 or 1.
        bins: number of bins, at least 1.

    Returns:
        In [0, 1].

    Raises:
        FusionError: for no examples, records of other lengths or ranges.

    References:
        Nguyen and O'Connor, Posterior calibration and exploratory analysis for natural language
        processing models, EMNLP 2015, arXiv 1508.05154 (adaptive binning); Nixon et al., Measuring
        Calibration in Deep Learning, CVPR workshops 2019, arXiv 1904.01685 (ACE).
    """
    ordered, share = _tied(*_records(confidence, correct, stated=True))
    gaps = [part.sum() for part in np.array_split(share - ordered, _at_least_one(bins))]
    return math.fsum(map(abs, gaps)) / len(ordered)


def reliability(
    confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"], *, bins: int = BINS
) -> Reliability:
    """The bins behind `fusion_jax.metrics.expected_calibration_error`, for a diagram.

    That error is the mean of |accuracy - confidence| over the bins, weighted by examples.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], 0 or 1.
        bins: number of bins over (0, 1], at least 1.

    Raises:
        FusionError: for no examples, records of other lengths or ranges.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599, figure 1.
    """
    confidence, correct = _records(confidence, correct, stated=True)
    number = _at_least_one(bins)
    index = confidence_bins(confidence, number)
    count = np.bincount(index, minlength=number)
    sums = [np.bincount(index, weights=part, minlength=number) for part in (confidence, correct)]
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: an empty bin.
        return Reliability(count, sums[0] / count, sums[1] / count)


def failure_auroc(
    confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"]
) -> float | None:
    """Probability that a right prediction is more confident than a wrong one, ties counting half.

    Args:
        confidence: [N], any score that grows with certainty: only its order counts.
        correct: [N], 0 or 1.

    Returns:
        In [0, 1], 0.5 where confidence tells nothing; None where all are right or all are wrong.

    Raises:
        FusionError: for no examples, records of other lengths or ranges.

    References:
        Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution
        Examples in Neural Networks, ICLR 2017, arXiv 1610.02136.
    """
    confidence, correct = _records(confidence, correct)
    right = correct == 1
    if right.all() or not right.any():
        return None
    return separation(confidence[right], confidence[~right])


def risk_coverage(
    confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Error rate of the most confident examples, for every number of them.

    risk_i = (wrong ones among the i most confident) / i. Where i cuts through examples of one
    confidence, each of these counts the mean error of them all: the mean over all their orders.

    Args:
        confidence: [N], any score that grows with certainty: only its order counts.
        correct: [N], 0 or 1.

    Returns:
        Coverage [N] = 1/N, 2/N, ..., 1 and risk [N] in [0, 1]; the last risk is the error rate.

    Raises:
        FusionError: for no examples, records of other lengths or ranges.

    References:
        Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017, arXiv
        1705.08500.
    """
    _, share = _tied(*_records(confidence, correct))
    kept = np.arange(1, len(share) + 1)
    return kept / len(share), np.cumsum(1 - share[::-1]) / kept


def aurc(confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"]) -> float:
    """Area under the risk-coverage curve: the mean of `risk_coverage`'s N risks.

    It mixes two things, how often the model is wrong and whether it knows when; `excess_aurc` is
    the second alone.

    Args:
        confidence: [N], any score that grows with certainty: only its order counts.
        correct: [N], 0 or 1.

    Returns:
        In [0, 1], the lower the better; the error rate where confidence tells nothing.

    Raises:
        FusionError: for no examples, records of other lengths or ranges.

    References:
        Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural
        Classifiers, ICLR 2019, arXiv 1805.08206.
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def excess_aurc(confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"]) -> float:
    """`aurc` minus the least that the same predictions allow, with every wrong one put last.

    Args:
        confidence: [N], any score that grows with certainty: only its order counts.
        correct: [N], 0 or 1.

    Returns:
        In [0, 1], 0 where every right prediction is more confident than every wrong one.

    Raises:
        FusionError: for no examples, records of other lengths or ranges.

    References:
        Geifman, Uziel and El-Yaniv, ICLR 2019, arXiv 1805.08206. The least area is summed exactly;
        they approximate it by r + (1 - r) log(1 - r), r the error rate.
    """
    return aurc(confidence, correct) - aurc(correct, correct)


def fit_temperature(logits: Float[np.ndarray, "n k"], target: Int[np.ndarray, " n"]) -> float:
    """The T for which softmax(logits / T) has the smallest mean negative log-likelihood.

    The likelihood is convex in 1 / T, so its slope has one root at most; this finds it over log T
    in [log 0.001, log 1000]. Fit on examples that no number is reported on.

    Args:
        logits: [N, K], finite.
        target: Int[N] in [0, K).

    Returns:
        T > 0: above 1 where the model is too sure of itself, below 1 where it is not sure enough.

    Raises:
        NoTemperature: where no T in the range is best: every prediction is right (the surer the
            better), or the logits tell nothing of the target (the less sure the better; always so
            for one class).
        FusionError: for no examples, other shapes or ranges.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599, section
        4.2.
    """
    logits, target = _by_class(logits, target, what="logits")
    # Against the target's own logit: exact where the target wins, and as good as the logits.
    gap = logits - np.take_along_axis(logits, target[:, None], axis=1)

    def slope(log_temperature: float) -> float:
        probability = softmax(gap * math.exp(-log_temperature), axis=1)
        return float(np.mean(np.sum(probability * gap, axis=1)))  # By 1 / T.

    low, high = map(math.log, TEMPERATURES)
    if slope(high) >= 0:
        raise NoTemperature(
            f"no temperature up to {TEMPERATURES[1]:g} is best, as the logits tell nothing of the "
            "target: check that logits and targets belong together"
        )
    if slope(low) <= 0:
        raise NoTemperature(
            f"no temperature from {TEMPERATURES[0]:g} is best, as every prediction is right (or "
            "almost): fit it on examples that the model did not learn"
        )
    return math.exp(brentq(slope, low, high, xtol=1e-12))


def conformal_scores(
    probabilities: Float[np.ndarray, "n k"], target: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """1 - probability of the true class: [N] in [0, 1].

    Args:
        probabilities: [N, K], each row >= 0 with sum 1.
        target: Int[N] in [0, K).

    Raises:
        FusionError: for no examples, other shapes or ranges.

    References:
        Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers with Bounded Error
        Levels, JASA 2019, arXiv 1609.00451.
    """
    probabilities, target = _by_class(probabilities, target, what="probabilities")
    if probabilities.min() < 0 or np.abs(probabilities.sum(axis=1) - 1).max() > SUM_ROUNDING:
        raise FusionError("probabilities must be at least 0 and sum to 1: take softmax(logits)")
    return 1 - np.take_along_axis(probabilities, target[:, None], axis=1)[:, 0]


def conformal_threshold(scores_calibration: Float[np.ndarray, " n"], *, level: float) -> float:
    """The score up to which a class belongs to the prediction set: split conformal prediction.

    The ceil((N + 1) level)-th smallest score, with `level` taken as the decimal number it is
    written as. A new example that is exchangeable with these N then has its true class in the set
    with probability level at least, and at most level + 1 / (N + 1) where no two scores are equal.

    Args:
        scores_calibration: [N] from `conformal_scores`, of examples that were not trained on.
        level: wanted coverage, 0 < level < 1.

    Returns:
        The threshold; infinity (the set of all classes) where N < level / (1 - level).

    Raises:
        FusionError: for no scores, NaN, or another level.

    References:
        Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, Springer 2005; Lei et
        al., Distribution-Free Predictive Inference for Regression, JASA 2018, arXiv 1604.04173,
        section 2.2 (split conformal).

    Example:
        >>> conformal_threshold(np.arange(1, 10) / 10, level=0.8)
        0.8
    """
    scores = np.asarray(scores_calibration, np.float64)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise FusionError("scores are [N] numbers, at least one: see conformal_scores")
    if not 0 < level < 1:
        raise FusionError(f"the level is {level}: give the wanted coverage, above 0 and below 1")
    # In binary, (N + 1) * 0.55 of N = 99 is above 55, and the rank would be one too high.
    rank = math.ceil((len(scores) + 1) * Fraction(str(float(level))))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def conformal_coverage(
    probabilities: Float[np.ndarray, "n k"], target: Int[np.ndarray, " n"], *, threshold: float
) -> tuple[float, float]:
    """How often the set {classes with 1 - probability <= threshold} holds the true class.

    Nothing is promised where these examples are not like those of the calibration: under noise,
    with a modality missing or for other speakers, what is lost against the level is the finding.

    Args:
        probabilities: [N, K], each row >= 0 with sum 1.
        target: Int[N] in [0, K).
        threshold: from `conformal_threshold`.

    Returns:
        Coverage in [0, 1] and the mean number of classes in a set, in [0, K]; a set may be empty.

    Raises:
        FusionError: for no examples, other shapes or ranges.

    References:
        See `conformal_threshold`.
    """
    covered = conformal_scores(probabilities, target) <= threshold
    sizes = np.sum(1 - np.asarray(probabilities, np.float64) <= threshold, axis=1)
    return float(covered.mean()), float(sizes.mean())


def _tied(
    confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Confidence from low to high, and for each place the mean correctness at that confidence."""
    values, index, count = np.unique(confidence, return_inverse=True, return_counts=True)
    share = np.bincount(index, weights=correct) / count
    return np.repeat(values, count), np.repeat(share, count)


def _records(
    confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"], *, stated: bool = False
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Both in float64, checked; `stated`: confidence is compared with accuracy, not only ranked."""
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(correct):
        raise FusionError(
            f"confidence {list(confidence.shape)} and correct {list(correct.shape)} must be the "
            "records [N] of the same examples, at least one"
        )
    if not np.isin(correct, (0, 1)).all():
        raise FusionError("correct must be 0 or 1: give the confidence first, then the correctness")
    if np.isnan(confidence).any():
        raise FusionError("confidence is NaN somewhere: the model's outputs are not finite")
    if stated and (confidence.min() < -ROUNDING or confidence.max() > 1 + ROUNDING):
        raise FusionError("confidence must lie in [0, 1]: give the largest probability")
    return confidence, correct


def _by_class(
    values: Float[np.ndarray, "n k"], target: Int[np.ndarray, " n"], *, what: str
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, " n"]]:
    """Values in float64 and targets, checked."""
    values, target = np.asarray(values, np.float64), np.asarray(target)
    if values.ndim != 2 or target.shape != values.shape[:1] or not values.size:
        raise FusionError(
            f"{what} {list(values.shape)} and target {list(target.shape)} must be [N, K] and [N] "
            "of the same examples, at least one"
        )
    if not np.issubdtype(target.dtype, np.integer):
        raise FusionError(f"targets are {target.dtype}: give whole numbers, the classes")
    if target.min() < 0 or target.max() >= values.shape[1]:
        raise FusionError(
            f"targets lie in [{target.min()}, {target.max()}] and the {what} have "
            f"{values.shape[1]} classes: give targets from 0 to {values.shape[1] - 1}"
        )
    if not np.isfinite(values).all():
        raise FusionError(f"{what} must be finite: check what the model gives")
    return values, target


def _at_least_one(bins: int) -> int:
    """The number of bins, checked."""
    if bins < 1:
        raise FusionError(f"there are {bins} bins: give 1 or more")
    return bins
