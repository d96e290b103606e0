"""What noise and missing modalities cost: on the host, from accuracies and per-example records.

Where a number is a ratio and its denominator is 0, the answer is None: nothing is divided by a
small constant instead. Intervals are not here; see `fusion_jax.evaluation.intervals`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr

from fusion_jax.errors import FusionError

# Below this a sum of differences of errors is rounding: one example in a million counts more.
ROUNDING = 1e-7


def macro_f1(
    predicted: Int[np.ndarray, " n"], target: Int[np.ndarray, " n"], *, num_classes: int
) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), every class counting the same.

    Classes that are neither a target nor predicted are left out; one that is never predicted
    rightly counts 0. So scikit-learn's f1_score(average="macro", zero_division=0) does it.

    Args:
        predicted: Int[N] in [0, K).
        target: Int[N] in [0, K).
        num_classes: K.

    Returns:
        In [0, 1].

    Raises:
        FusionError: for no examples, other lengths or classes outside [0, K).

    References:
        Opitz and Burst, Macro F1 and Macro F1, arXiv 1911.03347 (the mean of F1s, not the F1 of
        means).
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    if predicted.ndim != 1 or predicted.shape != target.shape or not len(target):
        raise FusionError(
            f"predicted {list(predicted.shape)} and target {list(target.shape)} must be the "
            "records [N] of the same examples, at least one"
        )
    for what, classes in (("predicted", predicted), ("target", target)):
        if not np.issubdtype(classes.dtype, np.integer):
            raise FusionError(f"{what} is {classes.dtype}: give whole numbers, the classes")
        if classes.min() < 0 or classes.max() >= num_classes:
            raise FusionError(
                f"{what} has classes in [{classes.min()}, {classes.max()}]: give num_classes and "
                f"classes from 0 to num_classes - 1 = {num_classes - 1}"
            )
    hits = np.bincount(target[predicted == target], minlength=num_classes)
    # TP + FP are predicted, TP + FN are targets.
    both = np.bincount(predicted, minlength=num_classes) + np.bincount(
        target, minlength=num_classes
    )
    return float(np.mean(2 * hits[both > 0] / both[both > 0]))


def corruption_error(
    errors: Float[np.ndarray, " s"], reference_errors: Float[np.ndarray, " s"]
) -> float | None:
    """CE = sum over severities of the error / the same sum of a reference run.

    Below 1 where this run is better. The reference is another run on the same data, such as static
    fusion; in the paper it is AlexNet, and the ratio is given in per cent.

    Args:
        errors: [S] error rates in [0, 1] of one corruption, one per severity but the clean one.
        reference_errors: [S], of the reference.

    Returns:
        At least 0; None where the reference makes no error.

    Raises:
        FusionError: for no severities, other lengths, or what is no error rate.

    References:
        Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019, arXiv 1903.12261 (CE of ImageNet-C).
    """
    errors, reference_errors = _error_rates(errors, reference_errors)
    return _ratio(math.fsum(errors), math.fsum(reference_errors))


def relative_corruption_error(
    errors: Float[np.ndarray, " s"],
    reference_errors: Float[np.ndarray, " s"],
    *,
    clean_error: float,
    reference_clean_error: float,
) -> float | None:
    """Relative CE = sum of (error - clean error) / the same sum of a reference run.

    What corruption adds, apart from how good a run is on clean inputs: below 1 where it adds less
    than to the reference, below 0 where it helps.

    Args:
        errors: [S] error rates in [0, 1] of one corruption, one per severity but the clean one.
        reference_errors: [S], of the reference.
        clean_error: error rate in [0, 1] on clean inputs.
        reference_clean_error: that of the reference.

    Returns:
        The ratio; None where corruption adds nothing to the reference's errors or takes some away
        (there is nothing to compare with, and the sign would turn round).

    Raises:
        FusionError: for no severities, other lengths, or what is no error rate.

    References:
        Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261 (relative CE of ImageNet-C).
    """
    errors, reference_errors = _error_rates(errors, reference_errors)
    clean, reference_clean = _error_rates([clean_error], [reference_clean_error])
    return _ratio(math.fsum(errors - clean), math.fsum(reference_errors - reference_clean))


def mean_corruption_error(corruption_errors: Mapping[str, float | None]) -> float | None:
    """MCE, or relative mCE: the mean over corruptions, each counting the same.

    Args:
        corruption_errors: corruption -> `corruption_error`, or `relative_corruption_error`.

    Returns:
        The mean; None where any is None, since a mean over fewer corruptions is another number.

    Raises:
        FusionError: for no corruptions.

    References:
        Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261 (mCE of ImageNet-C).
    """
    if not corruption_errors:
        raise FusionError("there is no corruption to take the mean of: give one at least")
    known = [value for value in corruption_errors.values() if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(corruption_errors) else None


def effective_robustness(
    clean: float, shifted: float, *, reference_clean: float, reference_shifted: float
) -> float:
    """(shifted - clean) - (reference_shifted - reference_clean): how much less accuracy is lost.

    The two-model form. Taori et al. subtract from `shifted` what is expected of a model with that
    clean accuracy, by a line fitted (on the logit scale) through many models. With one reference
    the line is the one of slope 1 through it: every model is expected to lose as much as the
    reference. It says little where the clean accuracies are far apart, and a model that is no
    better than chance on clean inputs has nothing to lose.

    Args:
        clean: accuracy in [0, 1] on clean inputs.
        shifted: accuracy under the shift (noise, a missing modality, other speakers).
        reference_clean: that of the reference run.
        reference_shifted: that of the reference run.

    Returns:
        In the unit of accuracy, in [-2, 2]: 0.01 is one point, above 0 the model loses less.

    References:
        Taori et al., Measuring Robustness to Natural Distribution Shifts in Image Classification,
        NeurIPS 2020, arXiv 2007.00644.
    """
    return (shifted - clean) - (reference_shifted - reference_clean)


def worst(accuracies: Mapping[str, float]) -> tuple[str, float]:
    """The condition with the lowest accuracy, and that accuracy; of equal ones the first.

    The lowest of many noisy numbers lies below what the same condition would give again; the more
    conditions and the fewer examples, the further.

    Args:
        accuracies: label of the condition -> accuracy.

    Raises:
        FusionError: for no conditions, or an accuracy that is NaN.
    """
    if not accuracies:
        raise FusionError("there is no condition to take the worst of: give one at least")
    for label, value in accuracies.items():
        if math.isnan(value):
            raise FusionError(f"the accuracy of {label} is NaN: leave it out, or evaluate it again")
    label = min(accuracies, key=lambda each: accuracies[each])
    return label, float(accuracies[label])


def change_rate(with_modality: float, without: float) -> float | None:
    """PCR = 1 - without / with: the part of the accuracy that a missing modality takes.

    Args:
        with_modality: accuracy with all modalities, in [0, 1].
        without: accuracy without the modality, in [0, 1].

    Returns:
        At most 1, below 0 where the model is better without; None where `with_modality` is 0.

    References:
        PCR of Lu et al., MWAM, arXiv 2602.22644, section 5.
    """
    return None if with_modality == 0 else 1 - without / with_modality


def shapley(
    accuracy_by_subset: Mapping[frozenset[str], float], modalities: Sequence[str]
) -> dict[str, float]:
    """Each modality's share of the accuracy: its mean gain over all orders of adding modalities.

    phi_m = sum over subsets S without m of |S|! (M - |S| - 1)! / M! (v(S with m) - v(S)). The
    shares sum to v(all) - v(none); one is below 0 where a modality does harm on the whole. Clip
    such shares before they are turned into parts of a whole.

    Args:
        accuracy_by_subset: v, for each of the 2^M subsets of modalities the accuracy when only
            these are present. The empty one too: 1 / K for K classes, by chance, or what the model
            gives with nothing present. Other subsets are not looked at.
        modalities: the M names.

    Returns:
        Modality -> share, in the unit of accuracy, names sorted.

    Raises:
        FusionError: naming a subset whose accuracy is missing or NaN, or a name given twice.

    References:
        Shapley, A value for n-person games, Contributions to the Theory of Games II, 1953.

    Example:
        >>> names = [frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")]
        >>> shapley(dict(zip(names, [0.0, 0.5, 0.25, 0.75])), ["a", "b"])
        {'a': 0.5, 'b': 0.25}
    """
    names = sorted(modalities)
    if len(set(names)) < len(names):
        raise FusionError(f"the modalities {', '.join(names)} are not all different")
    subsets = [
        frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)
    ]
    for subset in subsets:
        value = accuracy_by_subset.get(subset)
        if value is None or math.isnan(value):
            shown = "+".join(sorted(subset)) or "no modality at all"
            raise FusionError(
                f"the accuracy with {shown} is missing: Shapley shares need every subset"
            )
    shares = {}
    for name in names:
        gains = [
            (accuracy_by_subset[subset | {name}] - accuracy_by_subset[subset])
            / (len(names) * math.comb(len(names) - 1, len(subset)))
            for subset in subsets
            if name not in subset
        ]
        shares[name] = math.fsum(gains)
    return shares


def spearman(values: Float[np.ndarray, " n"], severity: Float[np.ndarray, " n"]) -> float | None:
    """Spearman's rank correlation: whether one rises with the other, on whatever scale.

    Args:
        values: [N], such as a modality's fusion weight.
        severity: [N], such as its injected noise level.

    Returns:
        In [-1, 1], ties having their mean rank; None where either is constant (N = 1 is).

    Raises:
        FusionError: for no examples, other lengths, or NaN.

    References:
        Spearman, The Proof and Measurement of Association between Two Things, American Journal of
        Psychology 1904.
    """
    values, severity = np.asarray(values, np.float64), np.asarray(severity, np.float64)
    if values.ndim != 1 or values.shape != severity.shape or not len(values):
        raise FusionError(
            f"values {list(values.shape)} and severity {list(severity.shape)} must be the records "
            "[N] of the same examples, at least one"
        )
    if np.isnan(values).any() or np.isnan(severity).any():
        raise FusionError("values or severity are NaN somewhere: leave these examples out")
    if (values == values[0]).all() or (severity == severity[0]).all():
        return None
    return float(spearmanr(values, severity).statistic)


def spearman_by_modality(
    values: Float[np.ndarray, "n m"],
    noise_level: Float[np.ndarray, "n m"],
    modalities: Sequence[str],
    *,
    present: Bool[np.ndarray, "n m"] | None = None,
) -> dict[str, float | None]:
    """`spearman` of each modality's weight, or predicted noise, against its injected noise level.

    Weights should fall with noise (towards -1), predicted noise should rise (towards 1). Within a
    condition of one severity the level is constant: give conditions joined, or a mixed one.

    Args:
        values: [N, M] fusion weights, or a signal.
        noise_level: [N, M] from the records, 0 where clean or absent.
        modalities: the M names in the order of the columns, sorted.
        present: Bool[N, M]; where given, examples that lack a modality are left out. Weights of
            the others rise there whatever the method does, at level 0: equal weights, 1 / (number
            present), would seem to fall with noise.

    Returns:
        Modality -> correlation in [-1, 1]; None where either is constant, as equal weights are, or
        where no example has all modalities.

    Raises:
        FusionError: for shapes that differ, no examples, or NaN in an example that counts.
    """
    values, noise_level = np.asarray(values), np.asarray(noise_level)
    known = np.ones(values.shape, bool) if present is None else np.asarray(present, bool)
    if values.ndim != 2 or not values.shape == noise_level.shape == known.shape:
        raise FusionError(
            f"values {list(values.shape)}, noise_level {list(noise_level.shape)} and present "
            f"{list(known.shape)} must all be [N, M]"
        )
    if values.shape[1] != len(modalities) or not len(values):
        raise FusionError(
            f"values {list(values.shape)} must have a row at least and one column for each of the "
            f"modalities {', '.join(modalities)}"
        )
    whole = known.all(axis=1)
    if not whole.any():
        return dict.fromkeys(modalities)
    return {
        name: spearman(values[whole, column], noise_level[whole, column])
        for column, name in enumerate(modalities)
    }


def _error_rates(
    errors: Float[np.ndarray, " s"] | Sequence[float],
    reference_errors: Float[np.ndarray, " s"] | Sequence[float],
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """Both in float64, checked."""
    both = np.asarray(errors, np.float64), np.asarray(reference_errors, np.float64)
    if both[0].ndim != 1 or both[0].shape != both[1].shape or not len(both[0]):
        raise FusionError(
            f"errors {list(both[0].shape)} and reference errors {list(both[1].shape)} must be [S] "
            "of the same severities, at least one"
        )
    if not all(((0 <= each) & (each <= 1)).all() for each in both):
        raise FusionError("an error rate lies outside [0, 1]: give 1 - accuracy")
    return both


def _ratio(over: float, under: float) -> float | None:
    """The quotient, None where `under` is not above 0."""
    return over / under if under > ROUNDING else None
