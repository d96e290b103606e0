"""Calibration: by hand, by brute force over orders of ties, against scikit-learn, by simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss, roc_auc_score

from fusion_jax.calibration import (
    adaptive_calibration_error,
    aurc,
    conformal_coverage,
    conformal_scores,
    conformal_threshold,
    excess_aurc,
    failure_auroc,
    fit_temperature,
    reliability,
    risk_coverage,
)
from fusion_jax.errors import FusionError
from fusion_jax.metrics import classification_records, expected_calibration_error

# Few values, so that ties are common.
records = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 1)),
    min_size=1,
    max_size=6,
)
many = settings(max_examples=60, deadline=None)


def draw(rows=200, seed=0):
    generator = np.random.default_rng(seed)
    confidence = generator.random(rows).astype(np.float32)
    return confidence, (generator.random(rows) < confidence).astype(np.float32)


def orders(pairs):
    """Every order of the examples in which confidence does not rise, each pair (value, right)."""
    for permuted in itertools.permutations(pairs):
        if all(a[0] >= b[0] for a, b in itertools.pairwise(permuted)):
            yield permuted


def average(values):
    values = list(values)
    return sum(values) / len(values)


# Equal-mass bins


def test_adaptive_error_by_hand():
    # Sorted: .2 wrong, .4 right, .6 wrong | .8 right, .9 right. Sums of correct - confidence are
    # 1 - 1.2 = -0.2 and 2 - 1.7 = 0.3: 0.5 over 5 examples.
    confidence, correct = np.array([0.9, 0.2, 0.6, 0.8, 0.4]), np.array([1, 0, 0, 1, 1])
    found = adaptive_calibration_error(confidence, correct, bins=2)
    assert found == pytest.approx(0.1, abs=1e-12)
    # One bin: the signs cancel, 3 - 2.9. A bin each: .2 + .6 + .6 + .2 + .1.
    assert adaptive_calibration_error(confidence, correct, bins=1) == pytest.approx(0.02, abs=1e-12)
    assert adaptive_calibration_error(confidence, correct, bins=5) == pytest.approx(0.34, abs=1e-12)
    # Bins that get no example change nothing.
    assert adaptive_calibration_error(confidence, correct, bins=9) == pytest.approx(0.34, abs=1e-12)


@many
@given(rows=st.integers(1, 120), bins=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_adaptive_error_without_ties_is_that_of_a_plain_loop(rows, bins, seed):
    generator = np.random.default_rng(seed)
    confidence, correct = generator.random(rows), generator.integers(0, 2, rows)
    pairs, total, start = sorted(zip(confidence, correct, strict=True)), 0.0, 0
    for number in range(bins):
        size = rows // bins + (number < rows % bins)
        total += abs(sum(right - value for value, right in pairs[start : start + size]))
        start += size
    assert start == rows
    found = adaptive_calibration_error(confidence, correct, bins=bins)
    assert found == pytest.approx(total / rows, abs=1e-12)


@many
@given(pairs=records, bins=st.integers(1, 4))
def test_a_tied_example_counts_as_it_does_on_average_over_the_orders(pairs, bins):
    # In each bin, the sum of correct - confidence is averaged over all orders of the ties.
    sums = [
        [part.sum() for part in np.array_split([r - c for c, r in reversed(order)], bins)]
        for order in orders(pairs)
    ]
    expected = np.abs(np.mean(sums, axis=0)).sum() / len(pairs)
    confidence, correct = np.array(pairs).T
    found = adaptive_calibration_error(confidence, correct, bins=bins)
    assert found == pytest.approx(expected, abs=1e-12)


def test_adaptive_error_is_small_where_confidence_is_honest_and_large_where_it_is_not():
    confidence, correct = draw(rows=50_000)
    assert adaptive_calibration_error(confidence, correct) < 0.01
    # Twice as sure as it should be, up to 1: the mean gap of min(2c, 1) to c over c in (0, 1) is
    # 1/8 + 1/8.
    boast = np.minimum(2 * confidence, 1)
    assert adaptive_calibration_error(boast, correct) == pytest.approx(1 / 4, abs=0.01)


@pytest.mark.parametrize("measure", [adaptive_calibration_error, aurc, excess_aurc, failure_auroc])
def test_the_order_of_the_examples_changes_no_bit(measure):
    confidence, correct = draw()
    confidence = confidence.round(1)
    shuffled = np.random.default_rng(1).permutation(len(correct))
    assert measure(confidence, correct) == measure(confidence[shuffled], correct[shuffled])


# The diagram


def test_reliability_by_hand():
    # (0, 1/4]: .2 wrong, .25 right; (1/4, 1/2]: none; (1/2, 3/4]: .6 right; (3/4, 1]: 1 wrong.
    found = reliability(np.array([0.2, 1.0, 0.6, 0.25]), np.array([0, 0, 1, 1]), bins=4)
    np.testing.assert_array_equal(found.examples, [2, 0, 1, 1])
    np.testing.assert_allclose(found.confidence, [0.225, np.nan, 0.6, 1], atol=1e-12)
    np.testing.assert_array_equal(found.accuracy, [0.5, np.nan, 1, 0])


@many
@given(rows=st.integers(1, 200), bins=st.sampled_from([1, 8, 10, 15]), seed=st.integers(0, 9999))
def test_the_diagram_adds_up_to_the_calibration_error(rows, bins, seed):
    confidence, correct = draw(rows, seed)
    # Some lie on edges.
    confidence[::3] = np.round(confidence[::3] * bins) / bins
    found = reliability(confidence, correct, bins=bins)
    full = found.examples > 0
    gaps = (found.examples * np.abs(found.accuracy - found.confidence))[full]
    expected = expected_calibration_error(confidence, correct, bins=bins)
    assert found.examples.sum() == rows
    assert gaps.sum() / rows == pytest.approx(expected, abs=1e-9)


# Failures and rejection


def test_failure_auroc_is_that_of_scikit_learn():
    confidence, correct = draw()
    confidence = confidence.round(1)
    expected = roc_auc_score(correct, confidence)
    assert failure_auroc(confidence, correct) == pytest.approx(expected, abs=1e-12)
    assert 0.6 < expected < 0.95
    assert failure_auroc(1 - confidence, correct) == pytest.approx(1 - expected, abs=1e-7)


def test_failure_auroc_needs_right_and_wrong_predictions():
    confidence = np.array([0.5, 0.7])
    assert failure_auroc(confidence, np.ones(2)) is None
    assert failure_auroc(confidence, np.zeros(2)) is None
    assert failure_auroc(confidence, np.array([False, True])) == 1


def test_risk_and_coverage_by_hand():
    # From the surest: right, wrong, right, wrong.
    confidence, correct = np.array([0.3, 0.9, 0.8, 0.5]), np.array([0, 1, 0, 1])
    coverage, risk = risk_coverage(confidence, correct)
    np.testing.assert_array_equal(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2], atol=1e-15)
    assert aurc(confidence, correct) == pytest.approx(1 / 3, abs=1e-15)
    # At best right, right, wrong, wrong: (1/3 + 2/4) / 4 = 5/24.
    assert excess_aurc(confidence, correct) == pytest.approx(1 / 3 - 5 / 24, abs=1e-15)


@many
@given(pairs=records)
def test_risk_is_the_average_over_all_orders_of_ties(pairs):
    expected = [
        average(sum(1 - right for _, right in order[:kept]) / kept for order in orders(pairs))
        for kept in range(1, len(pairs) + 1)
    ]
    confidence, correct = np.array(pairs).T
    coverage, risk = risk_coverage(confidence, correct)
    np.testing.assert_allclose(coverage * len(pairs), range(1, len(pairs) + 1), atol=1e-12)
    np.testing.assert_allclose(risk, expected, atol=1e-12)
    assert aurc(confidence, correct) == pytest.approx(average(expected), abs=1e-12)


@many
@given(pairs=records)
def test_excess_is_above_the_best_of_all_orders(pairs):
    confidence, correct = np.array(pairs).T
    best = min(
        average(sum(1 - right for _, right in order[:n]) / n for n in range(1, len(pairs) + 1))
        for order in itertools.permutations(pairs)
    )
    found = excess_aurc(confidence, correct)
    assert found == pytest.approx(aurc(confidence, correct) - best, abs=1e-12)
    assert 0 <= found <= 1
    assert excess_aurc(correct, correct) == 0


def test_the_areas_of_confidence_that_tells_nothing_and_of_the_best():
    _, correct = draw(rows=20_000)
    error = 1 - correct.mean(dtype=np.float64)
    assert aurc(np.full(len(correct), 0.7), correct) == pytest.approx(error, abs=1e-12)
    # The least area is what Geifman et al. approximate for many examples.
    limit = error + (1 - error) * math.log(1 - error)
    assert aurc(correct, correct) == pytest.approx(limit, abs=1e-4)


# Temperature


def draw_logits(temperature, rows=4000, classes=5, seed=0):
    """Logits that are right about the odds when divided by the temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (rows, classes))
    drawn = softmax(logits, axis=1).cumsum(axis=1) < generator.random((rows, 1))
    return logits * temperature, drawn.sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1, 2.5, 40])
