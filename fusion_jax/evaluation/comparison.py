"""Two runs side by side on the same examples and cells: which differences are real."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.errors import FusionError
from fusion_jax.robustness import (
    corruption_error,
    effective_robustness,
    mean_corruption_error,
    relative_corruption_error,
)

SIGNIFICANT = 0.05


# What must be the same for two rows to be of one condition: their name does not hold the strength.
CONDITION = (
    *("corruption", "corruptions", "modality", "severity", "severities", "strength", "missing"),
)


def same_conditions(here: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[list[str], int]:
    """Names of the cells that stand for the same condition in two reports.

    Args:
        here: a report.
        there: another one.

    Returns:
        The names, and how many cells of `here` have no equal.
    """

    def facts(report: Mapping[str, Any]) -> dict[str, list[Any]]:
        rows = (*report["cells"], *report["joint"])
        return {row["cell"]: [row.get(name) for name in CONDITION] for row in rows}

    ours, theirs = facts(here), facts(there)
    same = [label for label, known in ours.items() if theirs.get(label) == known]
    return same, len(ours) - len(same)


def paired_correct(
    here: Mapping[int, Any], there: Mapping[int, Any], same: Sequence[str]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What was right in two runs, over the cells, seeds and examples that both have.

    Args:
        here: training seed -> `fusion_jax.evaluation.records.Records`.
        there: the same of the other run.
        same: names of the cells that mean the same in both, from `same_conditions`.

    Returns:
        Names of the common cells, and bool [cells, seeds, N] of each run.

    Raises:
        FusionError: without a common seed or cell, or for other examples.
    """
    seeds = [seed for seed in here if seed in there]
    if not seeds:
        raise FusionError(
            f"the runs have no training seed in common: {sorted(here)} and {sorted(there)}"
        )
    first, second = here[seeds[0]], there[seeds[0]]
    if not np.array_equal(first["example_id"], second["example_id"]):
        raise FusionError("the runs were evaluated on other examples: evaluate both on one split")
    cells = [label for label in first.cells if label in second.cells and label in set(same)]
    if "clean" not in cells:
        raise FusionError("the runs have no cell in common: evaluate both under one grid")

    def chosen(runs: Mapping[int, Any]) -> np.ndarray:
        found = [runs[seed] for seed in seeds]
        return np.stack(
            [[records["correct"][records.cell(label)] > 0 for records in found] for label in cells]
        )

    return cells, chosen(here), chosen(there)


def compare(
    cells: Sequence[str],
    here: np.ndarray,
    there: np.ndarray,
    *,
    intervals: Sequence[tuple[float, float]],
    p_values: Sequence[float],
    families: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The comparison, JSON-ready: differences are this run less the other.

    Args:
        cells: names, "clean" among them.
        here: bool [cells, seeds, N], this run.
        there: the same of the other.
        intervals: of the difference of accuracy in each cell.
        p_values: of the same, corrected for their number.
        families: corruption and modality -> names of its cells by rising severity, for the
            corruption errors.

    Returns:
        "cells": for each its "accuracy", "other", "difference", "low", "high", "p" and "real" (p
        below 0.05); "mean_corruption_error" and "relative_corruption_error" with the other run as
        reference, in percent (100: as many errors as the other); "effective_robustness": difference
        of the losses from clean to the mean of all other cells, in accuracy.
    """
    ours, others = here.mean(axis=(1, 2)), there.mean(axis=(1, 2))
    rows = {
        label: {
            "accuracy": float(ours[i]),
            "other": float(others[i]),
            "difference": float(ours[i] - others[i]),
            "low": float(intervals[i][0]),
            "high": float(intervals[i][1]),
            "p": float(p_values[i]),
            "real": bool(p_values[i] < SIGNIFICANT),
        }
        for i, label in enumerate(cells)
    }
    errors = {label: (1 - ours[i], 1 - others[i]) for i, label in enumerate(cells)}
    clean, other_clean = errors["clean"]
    known = {
        name: (np.array([errors[x][0] for x in names]), np.array([errors[x][1] for x in names]))
        for name, names in families.items()
    }
    absolute = {name: corruption_error(mine, theirs) for name, (mine, theirs) in known.items()}
    relative = {
        name: relative_corruption_error(
            mine, theirs, clean_error=clean, reference_clean_error=other_clean
        )
        for name, (mine, theirs) in known.items()
    }
    shifted = [i for i, label in enumerate(cells) if label != "clean"]
    return {
        "cells": rows,
        "mean_corruption_error": _percent(mean_corruption_error(absolute) if known else None),
        "relative_corruption_error": _percent(mean_corruption_error(relative) if known else None),
        "effective_robustness": effective_robustness(
            float(1 - clean),
            float(ours[shifted].mean()),
            reference_clean=float(1 - other_clean),
            reference_shifted=float(others[shifted].mean()),
        )
        if shifted
        else None,
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
