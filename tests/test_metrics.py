"""Classification metrics: by hand, by an independent loop, and against scikit-learn."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from fusion_jax.metrics import (
    classification_records,
    expected_calibration_error,
    separation,
    weighted_mean,
)

records_of = jax.jit(classification_records)


def draw_logits(rows=500, classes=5, scale=3.0, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (rows, classes)).astype(np.float32)
    return logits, generator.integers(0, classes, rows)


def test_records_agree_with_scikit_learn():
    logits, target = draw_logits()
    found, probabilities = records_of(logits, target), softmax(np.float64(logits), axis=1)
    nll, correct = weighted_mean(found["nll"]), weighted_mean(found["correct"])
    assert nll == pytest.approx(log_loss(target, probabilities, labels=range(5)), rel=1e-6)
    assert correct == accuracy_score(target, probabilities.argmax(axis=1))
    assert 0 < correct < 1
    np.testing.assert_allclose(found["confidence"], probabilities.max(axis=1), atol=1e-6)


def test_records_by_hand():
    # Logits 0 and log 3 are probabilities 1/4 and 3/4.
    logits = np.float32([[0, np.log(3)], [0, np.log(3)], [7, 7]])
    found = records_of(logits, np.array([1, 0, 1]))
    np.testing.assert_array_equal(found["correct"], [1, 0, 0])
    np.testing.assert_allclose(found["confidence"], [0.75, 0.75, 0.5], atol=1e-6)
    np.testing.assert_allclose(found["nll"], np.log([4 / 3, 4, 2]), atol=1e-6)


def test_records_of_extreme_logits_are_finite():
    # log p of the loser is the difference of the logits; the probability itself underflows.
    found = records_of(np.float32([[1e4, 0], [-1e4, 1e4]]), np.array([1, 0]))
    np.testing.assert_allclose(found["nll"], [1e4, 2e4], rtol=1e-6)
    np.testing.assert_allclose(found["confidence"], [1, 1])


def test_weighted_mean_counts_each_value_as_often_as_its_weight():
    values, weights = np.float32([1, 2, 4]), np.array([0, 3, 1])
    assert weighted_mean(values) == pytest.approx(7 / 3, rel=1e-12)
    assert weighted_mean(values, weights) == np.repeat(values, weights).mean() == 2.5


def test_weighted_mean_is_in_double_precision():
    # In single precision 2^24 + 1 is 2^24.
    assert weighted_mean(np.float32([2**24, 1])) * 2 == 2**24 + 1


def loop_error(confidence, correct, bins):
    """The definition: one bin after the other, each (low, high]."""
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if i == 0:
            inside |= confidence == 0
        if inside.any():
            total += inside.sum() * abs(correct[inside].mean() - confidence[inside].mean())
    return total / len(confidence)


def test_calibration_error_by_hand():
    # Four bins, edges held by the lower one. Accuracy minus confidence, summed over each bin:
    # (0, 1/4]: 0 - 0.25; (1/4, 1/2]: 1 - 0.3 - 0.5 = 0.2; (1/2, 3/4]: 1 - 0.75 = 0.25;
    # (3/4, 1]: 1 - 0.9 - 1 = -0.9. In all 1.6 over 6 examples.
    confidence, correct = np.array([0.25, 0.3, 0.5, 0.75, 0.9, 1.0]), np.array([0, 1, 0, 1, 1, 0])
    found = expected_calibration_error(confidence, correct, bins=4)
    assert found == pytest.approx(1.6 / 6, abs=1e-9)
    # In one bin the signs cancel: 3 - 3.7.
    found = expected_calibration_error(confidence, correct, bins=1)
    assert found == pytest.approx(0.7 / 6, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 200),
    bins=st.sampled_from([1, 2, 8, 10, 15, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_calibration_error_is_that_of_the_loop(rows, bins, seed):
    generator = np.random.default_rng(seed)
    confidence, correct = generator.random(rows), generator.integers(0, 2, rows)
    found = expected_calibration_error(confidence, correct, bins=bins)
    assert found == pytest.approx(loop_error(confidence, correct, bins), abs=1e-9)
    single = expected_calibration_error(np.float32(confidence), np.float32(correct), bins=bins)
    float32 = np.float32(confidence).astype(np.float64)
    assert single == pytest.approx(loop_error(float32, correct, bins), abs=1e-6)


@pytest.mark.parametrize("bins", [4, 10, 15])
def test_calibration_error_of_confidences_on_the_edges(bins):
    # An edge belongs to the bin below it. Wrong at each edge k / bins and right just below it: in
    # the same bin the gaps 1 - k / bins and -k / bins add up.
    edges = np.arange(1, bins + 1) / bins
    confidence = np.concatenate([edges, edges - 1e-9])
    correct = np.concatenate([np.zeros(bins), np.ones(bins)])
    expected = np.abs(1 - 2 * edges).sum() / (2 * bins)
    found = expected_calibration_error(confidence, correct, bins=bins)
    assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_calibration_error_of_certainty(value):
    confidence = np.full(5, value, np.float32)
    right, wrong = np.full(5, value), np.full(5, 1 - value)
    assert expected_calibration_error(confidence, right) == 0
    assert expected_calibration_error(confidence, wrong) == 1
    assert expected_calibration_error(confidence, np.array([1, 1, 0, 0, 0])) == pytest.approx(
        abs(0.4 - value)
    )


def test_separation_is_the_area_under_the_curve_of_sklearn():
    generator = np.random.default_rng(0)
    first, second = generator.normal(1, 1, 60).round(1), generator.normal(0, 1, 90).round(1)
    truth = np.repeat([1, 0], [60, 90])
    expected = roc_auc_score(truth, np.concatenate([first, second]))
    assert separation(first, second) == pytest.approx(expected, abs=1e-12)
    assert separation(first, first) == 0.5 and separation(first + 9, second) == 1
