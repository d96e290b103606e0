"""Bootstrap intervals and p-values that respect what is shared between examples."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import ttest_1samp

from fusion_jax.errors import FusionError

RESAMPLES = 1000
P_VALUE_BLOCKS = 10


def bootstrap_weights(
    clusters: Mapping[str, Int[np.ndarray, " n"]],
    *,
    num: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Float[np.ndarray, "r n"]:
    """How often each example counts in each resample: [R, N], float32.

    Every kind of cluster is resampled with replacement by itself and an example counts the product
    of its clusters' counts, so examples that share a recording rise and fall together. Without
    clusters the examples themselves are resampled.

    Args:
        clusters: name -> id of the cluster of each example.
        num: N.
        seed: of the resampling.
        resamples: R.

    References:
        Owen and Eckles, Bootstrapping data arrays of arbitrary order, Annals of Applied Statistics
        2012 (product weights for crossed factors).
    """
    generator = np.random.default_rng(seed)
    weights = np.ones((resamples, num), np.float32)
    for ids in clusters.values() or [np.arange(num)]:
        _, index = np.unique(ids, return_inverse=True)
        count = index.max() + 1
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
        weights *= drawn.astype(np.float32)[:, index]
    return weights


def interval(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "r n"], *, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of per-example values under bootstrap weights.

    Crossed clusters may draw no example at all; such a resample is left out.
    """
    totals = weights.sum(axis=1)
    means = (weights @ values.astype(np.float32))[totals > 0] / totals[totals > 0]
    return _percentiles(means, level)


