"""Limits of a report: which cells they name, what fails, and what a slip in the file says."""

import pytest

from fusion_jax.errors import FusionError
from fusion_jax.evaluation.thresholds import check_thresholds, read_thresholds


def row(cell, seed, **values):
    return {"cell": cell, "seed": seed, "corruption": "none", "weights": {}, **values}


REPORT = {
    "cells": [
        row("clean", 0, accuracy=0.9, failure_auroc=None),
        row("clean", 1, accuracy=0.8, failure_auroc=0.7),
        row("missing/audio", 0, accuracy=0.5, failure_auroc=0.6),
        row("missing/audio", 1, accuracy=0.7, failure_auroc=0.8),
    ],
    "joint": [row("mixed/1", 0, accuracy=0.4), row("mixed/1", 1, accuracy=0.4)],
}


def written(tmp_path, text):
    path = tmp_path / "limits.toml"
    path.write_text(text)
    return path


def checked(tmp_path, text):
    found = check_thresholds(REPORT, read_thresholds(written(tmp_path, text)))
    return [(each["cell"], each["limit"], each["value"], each["passed"]) for each in found]


def test_limits_are_of_the_mean_over_seeds_in_each_cell_of_a_pattern(tmp_path):
    text = """
        [[threshold]]
        cells = ["clean", "m*"]
        metric = "accuracy"
        min = 0.6
        max = 0.8
        """
    assert checked(tmp_path, text) == [
        ("clean", "min 0.6", pytest.approx(0.85), True),
        ("clean", "max 0.8", pytest.approx(0.85), False),
        ("missing/audio", "min 0.6", pytest.approx(0.6), True),
        ("missing/audio", "max 0.8", pytest.approx(0.6), True),
        ("mixed/1", "min 0.6", pytest.approx(0.4), False),
        ("mixed/1", "max 0.8", pytest.approx(0.4), True),
    ]


def test_a_value_that_is_not_known_does_not_pass(tmp_path):
    text = '[[threshold]]\ncells = ["clean"]\nmetric = "failure_auroc"\nmin = 0.0'
    assert checked(tmp_path, text) == [("clean", "min 0", None, False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no \[\[threshold\]\]"),
        ("threshold = 3", r"has no \[\[threshold\]\]"),
        ("[[threshold", "is not TOML"),
        ('[[threshold]]\ncells = ["clean"]\nmetric = "ece"', "1 must have cells, metric, and min"),
        ('[[threshold]]\nmetric = "ece"\nmin = 1', "1 must have cells"),
        ('[[threshold]]\ncells = ["a"]\nmetric = "ece"\nmin = 1\nleast = 2', "it has 'least'"),
        ('[[threshold]]\ncells = "clean"\nmetric = "ece"\nmin = 1', "must be a list of patterns"),
        ('[[threshold]]\ncells = ["a"]\nmetric = "ece"\nmin = "1"', "min of threshold 1 must be"),
        ('[[threshold]]\ncells = ["a"]\nmetric = "ece"\nmin = true', "min of threshold 1 must be"),
        ('[[threshold]]\ncells = [1]\nmetric = "ece"\nmin = 1', "must be a list of patterns"),
        ('[[threshold]]\ncells = []\nmetric = "ece"\nmin = 1', "1 names no cells"),
        ('[[threshold]]\ncells = ["a"]\nmetric = "seed"\nmin = 1', "no metric 'seed': choose"),
        ('[[threshold]]\ncells = ["a"]\nmetric = ["ece"]\nmin = 1', "no metric"),
        ("threshold = [1]", r"has no \[\[threshold\]\]"),
    ],
)
def test_a_slip_in_the_file_is_one_line(tmp_path, text, message):
    with pytest.raises(FusionError, match=message):
        read_thresholds(written(tmp_path, text))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(FusionError, match="cannot read"):
        read_thresholds(tmp_path / "none.toml")


def test_cells_that_the_report_lacks_are_refused(tmp_path):
    text = '[[threshold]]\ncells = ["dirty"]\nmetric = "accuracy"\nmin = 0'
    with pytest.raises(FusionError, match="matches 'dirty': there are clean, missing/audio"):
        checked(tmp_path, text)
