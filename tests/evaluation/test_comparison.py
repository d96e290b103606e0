"""Two runs against each other: paired by cell, seed and example."""

import numpy as np
import pytest

from fusion_jax.errors import FusionError
from fusion_jax.evaluation.comparison import compare, paired_correct, same_conditions
from fusion_jax.evaluation.records import Records, RecordWriter

CELLS = ("clean", "noise/a/0.5", "noise/a/1")


def records(folder, correct, cells=CELLS, first=0):
    identity = {"example_id": first + np.arange(correct.shape[1])}
    writer = RecordWriter(folder, facts={}, cells=cells, identity=identity)
    writer.write({"correct": np.float32(correct)})
    writer.finish()
    return Records(folder)


def drawn(seed, rates, num=40):
    return np.random.default_rng(seed).random((len(rates), num)) < np.array(rates)[:, None]


def test_runs_are_paired_by_the_cells_seeds_and_examples_that_both_have(tmp_path):
    first, second = drawn(0, (0.9, 0.7, 0.5)), drawn(1, (0.8, 0.6))
    here = {0: records(tmp_path / "a", first), 3: records(tmp_path / "b", ~first)}
    there = {
        3: records(tmp_path / "c", second, cells=("noise/a/1", "clean")),
        9: records(tmp_path / "d", ~second, cells=("noise/a/1", "clean")),
    }
    cells, ours, theirs = paired_correct(here, there, ["noise/a/1", "clean", "mixed/1"])
    assert cells == ["clean", "noise/a/1"]
    np.testing.assert_array_equal(ours, ~first[[0, 2]][:, None])
    np.testing.assert_array_equal(theirs, second[[1, 0]][:, None])


def test_runs_that_cannot_be_paired_are_refused(tmp_path):
    here = {0: records(tmp_path / "a", drawn(0, (0.9, 0.7, 0.5)))}
    with pytest.raises(FusionError, match=r"no training seed in common: \[0\] and \[1\]"):
        paired_correct(here, {1: here[0]}, CELLS)
    other = {0: records(tmp_path / "b", drawn(0, (0.9, 0.7, 0.5)), first=1)}
    with pytest.raises(FusionError, match="evaluated on other examples"):
        paired_correct(here, other, CELLS)
    other = {0: records(tmp_path / "c", drawn(0, (0.9,)), cells=("noise/b/1",))}
    with pytest.raises(FusionError, match="no cell in common"):
        paired_correct(here, other, CELLS)


def test_a_comparison_by_hand():
    # Ten examples of one seed; errors clean 1 and 2, noise 2 and 4, stronger noise 4 and 8.
    errors = np.array([[1, 2, 4], [2, 4, 8]])
    right = np.arange(10)[None, None, :] >= errors[:, :, None]
    ours, theirs = right[0][:, None], right[1][:, None]
    cells = ["clean", "noise/a/0.5", "noise/a/1"]
    found = compare(
        cells,
        ours,
        theirs,
        intervals=[(-0.1, 0.3), (0.1, 0.3), (0.2, 0.6)],
        p_values=[0.4, 0.05, 0.049],
        families={"noise on a": cells[1:]},
    )
    row = found["cells"]["noise/a/1"]
    assert row == {
        "accuracy": pytest.approx(0.6),
        "other": pytest.approx(0.2),
        "difference": pytest.approx(0.4),
        "low": 0.2,
        "high": 0.6,
        "p": 0.049,
        "real": True,
    }
    assert not found["cells"]["noise/a/0.5"]["real"] and not found["cells"]["clean"]["real"]
    assert found["mean_corruption_error"] == pytest.approx(100 * (2 + 4) / (4 + 8))
    # Less what is wrong on clean inputs: (1 + 3) of (2 + 6).
    assert found["relative_corruption_error"] == pytest.approx(50)
    # From clean to the mean of the others, this run loses 0.9 - 0.7 and the other 0.8 - 0.4.
    assert found["effective_robustness"] == pytest.approx(0.2)


def test_without_corruptions_there_are_no_corruption_errors():
    right = np.ones((1, 1, 4), bool)
    found = compare(["clean"], right, right, intervals=[(0, 0)], p_values=[1.0], families={})
    assert found["mean_corruption_error"] is found["relative_corruption_error"] is None
    assert found["effective_robustness"] is None


def test_cells_of_one_name_and_another_strength_are_not_the_same():
    def report(strength, corruption="GaussianNoise"):
        clean = {"cell": "clean", "corruption": "none", "missing": []}
        noisy = {"cell": "noise/a/1", "corruption": corruption, "strength": strength}
        return {"cells": [clean, noisy], "joint": []}

    assert same_conditions(report("sigma 8"), report("sigma 8")) == (["clean", "noise/a/1"], 0)
    assert same_conditions(report("sigma 8"), report("sigma 4")) == (["clean"], 1)
    other = report("sigma 8", "ImpulseNoise")
    assert same_conditions(report("sigma 8"), other) == (["clean"], 1)