def seed_interval(
    values: Float[np.ndarray, "s n"],
    weights: Float[np.ndarray, "r n"],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the mean over training seeds and examples, both resampled.

    Args:
        values: [S, N] per-example values (for a paired comparison their differences).
        weights: [R, N] from `bootstrap_weights`.
        seed: of the resampling of seeds.
        level: coverage.
    """
    return _percentiles(seed_means(values, weights, seed=seed), level)


def seed_drop_interval(
    values: Float[np.ndarray, "s n"],
    reference: Float[np.ndarray, "s n"],
    weights: Float[np.ndarray, "r n"],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of 1 - mean(values) / mean(reference), resampled together.

    Args:
        values: [S, N], such as correctness without a modality.
        reference: [S, N], of the same seeds and examples, such as correctness with it. A resample
            in which its mean is 0 is left out.
        weights: [R, N] from `bootstrap_weights`.
        seed: of the resampling of seeds.
        level: coverage.
    """
    over = seed_means(values, weights, seed=seed)
    under = seed_means(reference, weights, seed=seed)
    return _percentiles(1 - over[under > 0] / under[under > 0], level)


def seed_means(
    values: Float[np.ndarray, "s n"], weights: Float[np.ndarray, "r n"], *, seed: int = 0
) -> Float[np.ndarray, " k"]:
    """Mean over drawn seeds and weighted examples: [K], of the K <= R resamples with an example.

    Args:
        values: [S, N] per-example values.
        weights: [R, N] from `bootstrap_weights`.
        seed: of the resampling of seeds.
    """
    return _seed_means(np.asarray(values, np.float32)[None], weights, seed=seed)[:, 0]


def _seed_means(
    values: Float[np.ndarray, "c s n"], weights: Float[np.ndarray, "r n"], *, seed: int
) -> Float[np.ndarray, "k c"]:
    """`seed_means` of many comparisons at once: one matrix product reads the weights once."""
    num, seeds, examples = values.shape
    drawn = np.random.default_rng(seed).integers(seeds, size=(len(weights), 1, seeds))
    totals = weights.sum(axis=1)
    sums = (weights @ values.reshape(-1, examples).T).reshape(-1, num, seeds)
    means = sums / np.maximum(totals, 1e-12)[:, None, None]
    return np.take_along_axis(means, drawn, axis=2).mean(axis=2)[totals > 0]


def p_value(means: Float[np.ndarray, " k"]) -> float:
    """Two-sided p-value, in (0, 1], of "the mean difference is 0", from resampled differences.

    Twice the smaller of the shares of resamples at or below 0 and at or above 0: the p at which the
    percentile interval just reaches 0. Both counts are one too high, so p is at least 2 / (K + 1).

    Few seeds that differ by more than the examples do make it too small, as they make the intervals
    too narrow: without a difference it then falls below 0.05 about once in 4 times with 3 seeds,
    once in 6 with 5 and once in 11 with 10 (tests/evaluation/test_intervals.py), and far below
    almost as often. `between_seeds` guards against that.

    Args:
        means: [K] from `seed_means`.

    References:
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.2 (adding one)
        and 5.4 (tests from intervals).
    """
    return _p_value(int(min(np.sum(means <= 0), np.sum(means >= 0))), len(means))


def _p_value(smaller: int, number: int) -> float:
    return min(1.0, 2 * (1 + smaller) / (1 + number))


def between_seeds(values: Float[np.ndarray, "s n"]) -> float:
    """Two-sided p-value of a t test over the seeds' mean differences; 1 for a single seed.

    It knows nothing of the examples, which all seeds share, and has little power with few seeds:
    three must agree closely for a p below 0.05.

    Args:
        values: [S, N] differences by seed and example.
    """
    means = values.mean(axis=1, dtype=np.float64)
    if len(means) < 2 or not means.any():
        return 1.0
    return float(ttest_1samp(means, 0).pvalue) if np.ptp(means) else 0.0


def seed_p_values(
    values: Sequence[Float[np.ndarray, "s n"]],
    clusters: Mapping[str, Int[np.ndarray, " n"]],
    *,
    num: int,
    seed: int = 0,
    blocks: int = P_VALUE_BLOCKS,
) -> list[float]:
    """`p_value` of each comparison, from `blocks` times RESAMPLES resamples of seeds and clusters.

    A correction multiplies p by up to the number of comparisons, so p must be finer than intervals
    are: with 1000 resamples no p is below 0.002, and of 25 comparisons none could come out.

    Args:
        values: for each comparison [S, N] differences by seed and example; S may differ.
        clusters: name -> id of the cluster of each example.
        num: N.
        seed: of the resampling.
        blocks: resamples are drawn block by block, which bounds the memory.
    """
    groups: dict[int, list[int]] = {}
    for index, one in enumerate(values):
        groups.setdefault(len(one), []).append(index)
    stacked = {
        seeds: np.stack([values[index] for index in members], dtype=np.float32)
        for seeds, members in groups.items()
    }
    # Of each comparison: resamples at or below 0, at or above 0, and all of them.
    counts = np.zeros((3, len(values)), int)
    for block in range(seed, seed + blocks):
        weights = bootstrap_weights(clusters, num=num, seed=block)
        for seeds, members in groups.items():
            means = _seed_means(stacked[seeds], weights, seed=block)
            found = [(means <= 0).sum(axis=0), (means >= 0).sum(axis=0), len(means)]
            counts[:, members] += np.array([np.broadcast_to(each, len(members)) for each in found])
    return [_p_value(int(min(below, above)), int(number)) for below, above, number in counts.T]


def guarded_p_values(
    values: Sequence[Float[np.ndarray, "s n"]],
    clusters: Mapping[str, Int[np.ndarray, " n"]],
    *,
    num: int,
    blocks: int = P_VALUE_BLOCKS,
) -> list[float]:
    """The larger of `seed_p_values` and `between_seeds` for each comparison.

    With few seeds, resampling alone finds differences that are none.

    Args:
        values: for each comparison [S, N] differences by seed and example; S may differ.
        clusters: name -> id of the cluster of each example.
        num: N.
        blocks: as in `seed_p_values`.
    """
    resampled = seed_p_values(values, clusters, num=num, blocks=blocks)
    return [max(p, between_seeds(each)) for p, each in zip(resampled, values, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order, each in [0, 1].

    Whatever is dependent on what, if each p is right, the chance that any comparison without a
    difference has an adjusted value at or below a is at most a. The i-th smallest of m values (i
    from 0) is multiplied by m - i, and none may be below one that came before it.

    Args:
        p_values: of all the comparisons that were named beforehand; 1 for what is not known.

    Raises:
        FusionError: where one lies outside [0, 1].

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 6, 1979.
    """
    wrong = [value for value in p_values if not 0 <= value <= 1]
    if wrong:
        raise FusionError(f"a p-value is {wrong[0]}: give values in [0, 1]")
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def _percentiles(values: Float[np.ndarray, " r"], level: float) -> tuple[float, float]:
    """The middle `level` of resampled values."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