def test_the_temperature_of_the_world_is_found_again(temperature):
    logits, target = draw_logits(temperature)
    assert fit_temperature(logits, target) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_minimises_the_likelihood_of_scikit_learn():
    logits, target = draw_logits(3.0, rows=500)

    def loss(log_temperature):
        scaled = softmax(logits / math.exp(log_temperature), axis=1)
        return log_loss(target, scaled, labels=range(5))

    expected = minimize_scalar(loss, bounds=(-3, 5), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(np.float32(logits), target)
    # The minimum of a smooth function is known to the root of the precision of its values.
    assert math.log(found) == pytest.approx(expected.x, abs=1e-6)
    assert loss(math.log(found)) < min(loss(math.log(found) + step) for step in (-1e-3, 1e-3))


def test_scaled_logits_need_a_scaled_temperature_and_shifted_ones_the_same():
    logits, target = draw_logits(1.0, rows=300)
    found = fit_temperature(logits, target)
    assert fit_temperature(logits * 7, target) == pytest.approx(7 * found, rel=1e-9)
    shift = np.random.default_rng(3).normal(0, 50, (len(target), 1))
    assert fit_temperature(logits + shift, target) == pytest.approx(found, rel=1e-9)
    assert fit_temperature(logits / found, target) == pytest.approx(1, rel=1e-9)


def test_two_classes_by_hand():
    # Logits (0, z) with z = log 9 everywhere, right 3 times of 4: the best odds are 3, so that
    # z / T = log 3 and T = 2.
    logits = np.tile([0, math.log(9)], (4, 1))
    assert fit_temperature(logits, np.array([1, 1, 0, 1])) == pytest.approx(2, rel=1e-11)


def test_targets_of_one_class_have_a_temperature_where_predictions_err():
    # As above: it is errors that bound T from below, not the number of classes among the targets.
    logits = np.log([[1, 9], [1, 9], [9, 1], [1, 9]])
    assert fit_temperature(logits, np.ones(4, int)) == pytest.approx(2, rel=1e-11)


@pytest.mark.parametrize(
    "logits, target, problem",
    [
        (np.eye(3), [0, 1, 2], "every prediction is right"),
        ([[0.0, 2.0]], [1], "every prediction is right"),
        (np.eye(3), [1, 2, 0], "tell nothing of the target"),
        (np.ones((4, 3)), [0, 1, 2, 0], "tell nothing of the target"),
        (np.ones((4, 1)), [0, 0, 0, 0], "tell nothing of the target"),
        # Right and wrong by the same margin, as often: chance.
        ([[0, 1], [0, 1]], [0, 1], "tell nothing of the target"),
        (np.zeros((0, 3)), np.zeros(0, int), "at least one"),
        ([[np.nan, 0]], [0], "finite"),
        ([[1, 0]], [2], "from 0 to 1"),
        ([[1, 0]], [-1], "from 0 to 1"),
        ([[1, 0]], [0.0], "whole numbers"),
        ([[1, 0]], [0, 1], "same examples"),
    ],
)
def test_where_no_temperature_is_best_the_error_says_why(logits, target, problem):
    with pytest.raises(FusionError, match=problem) as error:
        fit_temperature(np.array(logits, float), np.array(target))
    assert "\n" not in str(error.value)


# Conformal prediction


def test_the_threshold_by_hand():
    scores = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.4, 0.8, 0.6])
    # Of 9 scores the ceil(10 level)-th, so level 0.9 needs all of them and more needs 10.
    assert conformal_threshold(scores, level=0.5) == 0.5
    assert conformal_threshold(scores, level=0.51) == 0.6
    assert conformal_threshold(scores, level=0.9) == 0.9
    assert conformal_threshold(scores, level=0.91) == math.inf
    assert conformal_threshold(np.array([0.3]), level=0.5) == 0.3
    # Ties are counted one by one: ranks 1, 2, 3 are the same score.
    assert conformal_threshold(np.array([0.5, 0.5, 0.5, 0.8]), level=0.6) == 0.5


