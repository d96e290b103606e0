"""Reads the dict that report.json holds, and refuses what cannot be averaged."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.errors import FusionError
from fusion_jax.report.results import Cell, Difference, Results

SCHEMA = 2


def read(report: Mapping[str, Any]) -> Results:
    """Group the rows of a report into cells.

    Args:
        report: what report.json holds.

    Raises:
        FusionError: where the schema is another one, the clean cell is missing, a cell lacks a
            training seed or an accuracy.
    """
    if report.get("schema") != SCHEMA:
        raise FusionError(
            f"the report has schema {report.get('schema')!r}, this version reads {SCHEMA}: "
            "evaluate again"
        )
    seeds, data = report["seeds"], report["data"]
    cells = sorted(_cells(report["cells"], seeds), key=_order)
    # "none" sorts first: a corruption at severity 0 stands in only where there is no such cell.
    clean = [cell for cell in cells if not cell.is_corrupted and not cell.missing]
    if not clean:
        raise FusionError(
            "the report has no clean cell (severity 0, nothing missing): add it to the grid"
        )
    comparison = report.get("comparison") or {}
    return Results(
        modalities=tuple(sorted(data["modalities"])),
        seeds=tuple(seeds),
        num_examples=data["num_examples"],
        num_classes=data["num_classes"],
        split=data["split"],
        training_severity=report.get("training_severity", 0.4) or 0.0,
        clean=clean[0],
        cells=tuple(cells),
        joint=tuple(sorted(_cells(report.get("joint", ()), seeds), key=_order)),
        summary={int(seed): facts for seed, facts in (report.get("summary") or {}).items()},
        comparison=comparison,
        differences=_differences(comparison),
        thresholds=tuple(report.get("thresholds") or ()),
        examples=tuple(report.get("examples") or ()),
    )


def _differences(comparison: Mapping[str, Any]) -> dict[str, Difference]:
    return {
        label: Difference(
            found["accuracy"],
            found["other"],
            found["difference"],
            found["low"],
            found["high"],
            found["p"],
            found["real"],
        )
        for label, found in comparison.get("cells", {}).items()
    }


def _cells(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Cell]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["cell"], []).append(row)
    cells = [_cell(label, tuple(found)) for label, found in groups.items()]
    for cell in cells:
        _check_cell(cell, seeds)
    return cells


def _cell(label: str, rows: tuple[Mapping[str, Any], ...]) -> Cell:
    row = rows[0]
    modality = row.get("modality")
    severities = row.get("severities") or ({modality: row["severity"]} if modality else {})
    return Cell(
        label=label,
        corruption=row["corruption"],
        modality=modality,
        severity=row["severity"] if "severity" in row else max(severities.values(), default=0.0),
        strength=row.get("strength"),
        missing=tuple(sorted(row["missing"])),
        corruptions=row.get("corruptions") or ({modality: row["corruption"]} if modality else {}),
        severities=severities,
        rows=rows,
    )


def _check_cell(cell: Cell, seeds: Sequence[int]) -> None:
    """Refuse a cell whose mean would be over other seeds than the rest."""
    found = sorted(row["seed"] for row in cell.rows)
    if found != sorted(seeds):
        raise FusionError(
            f"cell {cell.label} has rows for training seeds {found}, the report names "
            f"{sorted(seeds)}: evaluate every seed once on the whole grid"
        )
    if len(cell.by_seed("accuracy")) != len(seeds):
        raise FusionError(
            f"cell {cell.label} has a row without a finite accuracy: evaluate it again"
        )


def _order(cell: Cell) -> tuple[Any, ...]:
    """Table order: clean, missing patterns, then corruption by corruption."""
    return (
        cell.corruption != "none",
        cell.corruption,
        sorted(cell.corruptions.items()),
        cell.modality or "",
        len(cell.missing),
        cell.missing,
        sorted(cell.severities.items()),
        cell.severity,
    )
