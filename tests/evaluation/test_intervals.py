"""Bootstrap: what is resampled together, whether intervals cover, and how often p errs."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_1samp

from fusion_jax.errors import FusionError
from fusion_jax.evaluation.intervals import (
    between_seeds,
    bootstrap_weights,
    holm,
    interval,
    p_value,
    seed_interval,
    seed_means,
    seed_p_values,
)


def width(pair):
    return pair[1] - pair[0]


def test_bootstrap_weights_without_clusters_draw_as_many_as_there_are():
    weights = bootstrap_weights({}, num=40, resamples=500)
    assert weights.shape == (500, 40) and (weights == np.round(weights)).all()
    np.testing.assert_array_equal(weights.sum(axis=1), 40)
    # Counts of a multinomial: mean 1, variance 1 - 1/40. Five standard errors over 500 resamples.
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=5 / np.sqrt(500))
    assert weights.var() == pytest.approx(1 - 1 / 40, rel=0.05)


def test_bootstrap_weights_are_shared_within_a_cluster():
    ids = np.array([7, 7, 3, 3, 3, 100])
    weights = bootstrap_weights({"recording": ids}, num=6, resamples=200)
    for members in ([0, 1], [2, 3, 4]):
        assert (weights[:, members] == weights[:, members[:1]]).all()
    # Three clusters are drawn with replacement: one count of each adds up to 3.
    np.testing.assert_array_equal(weights[:, [0, 2, 5]].sum(axis=1), 3)
    assert len(np.unique(weights[:, [0, 2, 5]], axis=0)) == 10  # all counts that sum to 3


def test_bootstrap_weights_of_crossed_clusters_multiply():
    # A full grid of 4 speakers and 5 images: the weights are an outer product, so every 2 x 2 minor
    # vanishes, and the factors are counts of 4 and 5 draws, so the total is 20.
    speaker, image = np.divmod(np.arange(20), 5)
    weights = bootstrap_weights({"speaker": speaker, "image": image}, num=20, resamples=300)
    grid = weights.reshape(300, 4, 5)
    minors = grid[:, :-1, :-1] * grid[:, 1:, 1:] - grid[:, :-1, 1:] * grid[:, 1:, :-1]
    assert not minors.any()
    np.testing.assert_array_equal(weights.sum(axis=1), 20)
    rows, columns = grid.sum(axis=2) / 5, grid.sum(axis=1) / 4
    np.testing.assert_allclose(rows[:, :, None] * columns[:, None], grid, atol=1e-5)
    # The two factors are drawn apart from each other.
    assert abs(np.corrcoef(rows[:, 0], columns[:, 0])[0, 1]) < 5 / np.sqrt(300)
    assert rows.var() > 0.5 and columns.var() > 0.5


def test_bootstrap_weights_depend_on_the_seed_only():
    clusters = {"a": np.arange(12) // 3}
    first = bootstrap_weights(clusters, num=12, seed=3, resamples=50)
    np.testing.assert_array_equal(
        first, bootstrap_weights({"a": 9 - clusters["a"][::-1]}, num=12, seed=3, resamples=50)
    )
    assert (first != bootstrap_weights(clusters, num=12, seed=4, resamples=50)).any()


@pytest.mark.parametrize(("successes", "num"), [(140, 200), (180, 200), (500, 1000)])
def test_interval_of_a_proportion_is_about_that_of_scipy(successes, num):
    values = np.arange(num) < successes
    found = interval(values, bootstrap_weights({}, num=num, resamples=4000))
    expected = binomtest(successes, num).proportion_ci(method="wilson")
    # Percentile and Wilson intervals differ by about z^2 (1 - 2p) / 2n <= 0.008; quantiles of 4000
    # resamples have a standard error of about 0.05 of the deviation.
    assert found == pytest.approx((expected.low, expected.high), abs=0.012)
    assert found[0] < successes / num < found[1]


def test_interval_covers_as_often_as_it_says():
    # 400 data sets of 100 coin throws: the standard error of the coverage is 0.011.
    weights = bootstrap_weights({}, num=100, resamples=600)
    throws = np.random.default_rng(0).random((400, 100)) < 0.7
    pairs = np.array([interval(values, weights) for values in throws])
    covered = ((pairs[:, 0] <= 0.7) & (pairs[:, 1] >= 0.7)).mean()
    assert 0.91 <= covered <= 0.98


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_interval_has_the_level_asked_for(level):
    values = np.random.default_rng(0).normal(size=400)
    found = interval(values, bootstrap_weights({}, num=400, resamples=4000), level=level)
    half = norm.ppf(0.5 + level / 2) * values.std() / np.sqrt(400)
    expected = (values.mean() - half, values.mean() + half)
    assert found == pytest.approx(expected, abs=0.1 * half)


def test_interval_of_copies_is_wider_by_the_root_of_their_number():
    # Each of 100 values stands there 4 times. Taken as 400 independent ones the interval is too
    # narrow by sqrt(4); clustered it is that of the 100 values.
    single = np.random.default_rng(0).normal(size=100)
    values, ids = np.repeat(single, 4), np.repeat(np.arange(100), 4)
    naive = interval(values, bootstrap_weights({}, num=400))
    clustered = interval(values, bootstrap_weights({"recording": ids}, num=400))
    assert width(clustered) / width(naive) == pytest.approx(2, rel=0.15)
    alone = interval(single, bootstrap_weights({}, num=100))
    assert clustered == pytest.approx(alone, abs=1e-5)


def test_intervals_leave_out_resamples_that_draw_no_example():
    # Three recordings, each of its own speaker: the drawn speakers and the drawn recordings have
    # none in common in some resamples. Those say nothing; a mean of 0 would be made up.
    ids = np.arange(3)
    weights = bootstrap_weights({"recording": ids, "speaker": ids}, num=3)
    assert (weights.sum(axis=1) == 0).any()
    assert interval(np.ones(3), weights) == (1, 1)
    assert seed_interval(np.ones((2, 3)), weights) == (1, 1)


def test_seed_interval_of_equal_seeds_is_the_interval():
    values = np.random.default_rng(0).normal(size=60)
    weights = bootstrap_weights({}, num=60)
    found = seed_interval(np.tile(values, (5, 1)), weights)
    assert found == pytest.approx(interval(values, weights), abs=1e-6)


def test_seed_interval_spreads_over_seeds():
    # Two seeds, all wrong and all right: means of two draws are 0, 1/2 and 1, the ends with
    # probability 1/4 each.
    values = np.stack([np.zeros(30), np.ones(30)])
    weights = bootstrap_weights({}, num=30)
    assert seed_interval(values, weights) == pytest.approx((0, 1))
    assert seed_interval(values, weights, level=0.4) == pytest.approx((0.5, 0.5))
    # Seeds that differ widen the interval of seeds that do not.
    noise = np.random.default_rng(0).normal(size=(1, 30))
    shifts = np.linspace(-1, 1, 5)[:, None]
    apart, equal = noise + shifts, noise + 0 * shifts
    assert width(seed_interval(apart, weights)) > 1.2 * width(seed_interval(equal, weights))


def test_seed_interval_is_the_same_every_time():
    values = np.random.default_rng(0).normal(size=(4, 30))
    weights = bootstrap_weights({}, num=30)
    assert seed_interval(values, weights) == seed_interval(values, weights)
    assert seed_interval(values, weights, seed=1) != seed_interval(values, weights)


# p-values and their correction


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([-1, -2] + [1] * 17, 2 * (2 + 1) / (19 + 1)),
        ([1, 2] + [-1] * 17, 2 * (2 + 1) / (19 + 1)),
        ([1] * 19, 2 / 20),  # never 0
        ([0] * 19, 1),  # ties are on both sides
        ([0] * 4 + [1] * 15, 2 * (4 + 1) / (19 + 1)),
        ([-1] * 10 + [1] * 9, 1),  # 2 * (9 + 1) / 20
        ([], 1),
    ],
)
def test_p_value_by_hand(means, expected):
    assert p_value(np.array(means, float)) == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1])
def test_p_values_of_many_examples_are_those_of_a_t_test(shift):
    # The bootstrap divides by n in the variance, t by n - 1: no difference at n = 400.
    values = np.random.default_rng(3).normal(size=400) + shift
    (found,) = seed_p_values([values[None]], {}, num=400, blocks=5)
    # 5000 resamples: five standard errors of twice a share p / 2.
    expected = ttest_1samp(values, 0).pvalue
    assert found == pytest.approx(expected, abs=5 * np.sqrt(2 * expected / 5000) + 0.01)


def test_p_values_have_more_resamples_than_intervals_and_their_own_number_of_seeds():
    generator = np.random.default_rng(0)
    clusters = {"recording": np.arange(24) // 2}
    values = [generator.normal(size=(3, 24)) + 0.3, np.ones((2, 24))]
    expected = [
        p_value(
            np.concatenate(
                [
                    seed_means(one, bootstrap_weights(clusters, num=24, seed=block), seed=block)
                    for block in (4, 5)
                ]
            )
        )
        for one in values
    ]
    assert seed_p_values(values, clusters, num=24, seed=4, blocks=2) == expected
    assert expected[1] == pytest.approx(2 / 2001) and expected[0] > expected[1]


def null_p_values(num_seeds, spread, num_sets=400):
    """p-values where there is no difference: recordings of 4 examples, seeds apart by `spread`.

    The mean over the examples has a standard error of 0.042 through its recordings.
    """
    generator = np.random.default_rng(0)
    weights = bootstrap_weights({"recording": np.arange(200) // 4}, num=200)
    found = []
    for _ in range(num_sets):
        values = np.repeat(generator.normal(size=(1, 50)), 4, axis=1)
        values = values + generator.normal(size=(num_seeds, 200))
        values = 0.3 * values + spread * generator.normal(size=(num_seeds, 1))
        found.append(p_value(seed_means(values, weights)))
    return np.array(found)


@pytest.mark.parametrize(("num_seeds", "spread"), [(1, 0.0), (3, 0.02), (5, 0.02)])
def test_p_values_are_about_uniform_where_there_is_no_difference(num_seeds, spread):
    found = null_p_values(num_seeds, spread)
    # Standard errors over 400 data sets: 0.011 at 0.05, 0.02 at 0.2, 0.025 at 0.5.
    assert 0.02 <= np.mean(found <= 0.05) <= 0.1
    assert 0.14 <= np.mean(found <= 0.2) <= 0.28
    assert 0.42 <= np.mean(found <= 0.5) <= 0.6


@pytest.mark.parametrize(("num_seeds", "rate"), [(3, 1 / 4), (5, 1 / 6), (10, 1 / 11)])
def test_few_seeds_that_differ_much_make_p_too_small(num_seeds, rate):
    # The rates that the docstring of `p_value` gives; standard error 0.02.
    found = null_p_values(num_seeds, spread=0.5)
    assert np.mean(found <= 0.05) == pytest.approx(rate, abs=0.05)


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("level", [0.05, 0.05 / 60])
def test_seeds_that_differ_much_do_not_pass_both_tests(num_seeds, level):
    # Where seeds differ by far more than examples do, and there is no difference.
    generator = np.random.default_rng(1)
    found = [
        between_seeds(generator.normal(size=(num_seeds, 1)) + np.zeros((1, 20)))
        for _ in range(3000)
    ]
    error = np.sqrt(level / 3000)
    assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=4 * error)


def test_between_seeds_is_a_t_test_of_their_means():
    values = np.random.default_rng(0).normal(0.5, 1, size=(5, 40))
    expected = ttest_1samp(values.mean(axis=1), 0).pvalue
    assert between_seeds(values) == pytest.approx(expected)
    assert between_seeds(values[:1]) == between_seeds(np.zeros((4, 9))) == 1
    assert between_seeds(np.ones((4, 9))) == 0


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        # In order: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not be below 0.06.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.75], [1, 1]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.3], [0.3]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, expected):
    assert holm(p_values) == pytest.approx(expected)


def test_holm_is_the_closed_test_of_bonferroni():
    # By definition: the largest p of Bonferroni over all the sets of comparisons with this one.
    generator = np.random.default_rng(0)
    for _ in range(20):
        p_values = generator.uniform(size=5) ** 3
        expected = [
            max(
                min(1, len(chosen) * min(p_values[list(chosen)]))
                for size in range(1, 6)
                for chosen in itertools.combinations(range(5), size)
                if index in chosen
            )
            for index in range(5)
        ]
        assert holm(list(p_values)) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_p_value(wrong):
    with pytest.raises(FusionError, match=f"a p-value is {wrong}: give values in"):
        holm([0.5, wrong])


def test_p_values_of_many_comparisons_are_those_of_each():
    generator = np.random.default_rng(3)
    values = [
        generator.integers(-1, 2, (seeds, 30)).astype(np.float32) for seeds in (1, 3, 1, 2, 3)
    ]
    clusters = {"speaker": np.arange(30) // 5}
    found = seed_p_values(values, clusters, num=30, blocks=2)
    for one, p in zip(values, found, strict=True):
        means = [
            seed_means(one, bootstrap_weights(clusters, num=30, seed=block), seed=block)
            for block in (0, 1)
        ]
        assert p == p_value(np.concatenate(means))
    assert len(set(found)) > 3
