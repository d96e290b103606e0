"""Bars of missing patterns, reliability diagrams and risk-coverage curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_jax.report.drawing import COLOURS, FAINT, INK, WIDTH, clear_frame, svg
from fusion_jax.report.results import Cell, Results
from fusion_jax.report.words import pattern, short

_MAX_BARS = 40
# What the summary of a report holds, and its style.
_SHOWN = {"clean": (COLOURS[0], "-"), "worst": (COLOURS[1], "--")}


def _bar_name(results: Results, cell: Cell) -> str:
    """Name a pattern to fit beside its bar: a long list shortens its names before it is cut."""
    name = pattern(results, cell.missing)
    return name if len(name) <= 44 else short(pattern(results, cell.missing, limit=12), 60)


def missing_chart(results: Results) -> dict[str, Any]:
    """Bars of accuracy per missing pattern, all present on top."""
    cells = results.patterns[:_MAX_BARS]
    if len(cells) == 1:
        return {"figure": None, "num_left_out": 0}
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    for row, cell in enumerate(cells):
        number = cell.accuracy
        colour = INK if not cell.missing else COLOURS[0]
        axes.barh(row, number.mean, height=0.66, color=colour, alpha=0.75)
        if number.low is not None and number.high is not None:
            axes.plot([number.low, number.high], [row, row], color="black", linewidth=1.5)
            axes.plot([number.low, number.high], [row, row], "|", color="black", markersize=8)
        axes.text(1.02, row, f"{100 * number.mean:.1f} %", va="center")
    axes.set_yticks(range(len(cells)), [_bar_name(results, cell) for cell in cells])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"])
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("accuracy", x=0.5 / 1.1)
    axes.spines["bottom"].set_bounds(0, 1)
    axes.axvline(1 / results.num_classes, color="white", linewidth=3)
    axes.axvline(1 / results.num_classes, color=FAINT, linewidth=1.2, linestyle=(0, (2, 3)))
    figure_svg = svg(figure, "Bar chart of accuracy per missing pattern")
    return {"figure": figure_svg, "num_left_out": len(results.patterns) - len(cells)}


def pooled_reliability(results: Results, which: str) -> list[tuple[float, float, float, float]]:
    """The reliability diagram of the clean or the worst cell, the examples of all seeds together.

    Returns:
        For each bin with examples: its number in the order of confidence, divided by the number of
        bins; mean confidence; accuracy; share of the examples. Empty where a seed has none.
    """
    found = _each(results, "reliability", which)
    if not found:
        return []
    num_bins = len(found[0]["examples"])
    total = sum(sum(each["examples"]) for each in found)
    bins = []
    for index in range(num_bins):
        parts = [
            (each["examples"][index], each["confidence"][index], each["accuracy"][index])
            for each in found
            if each["examples"][index]
        ]
        count = sum(examples for examples, _, _ in parts)
        if count:
            confidence = sum(examples * value for examples, value, _ in parts) / count
            accuracy = sum(examples * value for examples, _, value in parts) / count
            bins.append((index / num_bins, confidence, accuracy, count / total))
    return bins


def _each(results: Results, part: str, which: str) -> list[Mapping[str, Any]]:
    """An entry of the summary for every seed, or nothing where one lacks it."""
    found = [(results.summary.get(seed, {}).get(part) or {}).get(which) for seed in results.seeds]
    known = [each for each in found if each is not None]
    return known if len(known) == len(found) else []


def knowledge_chart(results: Results) -> Any:
    """Reliability of the clean and the worst cell, and both risk-coverage curves beside them."""
    bins = {which: pooled_reliability(results, which) for which in _SHOWN}
    risks = {which: _each(results, "risk_coverage", which) for which in _SHOWN}
    if not all(bins.values()) or not all(risks.values()):
        return None
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    num_bins = len(_each(results, "reliability", "clean")[0]["examples"])
    for axes, which in ((left, "clean"), (middle, "worst")):
        _reliability_panel(axes, bins[which], which, num_bins, _cell_name(results, which))
    _risk_panel(right, risks)
    entries = {
        label: handle
        for axes in (left, middle)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper left", ncols=4, frameon=False
    )
    return svg(
        figure,
        "Reliability diagrams of the clean and the worst cell, and their risk-coverage curves",
    )


def _cell_name(results: Results, which: str) -> str:
    """What a cell is called beside the chart."""
    aside = which == "worst" and results.worst.is_misaligned
    return f"{which} cell, none misaligned" if aside else f"{which} cell"


def _reliability_panel(
    axes: Axes,
    bins: Sequence[tuple[float, float, float, float]],
    which: str,
    num_bins: int,
    label: str,
) -> None:
    clear_frame(axes)
    colour, _ = _SHOWN[which]
    lefts = [left for left, _, _, _ in bins]
    width = 1 / num_bins
    shares = [share for _, _, _, share in bins]
    axes.bar(lefts, shares, width=width, align="edge", color="#D4D8DD", label="share of examples")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)), label="perfect")
    confidences = [confidence for _, confidence, _, _ in bins]
    accuracies = [accuracy for _, _, accuracy, _ in bins]
    axes.plot(confidences, accuracies, color=colour, linewidth=1, alpha=0.6)
    # A bin of few examples says little: its point is small.
    areas = [12 + 120 * share for share in shares]
    axes.scatter(
        confidences, accuracies, s=areas, color=colour, zorder=3, clip_on=False, label=label
    )
    _unit_square(axes)
    axes.set_xlabel("confidence")
    axes.set_title(f"accuracy by confidence, {which}", loc="left", size=10)


def _risk_panel(axes: Axes, risks: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    clear_frame(axes)
    for which, (colour, dashes) in _SHOWN.items():
        found = risks[which]
        coverage = found[0]["coverage"]
        means = [sum(each) / len(found) for each in zip(*(f["risk"] for f in found), strict=True)]
        axes.plot(coverage, means, color=colour, linestyle=dashes, linewidth=2)
    _unit_square(axes)
    axes.set_xlabel("share answered, surest first")
    axes.set_title("error rate among the answered", loc="left", size=10)


def _unit_square(axes: Axes) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
    labels = ["0 %", "25 %", "50 %", "75 %", "100 %"]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelsize=8)
