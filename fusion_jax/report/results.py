"""A report in the form that its sentences, charts and tables are made from.

Cells with means and spreads over training seeds, and what follows from them. There are no words
and no drawing here.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fusion_jax.cells import MISALIGNMENT


class Number(NamedTuple):
    """Mean over training seeds and its spread; `low` and `high` are None where none is known."""

    mean: float
    low: float | None
    high: float | None


class Change(NamedTuple):
    """How far a cell lies from the clean one.

    Attributes:
        cell: the cell.
        amount: mean change, in percentage points of accuracy or in units of ECE; positive = worse.
        sure: True where every training seed agrees on the sign (more than one seed), or where the
            two bootstrap intervals do not overlap (one seed).
    """

    cell: "Cell"
    amount: float
    sure: bool


class Difference(NamedTuple):
    """This run against another one in one cell, over the seeds that both have; in accuracy."""

    here: float
    other: float
    amount: float
    low: float
    high: float
    p: float
    real: bool


@dataclasses.dataclass(frozen=True)
class Cell:
    """The rows, one per training seed, that share everything but the seed and the results.

    Attributes:
        label: its name in report.json, in records and in files of limits.
        corruption: class name, "none", or "joint", "mixed" and "correlated" where several inputs
            are touched.
        modality: the one that is corrupted, None where it is none or several.
        severity: of that corruption; the highest one of a joint cell.
        strength: the same in physical units, in words.
        missing: names of the modalities that are taken away.
        corruptions: modality -> class name, of those that are corrupted.
        severities: modality -> severity, of the same.
        rows: of report.json.
    """

    label: str
    corruption: str
    modality: str | None
    severity: float
    strength: str | None
    missing: tuple[str, ...]
    corruptions: Mapping[str, str]
    severities: Mapping[str, float]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def is_corrupted(self) -> bool:
        """Whether anything is done to an input that is there."""
        return self.corruption != "none" and self.severity > 0

    @property
    def is_several(self) -> bool:
        """Whether more than one input is touched, or examples differ in severity."""
        return "severities" in self.rows[0] or (self.is_corrupted and bool(self.missing))

    @property
    def is_misaligned(self) -> bool:
        """Whether an input may belong to another example."""
        return MISALIGNMENT in (self.corruption, *self.corruptions.values())

    @property
    def is_drawn(self) -> bool:
        """Whether each example has severities of its own, up to those named."""
        return self.corruption in ("mixed", "correlated") and self.is_several

    @property
    def is_correlated(self) -> bool:
        """Whether these severities are the same for all inputs of an example."""
        return self.corruption == "correlated" and self.is_several

    @property
    def unseen(self) -> bool:
        """Whether it is a corruption that training did not use."""
        return bool(self.rows[0].get("unseen"))

    def by_seed(self, *path: str) -> dict[int, float]:
        """Finite values of a field by training seed, for example `by_seed("weights", "audio")`."""
        found = {row["seed"]: _value(row, path) for row in self.rows}
        return {seed: value for seed, value in found.items() if value is not None}

    def number(self, *path: str) -> Number | None:
        """Mean and spread of a field, None where no row has it."""
        number = _number(list(self.by_seed(*path).values()), several=len(self.rows) > 1)
        if number is None or len(self.rows) > 1 or path != ("accuracy",):
            return number
        row = self.rows[0]
        return Number(number.mean, row.get("accuracy_low"), row.get("accuracy_high"))

    @property
    def accuracy(self) -> Number:
        """Accuracy with its spread; every cell has one, `_check_cell` sees to it."""
        return self.number("accuracy") or Number(math.nan, None, None)

    def mean(self, *path: str) -> float:
        """Mean of a field, NaN where no row has it."""
        number = self.number(*path)
        return math.nan if number is None else number.mean


Curve = tuple[Cell, ...]  # the cells of one corruption of one modality by rising severity


@dataclasses.dataclass(frozen=True)
class Results:
    """A report, its rows grouped.

    Attributes:
        modalities: names, sorted.
        seeds: of training.
        num_examples: of the split.
        num_classes: of the task.
        split: its name.
        training_severity: the highest of training, 0 where all of it was clean.
        clean: the cell with nothing corrupted or missing.
        cells: of one condition each, the clean one first.
        joint: where several inputs are touched, or examples differ in severity.
        summary: training seed -> what report.json says of the run as a whole.
        comparison: with another run, {} where there is none.
        differences: label -> this run against the other one.
        thresholds: limits that were checked.
        examples: with pictures, of the worst cells.
    """

    modalities: tuple[str, ...]
    seeds: tuple[int, ...]
    num_examples: int
    num_classes: int
    split: str
    training_severity: float
    clean: Cell
    cells: tuple[Cell, ...]
    joint: tuple[Cell, ...]
    summary: Mapping[int, Mapping[str, Any]]
    comparison: Mapping[str, Any]
    differences: Mapping[str, Difference]
    thresholds: tuple[Mapping[str, Any], ...]
    examples: tuple[Mapping[str, Any], ...]

    @functools.cached_property
    def all_cells(self) -> tuple[Cell, ...]:
        """Those of one condition, then the joint ones."""
        return (*self.cells, *self.joint)

    @functools.cached_property
    def worst(self) -> Cell:
        """The cell with the lowest mean accuracy of all, the first of equal ones."""
        return min(self.all_cells, key=lambda cell: cell.accuracy.mean)

    @functools.cached_property
    def worst_matched(self) -> Cell:
        """The same among the cells whose inputs all belong to their own example."""
        matched = [cell for cell in self.all_cells if not cell.is_misaligned]
        return min(matched, key=lambda cell: cell.accuracy.mean)

    @functools.cached_property
    def recipe(self) -> dict[str, str]:
        """Modality -> class name of the corruption that training used, or that comes first."""
        found: dict[str, str] = {}
        for cell in self.cells:
            if cell.modality and cell.is_corrupted and not cell.unseen:
                found.setdefault(cell.modality, cell.corruption)
        return found

    @functools.cached_property
    def curves(self) -> list[Curve]:
        """One curve per corruption and modality, all modalities present, clean first.

        The corruptions of training come first, misaligned inputs last.
        """
        groups: dict[tuple[bool, bool, str, str], list[Cell]] = {}
        for cell in self.cells:
            if cell.corruption != "none" and not cell.missing:
                key = (cell.is_misaligned, cell.unseen, cell.modality or "", cell.corruption)
                groups.setdefault(key, []).append(cell)
        curves = []
        for _, group in sorted(groups.items()):
            cells = sorted(group, key=lambda cell: cell.severity)
            curves.append(tuple(cells if cells[0].severity == 0 else [self.clean, *cells]))
        return [curve for curve in curves if len(curve) > 1]

    @property
    def weight_curves(self) -> list[Curve]:
        """The curves on which every cell has a fusion weight for every modality."""
        if len(self.modalities) == 1:
            return []
        return [
            curve
            for curve in self.curves
            if all(
                len(cell.by_seed("weights", name)) == len(self.seeds)
                for cell in curve
                for name in self.modalities
            )
        ]

    @property
    def patterns(self) -> list[Cell]:
        """Clean cells by missing pattern, all present first."""
        patterns: dict[tuple[str, ...], Cell] = {(): self.clean}
        for cell in self.cells:
            if not cell.is_corrupted:
                patterns.setdefault(cell.missing, cell)
        return list(patterns.values())

    def total(self, *path: str) -> Number | None:
        """Mean and spread of a field of the summary, None unless every seed has it."""
        values = [_value(self.summary.get(seed, {}), path) for seed in self.seeds]
        known = [value for value in values if value is not None]
        return _number(known, several=len(values) > 1) if len(known) == len(values) else None


def change(results: Results, cell: Cell, field: str) -> Change:
    """Change of "accuracy" (points lost) or "ece" against the clean cell, paired by seed."""
    before, after = results.clean.by_seed(field), cell.by_seed(field)
    scale = -100.0 if field == "accuracy" else 1.0
    changes = [scale * (after[seed] - before[seed]) for seed in results.seeds]
    amount = math.fsum(changes) / len(changes)
    if len(changes) > 1:
        return Change(cell, amount, all(each * amount > 0 for each in changes))
    low, high = results.clean.rows[0].get("accuracy_low"), cell.rows[0].get("accuracy_high")
    if field == "accuracy" and low is not None and high is not None:
        return Change(cell, amount, high < low)
    # One seed and no interval: nothing could speak against the change.
    return Change(cell, amount, True)


def _value(row: Any, path: Sequence[str]) -> float | None:
    """A finite number inside nested dicts, None where there is none."""
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    return float(row) if isinstance(row, int | float) and math.isfinite(row) else None


def _number(values: Sequence[float], *, several: bool) -> Number | None:
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    return Number(mean, min(values), max(values)) if several else Number(mean, None, None)
