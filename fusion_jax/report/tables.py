"""What the tables of the page hold; the template decides how it looks."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib

from fusion_jax.errors import FusionError
from fusion_jax.report.results import Cell, Difference, Number, Results
from fusion_jax.report.words import (
    change_of_accuracy,
    condition,
    family,
    is_unseen,
    severity,
    signed,
)

MAX_ROWS = 500
_MAX_WORST = 10
_MAX_JOINT = 40
_MAX_DIFFERENCES = 10
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
# Fields of a row beside what a reader should know of them.
_MEASURES = (
    ("accuracy", "accuracy", "high"),
    ("ECE", "ece", "low"),
    ("adaptive ECE", "adaptive_ece", "low"),
    ("Brier score", "brier", "low"),
    ("NLL", "nll", "low"),
    ("failure AUROC", "failure_auroc", "high; 0.5 is chance"),
    ("AURC", "aurc", "low"),
    ("macro F1", "macro_f1", "high"),
)


class HeatCell(NamedTuple):
    """One field of a heat map; `text` is "" where the grid has no such cell."""

    text: str
    difference: str
    background: str
    ink: str
    name: str


def heat_map(results: Results) -> dict[str, Any] | None:
    """Accuracy over the severities of two modalities under the corruptions of training.

    Returns:
        "modalities" (rows, columns), "corruptions" of each, "columns" and "rows" (name, fields);
        None unless there are two modalities with joint cells.
    """
    recipe = results.recipe
    if len(results.modalities) != 2 or set(recipe) != set(results.modalities):
        return None
    names = results.modalities
    places: dict[tuple[float, float], Cell] = {}
    for cell in results.all_cells:
        place = _place(results, cell)
        if place:
            places.setdefault(place, cell)
    if not any(cell.is_several for cell in places.values()):
        return None
    # Missing beside a corruption is in the joint grid alone; without it the row would be empty.
    crossed = any(cell.is_several and cell.missing for cell in places.values())
    axes = [
        sorted({place[i] for place in places if place[i] >= 0}) + [-1.0] * crossed for i in (0, 1)
    ]
    lowest = min(cell.accuracy.mean for cell in places.values())
    rows = [
        (_level(row), [_field(results, places.get((row, column)), lowest) for column in axes[1]])
        for row in axes[0]
    ]
    return {
        "modalities": names,
        "corruptions": [recipe[name] for name in names],
        "columns": [_level(column) for column in axes[1]],
        "rows": rows,
        "has_other": any(field.difference for _, fields in rows for field in fields),
        "has_missing": crossed,
    }


def _place(results: Results, cell: Cell) -> tuple[float, float] | None:
    """Severities of both modalities, -1 for missing; None for what the map has no place for."""
    recipe = results.recipe
    if cell.is_drawn or any(recipe[name] != kind for name, kind in cell.corruptions.items()):
        return None
    first, second = (
        -1.0 if name in cell.missing else round(cell.severities.get(name, 0.0), 6)
        for name in results.modalities
    )
    return first, second


def _level(value: float) -> str:
    return "missing" if value < 0 else "clean" if value == 0 else severity(value)


def _field(results: Results, cell: Cell | None, lowest: float) -> HeatCell:
    if cell is None:
        return HeatCell("", "", "#ffffff", "#222222", "")
    accuracy = cell.accuracy.mean
    share = (accuracy - lowest) / (1 - lowest) if lowest < 1 else 1.0
    # Cividis is sequential and the same for readers with and without colour blindness.
    colour = matplotlib.colormaps["cividis"](share)
    found = results.differences.get(cell.label)
    return HeatCell(
        f"{100 * accuracy:.1f}",
        signed(100 * found.amount) if found and found.real else "",
        str(matplotlib.colors.to_hex(colour)),
        "#ffffff" if _luminance(colour) < 0.18 else "#000000",
        cell.label,
    )


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance by WCAG 2; black and white text contrast alike at about 0.18."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def corruption_rows(results: Results) -> dict[str, Any] | None:
    """Accuracy of every corruption and modality by severity, the lowest mean first.

    Returns:
        "severities" and "rows" (corruption, modality, whether training did not use it, accuracies,
        their mean); None for fewer than three curves, which the charts show as well.
    """
    curves = [tuple(cell for cell in curve if cell.severity) for curve in results.curves]
    if len(curves) < 3:
        return None
    severities = sorted({cell.severity for curve in curves for cell in curve})
    rows = []
    for curve in curves:
        found = {cell.severity: cell.accuracy.mean for cell in curve}
        mean = sum(found.values()) / len(found)
        values = [found.get(value) for value in severities]
        rows.append((curve[0].corruption, curve[0].modality, curve[0].unseen, values, mean))
    return {"severities": severities, "rows": sorted(rows, key=lambda row: row[-1])}


def joint_rows(results: Results) -> dict[str, Any]:
    """Joint cells that a heat map does not show: with mixed severities, or of more modalities."""
    has_map = heat_map(results) is not None
    mixed = sorted(
        (cell for cell in results.joint if cell.is_drawn),
        key=lambda cell: (cell.severity, cell.is_correlated),
    )
    rest = [] if has_map else [cell for cell in results.joint if not cell.is_drawn]
    rest.sort(key=lambda cell: cell.accuracy.mean)
    return {
        "rows": [cell_row(results, cell) for cell in mixed + rest[:_MAX_JOINT]],
        "num_left_out": max(0, len(rest) - _MAX_JOINT),
    }


def listed_cells(results: Results) -> list[Cell]:
    """All cells; of more than a page holds, those with one input touched and the worst others."""
    cells = results.all_cells
    if len(cells) <= MAX_ROWS:
        return list(cells)
    several = sorted((cell for cell in cells if cell.is_several), key=lambda c: c.accuracy.mean)
    single = [cell for cell in cells if not cell.is_several][:MAX_ROWS]
    kept = {cell.label for cell in [*single, *several[: MAX_ROWS - len(single)]]}
    return [cell for cell in cells if cell.label in kept]


def cell_row(results: Results, cell: Cell) -> dict[str, Any]:
    """A row of a table of cells."""
    found = results.differences.get(cell.label)
    if not cell.is_several:
        corruption, target = [cell.corruption], [cell.modality] if cell.modality else []
        level = [severity(cell.severity)]
    else:
        # "0 to" says that each example has severities of its own.
        start = "" if not cell.is_drawn else "same 0 to " if cell.is_correlated else "0 to "
        corruption, target = list(cell.corruptions.values()), list(cell.severities)
        level = [start + severity(value) for value in cell.severities.values()]
    return {
        "cell": cell,
        "corruption": corruption,
        "target": target,
        "level": level,
        "words": condition(results, cell),
        "change": change_of_accuracy(results, cell),
        "difference": _difference(found),
        "unseen": is_unseen(results, cell),
    }


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return signed(100 * found.amount) + (" real" if found.real else "")


def worst_rows(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The ten cells with the lowest accuracies, and without misaligned ones where these fill it."""
    ranked = sorted(results.all_cells, key=lambda cell: cell.accuracy.mean)
    lists = {"": ranked[:_MAX_WORST]}
    if any(cell.is_misaligned for cell in lists[""]):
        matched = [cell for cell in ranked if not cell.is_misaligned]
        lists["Leaving misaligned inputs aside"] = matched[:_MAX_WORST]
    return {name: [cell_row(results, cell) for cell in cells] for name, cells in lists.items()}


