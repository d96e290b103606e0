"""Curves against severity: accuracy (beside another run's, where there is one) and weights."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_jax.report.drawing import (
    FAINT,
    INK,
    WIDTH,
    accuracy_floor,
    accuracy_scale,
    clear_frame,
    in_training,
    line,
    severity_axis,
    spaced,
    style,
    svg,
)
from fusion_jax.report.results import Curve, Results
from fusion_jax.report.words import severity, short

# They keep the page small for any grid; it says what it leaves out, report.json has it all.
_MAX_CHARTS = 8
_MAX_PANELS = 12


def _line_name(modality: str | None) -> str:
    return "whole input" if modality is None else short(modality)


def accuracy_charts(results: Results) -> dict[str, Any]:
    """One chart of accuracy where each modality has one corruption, else one per corruption."""
    groups: dict[str, list[Curve]] = {}
    for curve in results.curves:
        groups.setdefault(curve[-1].corruption, []).append(curve)
    modalities = [curve[-1].modality for curve in results.curves]
    if len(groups) > 1 and len(set(modalities)) == len(modalities):
        groups = {"": results.curves}
    ranked = sorted(
        groups, key=lambda name: min(c.accuracy.mean for curve in groups[name] for c in curve)
    )
    shown = [name for name in groups if name in ranked[:_MAX_CHARTS]]
    floor = accuracy_floor(cell for curve in results.curves for cell in curve) if groups else 0.0
    others = [results.differences[c.label].other for c in results.cells if _known(results, (c,))]
    if others and min(others) < floor:
        floor = 0.0
    return {
        "figures": [(name, _accuracy_chart(results, name, groups[name], floor)) for name in shown],
        "num_left_out": len(groups) - len(shown),
        "floor": floor,
        "has_unseen": any(curve[-1].unseen for curve in results.curves),
        "has_other": any(_known(results, curve) for curve in results.curves),
    }


def _known(results: Results, curve: Curve) -> bool:
    """Whether the other run has every cell of a curve."""
    return all(cell.label in results.differences for cell in curve)


def _accuracy_chart(results: Results, name: str, curves: Sequence[Curve], floor: float) -> Markup:
    figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * len(curves)), layout="constrained")
    axes = figure.add_subplot()
    clear_frame(axes)
    severity_axis(axes, results, curves, 500)
    for curve in curves:
        label = _line_name(curve[-1].modality)
        label += "" if name else f": {short(curve[-1].corruption)}"
        looks = style(results, curve[-1].modality)
        line(axes, curve, [cell.accuracy for cell in curve], label=label, linewidth=2, **looks)
        if _known(results, curve):
            _other_line(axes, results, curve, f"{label}, other run")
    accuracy_scale(axes, results, floor)
    _strength_rows(axes, results, curves)
    if in_training(results, curves):
        axes.annotate(
            f"training range (0 to {severity(results.training_severity)})",
            (0, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            size=9,
            color=FAINT,
        )
    figure.legend(loc="outside upper left", ncols=4 if name else 2, frameon=False)
    return svg(figure, f"Line chart of accuracy against severity {name}".strip())


def _other_line(axes: Axes, results: Results, curve: Curve, label: str) -> None:
    """The other run's curve: the same colour, thin and dotted, with hollow markers."""
    looks = style(results, curve[-1].modality) | {"linestyle": (0, (1, 2))}
    axes.plot(
        [cell.severity for cell in curve],
        [results.differences[cell.label].other for cell in curve],
        label=label,
        linewidth=1.3,
        markerfacecolor="white",
        **looks,
    )


def _strength_rows(axes: Axes, results: Results, curves: Sequence[Curve]) -> None:
    """Rows under the severity ticks: the physical strength at each severity, one row per curve."""

    def put(x: float, row: float, text: str, **style: Any) -> None:
        axes.annotate(
            text,
            (x, 0),
            xycoords=axes.get_xaxis_transform() if style["ha"] == "center" else "axes fraction",
            xytext=(0 if style["ha"] == "center" else -8, -13 - 14 * row),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            **style,
        )

    put(0, 0, "severity", ha="right", color=INK, size=9)
    limit = axes.get_xlim()[1] / 1.04
    row = 0
    for curve in curves:
        texts = [str(cell.strength or ("clean" if cell.severity == 0 else "")) for cell in curve]
        if not any(cell.strength for cell in curve):
            continue
        row += 1
        colour = style(results, curve[-1].modality)["color"]
        put(0, row, _line_name(curve[-1].modality), ha="right", color=colour, size=8)
        texts = [short(text, 18) for text in texts]
        for i in spaced([cell.severity / limit for cell in curve], texts, 500, 8):
            put(curve[i].severity, row, texts[i], ha="center", color=INK, size=8)


def weights_chart(results: Results) -> dict[str, Any]:
    """Mean fusion weight of each modality against severity, one panel per corrupted modality."""
    curves = results.weight_curves
    ranked = sorted(curves, key=lambda curve: min(cell.accuracy.mean for cell in curve))
    shown = [curve for curve in curves if curve in ranked[:_MAX_PANELS]]
    if not shown:
        return {"figure": None, "num_left_out": 0}
    num_columns = min(len(shown), 3 if len(shown) > 4 else 2)
    num_rows = math.ceil(len(shown) / num_columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 2.6 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel().tolist()
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for index, (axes, curve) in enumerate(zip(panels, shown, strict=False)):
        _weight_panel(axes, results, curve, 540 / num_columns - 60)
        if index % num_columns == 0:
            axes.set_ylabel("mean fusion weight")
    handles, labels = panels[0].get_legend_handles_labels()
    # Three columns of 24 characters are what the width holds.
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
    for entry in legend.get_lines():  # the first panel's thick line is that panel's own
        entry.set_linewidth(1.4)
    label = "Line charts of the mean fusion weight of each modality against severity"
    return {"figure": svg(figure, label), "num_left_out": len(curves) - len(shown)}


def _weight_panel(axes: Axes, results: Results, curve: Curve, width: float) -> None:
    clear_frame(axes)
    severity_axis(axes, results, [curve], width)
    corrupted = curve[-1].modality
    for modality in results.modalities:
        numbers = [number for cell in curve if (number := cell.number("weights", modality))]
        looks = style(results, modality) | {"markersize": 5}
        thick = 3.2 if modality == corrupted else 1.4
        line(axes, curve, numbers, label=short(modality), linewidth=thick, **looks)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("severity")
    title = short(curve[-1].corruption)
    axes.set_title(f"{title}\non {_line_name(corrupted)}", loc="left", size=10)
