"""Robustness: by hand, by brute force over orders, against scikit-learn and SciPy."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from fusion_jax.errors import FusionError
from fusion_jax.evaluation.intervals import bootstrap_weights, seed_drop_interval
from fusion_jax.robustness import (
    change_rate,
    corruption_error,
    effective_robustness,
    macro_f1,
    mean_corruption_error,
    relative_corruption_error,
    shapley,
    spearman,
    spearman_by_modality,
    worst,
)

many = settings(max_examples=60, deadline=None)
pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30)


# Macro F1


@many
@given(pairs=pairs, spare=st.integers(0, 3))
def test_macro_f1_is_that_of_scikit_learn(pairs, spare):
    predicted, target = np.array(pairs).T
    expected = f1_score(target, predicted, average="macro", zero_division=0)
    # Classes that never occur change nothing.
    found = macro_f1(predicted, target, num_classes=6 + spare)
    assert found == pytest.approx(expected, abs=1e-12)


def test_macro_f1_by_hand():
    # Class 0: 2 right, predicted 3 times, 2 targets: 4/5. Class 1: 1 right, 1 and 2: 2/3. Class 2
    # is predicted and no target, class 3 a target and never predicted: 0 both. Class 4 is absent.
    predicted, target = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 3])
    assert macro_f1(predicted, target, num_classes=5) == pytest.approx((4 / 5 + 2 / 3) / 4)
    assert macro_f1(target, target, num_classes=5) == 1
    assert macro_f1((target + 1) % 4, target, num_classes=5) == 0


@pytest.mark.parametrize(
    "predicted, target, problem",
    [
        ([], [], "at least one"),
        ([0, 1], [0], "same examples"),
        ([0, 3], [0, 1], "predicted has classes"),
        ([0, 1], [-1, 1], "target has classes"),
        ([0.0, 1.0], [0, 1], "whole numbers"),
    ],
)
def test_macro_f1_refuses_what_is_no_class(predicted, target, problem):
    with pytest.raises(FusionError, match=problem):
        macro_f1(np.array(predicted), np.array(target), num_classes=3)


# Corruption errors


def test_corruption_error_by_hand():
    # Sums of errors, not a mean of ratios: (.1 + .2 + .3) / (.2 + .2 + .8).
    errors, reference = np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.2, 0.8])
    assert corruption_error(errors, reference) == pytest.approx(0.5, abs=1e-12)
    assert corruption_error(reference, reference) == 1
    assert corruption_error(np.zeros(3), reference) == 0
    assert corruption_error(errors, np.zeros(3)) is None


def test_relative_corruption_error_by_hand():
    # (.2 + .4 - 2 * .1) / (.3 + .9 - 2 * .2) = .4 / .8.
    errors, reference = np.array([0.2, 0.4]), np.array([0.3, 0.9])
    clean = {"clean_error": 0.1, "reference_clean_error": 0.2}
    found = relative_corruption_error(errors, reference, **clean)
    assert found == pytest.approx(0.5, abs=1e-12)
    # Worse than the reference everywhere, yet corruption adds half as much.
    worse = relative_corruption_error(
        np.array([0.95, 1.0]), np.array([0.2, 0.3]), clean_error=0.9, reference_clean_error=0.1
    )
    assert worse == pytest.approx(0.15 / 0.3, abs=1e-12)
    # Corruption that helps is below 0.
    helped = relative_corruption_error(np.array([0.0, 0.1]), reference, **clean)
    assert helped == pytest.approx(-0.1 / 0.8, abs=1e-12)


def test_a_reference_that_loses_nothing_gives_no_relative_error():
    # .3 - .2 + .1 - .2 is -3e-17 in binary, and no loss.
    assert 0.3 - 0.2 + 0.1 - 0.2 != 0
    errors, reference = np.array([0.2, 0.4]), np.array([0.3, 0.1])
    for reference_clean_error in (0.2, 0.5):
        found = relative_corruption_error(
            errors, reference, clean_error=0.1, reference_clean_error=reference_clean_error
        )
        assert found is None
    # Errors in single precision are such rounding too; a loss of one in a hundred thousand is not.
    single = reference.astype(np.float32)
    rounded = relative_corruption_error(
        errors, single, clean_error=0.1, reference_clean_error=float(np.float32(0.2))
    )
    assert rounded is None
    small = relative_corruption_error(
        errors, reference + 1e-5, clean_error=0.1, reference_clean_error=0.2
    )
    assert small == pytest.approx(0.4 / 2e-5, rel=1e-6)


@many
@given(
    table=st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=6),
    clean=st.floats(0, 1),
)
def test_relative_error_without_clean_error_is_the_plain_one(table, clean):
    errors, reference = np.array(table).T
    plain = corruption_error(errors, reference)
    found = relative_corruption_error(errors, reference, clean_error=0, reference_clean_error=0)
    assert found == plain
    same = relative_corruption_error(
        reference, reference, clean_error=clean, reference_clean_error=clean
    )
    assert same is None or same == 1


def test_the_mean_over_corruptions_counts_each_the_same():
    noise = corruption_error(np.array([0.1]), np.array([0.2]))
    blur = corruption_error(np.array([0.9, 0.9, 0.9]), np.array([0.6, 0.6, 0.6]))
    assert mean_corruption_error({"noise": noise, "blur": blur}) == pytest.approx(1, abs=1e-12)
    assert mean_corruption_error({"noise": noise, "none": None}) is None
    with pytest.raises(FusionError, match="no corruption"):
        mean_corruption_error({})


@pytest.mark.parametrize(
    "errors, reference, problem",
    [
        ([], [], "at least one"),
        ([0.1, 0.2], [0.1], "same severities"),
        ([0.1], [1.2], "1 - accuracy"),
        ([np.nan], [0.2], "1 - accuracy"),
        ([-0.1], [0.2], "1 - accuracy"),
    ],
)
def test_what_is_no_error_rate_is_refused(errors, reference, problem):
    with pytest.raises(FusionError, match=problem):
        corruption_error(np.array(errors), np.array(reference))
    with pytest.raises(FusionError, match=problem):
        relative_corruption_error(
            np.array(errors), np.array(reference), clean_error=0.1, reference_clean_error=0.1
        )


def test_a_clean_accuracy_of_95_per_cent_is_no_error_rate():
    with pytest.raises(FusionError, match="1 - accuracy"):
        relative_corruption_error(
            np.array([0.1]), np.array([0.1]), clean_error=95, reference_clean_error=0.1
        )


# Differences, the worst, what a modality takes


def test_effective_robustness_is_the_difference_of_the_drops():
    # It loses 10 points where the reference loses 30.
    reference = {"reference_clean": 0.9, "reference_shifted": 0.6}
    assert effective_robustness(0.8, 0.7, **reference) == pytest.approx(0.2, abs=1e-12)
    assert effective_robustness(0.9, 0.6, **reference) == 0
    # Equally good on clean inputs: the difference under the shift.
    assert effective_robustness(0.9, 0.5, **reference) == pytest.approx(-0.1, abs=1e-12)


def test_the_worst_condition_and_its_accuracy():
    accuracies = {"clean": 0.9, "noise/audio/1": 0.2, "missing/image": 0.2, "noise/image/1": 0.5}
    assert worst(accuracies) == ("noise/audio/1", 0.2)
    assert worst({"clean": np.float32(1)}) == ("clean", 1.0)
    with pytest.raises(FusionError, match="no condition"):
        worst({})
    with pytest.raises(FusionError, match="noise/audio/1 is NaN"):
        worst({"clean": 0.9, "noise/audio/1": math.nan})


def test_change_rate_by_hand():
    assert change_rate(0.8, 0.6) == pytest.approx(0.25, abs=1e-12)
    assert change_rate(0.8, 0.0) == 1
    assert change_rate(0.5, 0.75) == -0.5
    assert change_rate(0.0, 0.5) is None


def test_change_rate_is_what_the_experiments_report():
    generator = np.random.default_rng(0)
    full = (generator.random((3, 4000)) < 0.8).astype(np.float32)
    part = full * (generator.random(full.shape) < 0.7)
    low, high = seed_drop_interval(part, full, bootstrap_weights({}, num=4000))
    found = change_rate(full.mean(dtype=np.float64), part.mean(dtype=np.float64))
    assert low < found < high and high - low < 0.1
    assert found == pytest.approx(0.3, abs=0.03)


# Shapley shares


def draw_accuracies(num, seed):
    """Modality names and an accuracy for every subset of them."""
    names = ["acoustic", "depth", "image", "motion", "text"][:num]
    generator = np.random.default_rng(seed)
    subsets = [
        frozenset(chosen)
        for size in range(num + 1)
        for chosen in itertools.combinations(names, size)
    ]
    return names, {subset: float(generator.random()) for subset in subsets}


@many
@given(num=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_shapley_is_the_mean_gain_over_all_orders(num, seed):
    names, accuracy = draw_accuracies(num, seed)
    gains = {name: [] for name in names}
    for order in itertools.permutations(names):
        for place, name in enumerate(order):
            before, after = frozenset(order[:place]), frozenset(order[: place + 1])
            gains[name].append(accuracy[after] - accuracy[before])
    found = shapley(accuracy, names[::-1])
    assert list(found) == names
    assert found == pytest.approx({name: np.mean(gains[name]) for name in names}, abs=1e-12)
    # Together they are the whole gain over chance.
    whole = accuracy[frozenset(names)] - accuracy[frozenset()]
    assert math.fsum(found.values()) == pytest.approx(whole, abs=1e-12)


def test_shapley_by_hand():
    # Chance 0.1; audio alone 0.4, image alone 0.8, both 0.9. Audio adds 0.3 first and 0.1 last.
    accuracy = {
        frozenset(): 0.1,
        frozenset({"audio"}): 0.4,
        frozenset({"image"}): 0.8,
        frozenset({"audio", "image"}): 0.9,
    }
    found = shapley(accuracy, ("audio", "image"))
    assert found == pytest.approx({"audio": 0.2, "image": 0.6}, abs=1e-12)
    # Subsets with other modalities are not looked at.
    assert shapley({**accuracy, frozenset({"audio", "text"}): 9.0}, ("audio", "image")) == found
    assert shapley(accuracy, ["image"]) == pytest.approx({"image": 0.7}, abs=1e-12)
    assert shapley(accuracy, []) == {}


def test_modalities_that_do_the_same_share_and_one_that_does_nothing_has_none():
    names, accuracy = draw_accuracies(3, seed=1)
    # Text changes nothing; acoustic and image are redundant: either gives all there is.
    names = [*names[:2], "text"]
    twins = {"acoustic", "depth"}
    for size in range(4):
        for chosen in map(frozenset, itertools.combinations(names, size)):
            accuracy[chosen] = 0.9 if chosen & twins else 0.25
    found = shapley(accuracy, names)
    assert found == pytest.approx({"acoustic": 0.325, "depth": 0.325, "text": 0}, abs=1e-12)


@pytest.mark.parametrize(
    "gone, shown",
    [
        ((), "no modality at all"),
        (("image", "depth"), r"depth\+image"),
        (("depth",), "with depth "),
    ],
)
@pytest.mark.parametrize("value", [None, math.nan])
def test_a_missing_subset_is_named(gone, shown, value):
    names, accuracy = draw_accuracies(3, seed=0)
    if value is None:
        del accuracy[frozenset(gone)]
    else:
        accuracy[frozenset(gone)] = value
    with pytest.raises(FusionError, match=shown) as error:
        shapley(accuracy, names)
    assert "\n" not in str(error.value)


def test_a_modality_named_twice_is_refused():
    _, accuracy = draw_accuracies(1, seed=0)
    with pytest.raises(FusionError, match="not all different"):
        shapley(accuracy, ["acoustic", "acoustic"])


# Rank correlation


def test_spearman_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6.
    assert spearman(np.array([0.1, 0.2, 0.3, 9.0]), np.array([2, 1, 40, 3])) == pytest.approx(0.6)
    # With ties: ranks 1.5 1.5 3 against 1 2 3 have covariance 1.5, variances 1.5 and 2.
    found = spearman(np.array([0.5, 0.5, 1]), np.array([0, 1, 2]))
    assert found == pytest.approx(1.5 / math.sqrt(1.5 * 2), abs=1e-12)
    assert spearman(np.arange(5) ** 3, np.exp(np.arange(5))) == pytest.approx(1, abs=1e-12)


@many
@given(rows=st.integers(2, 40), seed=st.integers(0, 2**32 - 1))
def test_spearman_is_that_of_scipy_or_nothing(rows, seed):
    generator = np.random.default_rng(seed)
    values, severity = generator.integers(0, 4, (2, rows)) / 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = float(spearmanr(values, severity).statistic)
    found = spearman(values.astype(np.float32), severity)
    assert math.isnan(expected) if found is None else found == pytest.approx(expected, abs=1e-12)
    assert (found is None) == (len(set(values)) == 1 or len(set(severity)) == 1)


def test_constant_values_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spearman(np.full(3, 0.1), np.arange(3)) is None
        assert spearman(np.arange(3), np.zeros(3)) is None
        assert spearman(np.array([1.0]), np.array([2.0])) is None


@pytest.mark.parametrize(
    "values, severity, problem",
    [([], [], "at least one"), ([1, 2], [1], "same examples"), ([1, np.nan], [1, 2], "NaN")],
)
def test_damaged_values_are_refused(values, severity, problem):
    with pytest.raises(FusionError, match=problem):
        spearman(np.array(values), np.array(severity))


def test_weights_fall_and_predicted_noise_rises_with_the_level_of_each_modality():
    generator = np.random.default_rng(0)
    level = generator.random((400, 2))
    # Columns are not mixed up: audio's weight follows audio's noise alone.
    weights = np.stack([1 / (1 + level[:, 0]), generator.random(400)], axis=1)
    found = spearman_by_modality(weights, level, ("audio", "image"))
    assert found["audio"] == pytest.approx(-1, abs=1e-12)
    assert abs(found["image"]) < 0.2
    predicted = level**2 + generator.normal(0, 0.02, level.shape)
    noisy = spearman_by_modality(predicted, level, ("audio", "image"))
    assert 0.9 < min(noisy.values()) < 1


def test_examples_that_lack_a_modality_are_left_out():
    # Clean, either one missing, then noise on audio and on image.
    level = np.array([[0, 0], [0, 0], [0, 0], [1, 0], [2, 0], [0, 1], [0, 2]])
    present = np.ones((7, 2), bool)
    present[1, 0] = present[2, 1] = False
    names = ("audio", "image")
    equal = present / present.sum(axis=1, keepdims=True)
    # Equal weights know nothing of noise, though 1 where alone and 0 where absent are not constant.
    assert None not in spearman_by_modality(equal, level, names).values()
    both_none = {"audio": None, "image": None}
    assert spearman_by_modality(equal, level, names, present=present) == both_none
    falling = np.where(present, 1 - level / 10, np.nan)
    found = spearman_by_modality(falling, level, names, present=present)
    assert found == pytest.approx({"audio": -1, "image": -1}, abs=1e-12)
    with pytest.raises(FusionError, match="NaN"):
        spearman_by_modality(falling, level, names)
    never = present & (np.arange(7) % 2 == np.arange(2)[:, None]).T
    assert spearman_by_modality(falling, level, names, present=never) == both_none


@pytest.mark.parametrize(
    "shapes, names, problem",
    [
        (((3, 2), (3, 1), (3, 2)), "ab", "must all be"),
        (((3, 2), (3, 2), (2, 2)), "ab", "must all be"),
        (((3,), (3,), (3,)), "a", "must all be"),
        (((3, 2), (3, 2), (3, 2)), "abc", "one column for each"),
        (((0, 2), (0, 2), (0, 2)), "ab", "a row at least"),
    ],
)
def test_shapes_by_modality_are_checked(shapes, names, problem):
    values, level, present = map(np.ones, shapes)
    with pytest.raises(FusionError, match=problem):
        spearman_by_modality(values, level, list(names), present=present)