def contributions(results: Results) -> list[tuple[str, Number | None, Number | None]]:
    """Modality, its Shapley share and its change rate; empty where no seed has either."""
    rows = [
        (name, results.total("shapley", name), results.total("change_rate", name))
        for name in results.modalities
    ]
    return rows if any(share or rate for _, share, rate in rows) else []


def correlations(results: Results) -> dict[str, Any] | None:
    """Spearman's correlation of weights and signals with the injected noise, by modality.

    Returns:
        "columns" (names) and "rows" (modality, a number or None for each column); None where the
        report has none of them.
    """
    signals: dict[str, None] = {}
    for seed in results.seeds:
        signals |= dict.fromkeys((results.summary.get(seed) or {}).get("signal_spearman") or {})
    # What predicts noise is what the correlation is for; the others follow by name.
    names = sorted(signals, key=lambda name: (name != "PredictedNoise", name))
    columns: list[tuple[str, tuple[str, ...]]] = [("fusion weight", ("weight_spearman",))]
    columns += [(name, ("signal_spearman", name)) for name in names]
    rows = [
        (name, [results.total(*path, name) for _, path in columns]) for name in results.modalities
    ]
    if not any(number for _, numbers in rows for number in numbers):
        return None
    return {"columns": [name for name, _ in columns], "rows": rows}