@pytest.mark.parametrize("percent", range(1, 100))
def test_the_rank_is_that_of_the_decimal_level(percent):
    # With 99 scores 1, ..., 99 the rank is the percentage itself; 100 * 0.55 is above 55 in binary.
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 100))
    assert conformal_threshold(scores, level=percent / 100) == percent


@pytest.mark.parametrize("num, level", [(9, 0.75), (19, 0.9), (40, 0.8)])
def test_coverage_is_what_was_promised(num, level):
    # Each trial calibrates anew and tests one new score. Its rank among the num + 1 is uniform, so
    # it is covered with probability rank / (num + 1), exactly.
    generator, trials = np.random.default_rng(0), 10_000
    scores = generator.random((trials, num + 1))
    hits = [row[-1] <= conformal_threshold(row[:-1], level=level) for row in scores]
    wanted = Fraction(str(level))
    exact = Fraction(math.ceil(wanted * (num + 1)), num + 1)
    assert wanted <= exact < wanted + Fraction(1, num + 1)
    deviation = math.sqrt(exact * (1 - exact) / trials)
    assert np.mean(hits) == pytest.approx(float(exact), abs=4 * deviation)


def test_the_sets_cover_new_examples_and_shift_breaks_it():
    # 1000 calibrations of 50, each tested on 50 others: the binomial error of both is in the mean.
    logits, target = draw_logits(3.0, rows=100_000, seed=1)
    probabilities = softmax(logits, axis=1)
    noise = np.random.default_rng(2).normal(0, 12, logits.shape)
    noisy = softmax(logits + noise, axis=1)
    plain, shifted = [], []
    for start in range(0, 100_000, 100):
        held, new = slice(start, start + 50), slice(start + 50, start + 100)
        scores = conformal_scores(probabilities[held], target[held])
        threshold = conformal_threshold(scores, level=0.8)
        plain.append(conformal_coverage(probabilities[new], target[new], threshold=threshold))
        shifted.append(conformal_coverage(noisy[new], target[new], threshold=threshold))
    (coverage, size), (lost, _) = np.mean(plain, axis=0), np.mean(shifted, axis=0)
    # A calibration's coverage varies by about sqrt(.8 .2 / 50), as does its test; 41 of 51 exactly.
    deviation = math.sqrt(2 * 0.16 / 50 / 1000)
    assert coverage == pytest.approx(41 / 51, abs=4 * deviation)
    assert 1 < size < 5
    assert lost < 0.7


