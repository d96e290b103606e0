"""Modality dropout: its rate, and what it never does."""

import itertools

import jax
import numpy as np
import pytest

from fusion_jax.corruptions.batch import drop_modalities

EXAMPLES, WIDTH = 20_000, 4
RATES = np.float32([0.1, 0.3, 0.5, 0.9])
# Every pattern over four modalities, the empty one included, in turn.
PATTERNS = np.array(list(itertools.product([False, True], repeat=WIDTH)))


@jax.jit
def drop(present, rate, ids, seed=0):
    return drop_modalities(jax.random.key(seed), present, rate=rate, example_id=ids)


@pytest.mark.parametrize("positions", [(1,), (0, 2), (0, 1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("rate", RATES)
def test_drop_modalities_drops_each_at_the_stated_rate(rate, positions):
    # One of M present modalities is missing where it was dropped (rate), except where all were
    # (rate^M) and it was the one that is kept (1/M): rate - rate^M / M.
    num = len(positions)
    present = np.zeros((EXAMPLES, WIDTH), bool)
    present[:, positions] = True
    kept = np.asarray(drop(present, rate, np.arange(EXAMPLES)))
    expected = rate - rate**num / num
    # Five standard errors of a share of 20000 independent examples, at most 0.018.
    tolerance = 5 * np.sqrt(expected * (1 - expected) / EXAMPLES) + 1e-9
    for position in positions:
        assert abs((~kept[:, position]).mean() - expected) <= tolerance
    # Drops are independent as long as one is left: nothing else is missing in (1 - rate)^M.
    whole = (1 - rate) ** num if num > 1 else 1.0
    spread = 5 * np.sqrt(whole * (1 - whole) / EXAMPLES) + 1e-9
    assert abs((kept.sum(axis=1) == num).mean() - whole) <= spread


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_drop_modalities_keeps_one_and_adds_none(rate):
    present = np.resize(PATTERNS, (EXAMPLES, WIDTH))
    kept = np.asarray(drop(present, np.float32(rate), np.arange(EXAMPLES)))
    assert not (kept & ~present).any()
    np.testing.assert_array_equal(kept.any(axis=1), present.any(axis=1))
    if rate == 0:
        np.testing.assert_array_equal(kept, present)
    if rate == 1:
        np.testing.assert_array_equal(kept.sum(axis=1), present.any(axis=1))


def test_drop_modalities_depends_on_the_example_and_not_on_its_position():
    present, ids = np.resize(PATTERNS, (EXAMPLES, WIDTH)), np.arange(EXAMPLES) + 1000
    whole = np.asarray(drop(present, np.float32(0.5), ids))
    order = np.random.default_rng(0).permutation(EXAMPLES)
    moved = drop(present[order], np.float32(0.5), ids[order])
    np.testing.assert_array_equal(moved, whole[order])
    part = drop(present[100:137], np.float32(0.5), ids[100:137])
    np.testing.assert_array_equal(part, whole[100:137])
    # Another id or another step draws anew.
    assert (np.asarray(drop(present, np.float32(0.5), ids + 7)) != whole).any()
    assert (np.asarray(drop(present, np.float32(0.5), ids, seed=1)) != whole).any()