def knowledge_rows(results: Results) -> list[tuple[str, list[Number | None], str]]:
    """Measure, its value clean and in the worst cell, and where it should lie.

    Where inputs of the worst cell are misaligned, the worst cell without that stands between.
    """
    cells = [results.clean, results.worst]
    if results.worst.is_misaligned:
        cells.insert(1, results.worst_matched)
    rows = [
        (name, [cell.number(field) for cell in cells], wanted) for name, field, wanted in _MEASURES
    ]
    level = results.total("conformal", "level")
    if level:
        clean, worst = (results.total("conformal", which) for which in ("clean", "worst"))
        numbers = [clean, worst, *[None] * (len(cells) - 2)]
        rows.append(("conformal coverage", numbers, f"at least {100 * level.mean:g} %"))
    return [row for row in rows if any(row[1])]


def own_worst_cells(results: Results) -> list[str]:
    """The worst cell of each seed without misaligned inputs; several where the seeds differ."""
    labels = [results.summary.get(seed, {}).get("worst_cell") for seed in results.seeds]
    return list(dict.fromkeys(label for label in labels if label))


def comparison(results: Results) -> dict[str, Any] | None:
    """The largest real differences, and what each kind of fault comes to."""
    found = results.differences
    if not found:
        return None
    cells = {cell.label: cell for cell in results.all_cells}
    real = sorted(
        (label for label in found if found[label].real), key=lambda label: -found[label].amount
    )
    better = [label for label in real if found[label].amount > 0]
    worse = [label for label in reversed(real) if found[label].amount < 0]
    kinds: dict[str, list[Difference]] = {}
    for label, each in found.items():
        if label in cells:
            kinds.setdefault(family(cells[label]), []).append(each)
    return {
        "kinds": [_kind_row(name, each) for name, each in kinds.items()],
        "rows": [
            (label, condition(results, cells[label]) if label in cells else label, found[label])
            for label in better[:_MAX_DIFFERENCES] + worse[:_MAX_DIFFERENCES]
        ],
        "num_left_out": max(0, len(better) - _MAX_DIFFERENCES)
        + max(0, len(worse) - _MAX_DIFFERENCES),
        "facts": results.comparison,
    }


def _kind_row(name: str, found: list[Difference]) -> dict[str, Any]:
    return {
        "name": name,
        "num": len(found),
        "here": sum(each.here for each in found) / len(found),
        "other": sum(each.other for each in found) / len(found),
        "better": sum(each.real and each.amount > 0 for each in found),
        "worse": sum(each.real and each.amount < 0 for each in found),
        "amount": signed(100 * sum(each.amount for each in found) / len(found)),
    }


def examples(results: Results) -> list[dict[str, Any]]:
    """Examples with pictures, in the order of the report.

    Raises:
        FusionError: where a picture is no PNG held in the report: the page loads nothing.
    """
    cells = {cell.label: cell for cell in results.all_cells}
    found = []
    for example in results.examples:
        pictures: Mapping[str, str] = example["pictures"]
        for name, picture in pictures.items():
            if not _PICTURE.fullmatch(picture):
                raise FusionError(
                    f"the picture of {name} of example {example['example_id']} is no PNG in a "
                    "data address: make it with fusion_jax.evaluation.pictures"
                )
        cell = cells.get(example["cell"])
        words = condition(results, cell) if cell else example["cell"]
        found.append({**example, "words": words})
    return found
