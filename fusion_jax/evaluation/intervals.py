"""Bootstrap intervals that respect what is shared between examples."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 1000


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
    return _percentiles(_resampled_means(values, weights, seed), level)


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
    over = _resampled_means(values, weights, seed)
    under = _resampled_means(reference, weights, seed)
    return _percentiles(1 - over[under > 0] / under[under > 0], level)


def _resampled_means(
    values: Float[np.ndarray, "s n"], weights: Float[np.ndarray, "r n"], seed: int
) -> Float[np.ndarray, " r"]:
    """Mean over drawn seeds and weighted examples, of each resample that holds an example."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(len(weights), len(values)))
    totals = weights.sum(axis=1, keepdims=True)
    means = (weights @ values.astype(np.float32).T) / np.maximum(totals, 1e-12)
    return np.take_along_axis(means, drawn, axis=1).mean(axis=1)[totals[:, 0] > 0]


def _percentiles(values: Float[np.ndarray, " r"], level: float) -> tuple[float, float]:
    """The middle `level` of resampled values."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
