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
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


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
    drawn = np.random.default_rng(seed).integers(len(values), size=(len(weights), len(values)))
    totals = weights.sum(axis=1, keepdims=True)
    means = (weights @ values.astype(np.float32).T) / np.maximum(totals, 1e-12)
    resampled = np.take_along_axis(means, drawn, axis=1).mean(axis=1)[totals[:, 0] > 0]
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)