def test_coverage_and_size_by_hand():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [0.5, 0.5, 0.0]])
    target = np.array([1, 0, 2])
    np.testing.assert_array_equal(conformal_scores(probabilities, target), [0.75, 0.25, 1])
    # Classes with probability 1 - threshold at least.
    assert conformal_coverage(probabilities, target, threshold=0.75) == (2 / 3, 7 / 3)
    assert conformal_coverage(probabilities, target, threshold=0.5) == (1 / 3, 4 / 3)
    assert conformal_coverage(probabilities, target, threshold=0.25) == (1 / 3, 1 / 3)
    assert conformal_coverage(probabilities, target, threshold=0.1) == (0, 0)
    assert conformal_coverage(probabilities, target, threshold=math.inf) == (1, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_example_at_the_threshold_is_covered(dtype):
    # Scores of targets and of sets must be rounded alike, or the class at the threshold falls out.
    logits, target = draw_logits(1.0, rows=99)
    probabilities = softmax(logits, axis=1).astype(dtype)
    scores = conformal_scores(probabilities, target)
    for percent in range(5, 100, 5):
        threshold = conformal_threshold(scores, level=percent / 100)
        coverage, _ = conformal_coverage(probabilities, target, threshold=threshold)
        assert coverage == percent / 99
    for row, label, score in zip(probabilities, target, scores, strict=True):
        found = conformal_coverage(row[None], np.array([label]), threshold=score)
        assert found == (1, np.sum(row >= row[label]))


# What the device records is what all of this takes; anything else is refused in one line.


def test_records_of_the_device_are_taken():
    logits, target = draw_logits(1.0, rows=300)
    found = classification_records(np.float32(logits), target)
    pair = np.asarray(found["confidence"]), np.asarray(found["correct"])
    assert 0.6 < failure_auroc(*pair) < 1
    assert adaptive_calibration_error(*pair) < 0.15
    assert aurc(*pair) < 1 - pair[1].mean()
    assert reliability(*pair).examples.sum() == 300


@pytest.mark.parametrize(
    "measure",
    [adaptive_calibration_error, reliability, failure_auroc, risk_coverage, aurc, excess_aurc],
)
@pytest.mark.parametrize(
    "confidence, correct, problem",
    [
        ([], [], "at least one"),
        ([0.5, 0.6], [1], "same examples"),
        ([[0.5]], [[1]], r"records \[N\]"),
        ([0.5, np.nan], [1, 0], "NaN"),
        ([1, 0], [0.5, 0.6], "confidence first"),
    ],
)
def test_damaged_records_are_refused(measure, confidence, correct, problem):
    with pytest.raises(FusionError, match=problem) as error:
        measure(np.array(confidence), np.array(correct))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("measure", [adaptive_calibration_error, reliability])
def test_stated_confidence_lies_between_0_and_1(measure):
    right = np.ones(1)
    for value in (-0.1, 1.1, np.inf):
        with pytest.raises(FusionError, match=r"\[0, 1\]"):
            measure(np.array([value]), right)
    measure(np.array([np.nextafter(np.float32(1), np.float32(2))]), right)  # Rounding.
    with pytest.raises(FusionError, match="0 bins"):
        measure(right, right, bins=0)


def test_confidence_that_is_only_ranked_may_be_any_score():
    confidence, correct = draw()
    logit = np.log(confidence / (1 - confidence), dtype=np.float64)
    assert aurc(logit, correct) == aurc(confidence, correct)
    assert failure_auroc(logit, correct) == failure_auroc(confidence, correct)


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, 95, math.nan])
def test_levels_outside_0_and_1_are_refused(level):
    with pytest.raises(FusionError, match="level"):
        conformal_threshold(np.array([0.5]), level=level)


def test_what_is_not_scores_or_probabilities_is_refused():
    for scores in ([], [np.nan], [[0.5]]):
        with pytest.raises(FusionError, match="scores"):
            conformal_threshold(np.array(scores), level=0.5)
    for probabilities in ([[2.0, -1.0]], [[0.5, 0.6]]):
        with pytest.raises(FusionError, match="softmax"):
            conformal_scores(np.array(probabilities), np.array([0]))
