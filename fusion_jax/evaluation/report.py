"""The HTML page of an evaluation: one self-contained file for a reader who has not seen the code.

`render_report` takes the dict that report.json holds and returns the page. Every sentence of the
verdict is computed from the numbers. Nothing is evaluated, averaged over examples or written to
disk here, and the page needs no network and no JavaScript.
"""

import dataclasses
import importlib.resources
import io
import itertools
import math
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_jax.errors import FusionError

SCHEMA = 2

# They keep the page under 1 MB for any grid; it says what it leaves out, report.json has it all.
_MAX_ACCURACY_CHARTS = 8
_MAX_WEIGHT_PANELS = 12
_MAX_BARS = 40
_MAX_TABLE_ROWS = 500

# Changes below these are written as "about the same", not as a rise or a fall.
_WEIGHT_TOLERANCE = 0.005
_ECE_TOLERANCE = 0.01
_POINT_TOLERANCE = 0.05

# Colour-blind-safe (Okabe and Ito, Tol); markers and dashes tell the lines apart in a grey print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B07800", "#6B6B6B")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":")
_INK, _FAINT, _SHADE = "#222222", "#666666", "#EEF1F4"
_WIDTH = 9.0  # inches; the page scales a chart to its column
_GAP = "\u00a0"  # keeps a number and its unit on one line


class _Number(NamedTuple):
    """Mean over training seeds and its spread; `low` and `high` are None where none is known."""

    mean: float
    low: float | None
    high: float | None


class _Change(NamedTuple):
    """How far a cell lies from the clean one.

    Attributes:
        cell: the cell.
        amount: mean change, in percentage points of accuracy or in units of ECE; positive = worse.
        sure: True where every training seed agrees on the sign (more than one seed), or where the
            two bootstrap intervals do not overlap (one seed).
    """

    cell: "_Cell"
    amount: float
    sure: bool


@dataclasses.dataclass(frozen=True)
class _Cell:
    """The rows, one per training seed, that share everything but the seed and the results."""

    corruption: str
    modality: str | None
    severity: float
    strength: str | None
    missing: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def is_corrupted(self) -> bool:
        return self.corruption != "none" and self.severity > 0

    @property
    def unseen(self) -> bool:
        """Whether it is a corruption that training did not use."""
        return bool(self.rows[0].get("unseen"))

    def by_seed(self, *path: str) -> dict[int, float]:
        """Finite values of a field by training seed, for example `by_seed("weights", "audio")`."""
        values = {}
        for row in self.rows:
            value: Any = row
            for name in path:
                value = value.get(name) if isinstance(value, Mapping) else None
            if value is not None and math.isfinite(value):
                values[row["seed"]] = float(value)
        return values

    def number(self, *path: str) -> _Number | None:
        """Mean and spread of a field, None where no row has it."""
        values = list(self.by_seed(*path).values())
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        if len(self.rows) > 1:
            return _Number(mean, min(values), max(values))
        if path == ("accuracy",):
            return _Number(
                mean, self.rows[0].get("accuracy_low"), self.rows[0].get("accuracy_high")
            )
        return _Number(mean, None, None)

    @property
    def accuracy(self) -> _Number:
        """Accuracy with its spread; every cell has one, `_check_cell` sees to it."""
        return self.number("accuracy") or _Number(math.nan, None, None)

    def mean(self, *path: str) -> float:
        """Mean of a field, NaN where no row has it."""
        number = self.number(*path)
        return math.nan if number is None else number.mean


_Curve = tuple[
    _Cell, ...
]  # the cells of one corruption of one modality by rising severity, clean first


@dataclasses.dataclass(frozen=True)
class _Results:
    """A report in the form that sentences, charts and tables are made from."""

    modalities: tuple[str, ...]
    seeds: tuple[int, ...]
    num_examples: int
    num_classes: int
    split: str
    training_severity: float
    clean: _Cell
    cells: tuple[_Cell, ...]

    @property
    def spread(self) -> str:
        """What an interval on the page means."""
        if len(self.seeds) > 1:
            return f"the lowest and the highest of the {len(self.seeds)} training seeds"
        return f"the 95{_GAP}% bootstrap interval over the test examples, for the one training seed"

    @property
    def curves(self) -> list[_Curve]:
        """One curve per corruption and modality, all modalities present."""
        groups: dict[tuple[str, str], list[_Cell]] = {}
        for cell in self.cells:
            if cell.corruption != "none" and not cell.missing:
                groups.setdefault((cell.modality or "", cell.corruption), []).append(cell)
        curves = []
        for _, group in sorted(groups.items()):
            cells = sorted(group, key=lambda cell: cell.severity)
            curves.append(tuple(cells if cells[0].severity == 0 else [self.clean, *cells]))
        return [curve for curve in curves if len(curve) > 1]

    @property
    def weight_curves(self) -> list[_Curve]:
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
    def patterns(self) -> list[_Cell]:
        """Clean cells by missing pattern, all present first."""
        patterns: dict[tuple[str, ...], _Cell] = {(): self.clean}
        for cell in self.cells:
            if not cell.is_corrupted:
                patterns.setdefault(cell.missing, cell)
        return list(patterns.values())


def render_report(report: Mapping[str, Any]) -> str:
    """Render an evaluation report as one self-contained HTML page.

    Args:
        report: what report.json holds: "schema" (2), "run", "data", "seeds" and "cells", one row
            per cell and training seed; accuracy and ECE in [0, 1]. "training_severity" (optional,
            default 0.4) is the highest severity of training, 0 or None where all of it was clean.
            Rows of corruptions that training did not use have "unseen". "joint" is not shown.

    Returns:
        The page: under 1 MB, without network resources and scripts.

    Raises:
        FusionError: where the schema is another one, the clean cell is missing, or a cell lacks a
            training seed.
    """
    results = _read(report)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters.update(percent=_percent, severity=_severity)
    source = (
        importlib.resources.files("fusion_jax.evaluation")
        .joinpath("report.html.j2")
        .read_text("utf-8")
    )
    return environment.from_string(source).render(
        run=report["run"],
        data=report["data"],
        results=results,
        charts=_charts(results),
        verdict=_verdict(results),
        has_weights=any(row.get("weights") for cell in results.cells for row in cell.rows),
        changes=[_percent_change(results, cell) for cell in results.cells],
        max_rows=_MAX_TABLE_ROWS,
        guess_nll=math.log(results.num_classes),
    )


def _read(report: Mapping[str, Any]) -> _Results:
    """Group the rows into cells and refuse what cannot be averaged."""
    if report.get("schema") != SCHEMA:
        raise FusionError(
            f"the report has schema {report.get('schema')!r}, this version reads {SCHEMA}: "
            "evaluate again"
        )
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in report["cells"]:
        missing = tuple(sorted(row["missing"]))
        # 0.1 + 0.2 and 0.3 are one severity.
        key = (row["corruption"], row["modality"], round(row["severity"], 6), missing)
        groups.setdefault(key, []).append(row)
    cells = []
    for (corruption, modality, severity, missing), rows in groups.items():
        cell = _Cell(corruption, modality, severity, rows[0].get("strength"), missing, tuple(rows))
        _check_cell(cell, report["seeds"])
        cells.append(cell)
    cells.sort(key=_order)
    # "none" sorts first: a corruption at severity 0 stands in only where there is no such cell.
    clean = [cell for cell in cells if not cell.is_corrupted and not cell.missing]
    if not clean:
        raise FusionError(
            "the report has no clean cell (severity 0, nothing missing): add it to the grid"
        )
    data = report["data"]
    training = report.get("training_severity", 0.4)
    return _Results(
        modalities=tuple(sorted(data["modalities"])),
        seeds=tuple(report["seeds"]),
        num_examples=data["num_examples"],
        num_classes=data["num_classes"],
        split=data["split"],
        training_severity=training or 0.0,
        clean=clean[0],
        cells=tuple(cells),
    )


def _check_cell(cell: _Cell, seeds: Sequence[int]) -> None:
    """Refuse a cell whose mean would be over other seeds than the rest."""
    found = sorted(row["seed"] for row in cell.rows)
    name = (cell.corruption, cell.modality, cell.severity, cell.missing)
    if found != sorted(seeds):
        raise FusionError(
            f"cell {name} has rows for training seeds {found}, the report names {sorted(seeds)}: "
            "evaluate every seed once on the whole grid"
        )
    if len(cell.by_seed("accuracy")) != len(seeds):
        raise FusionError(f"cell {name} has a row without a finite accuracy: evaluate it again")


def _order(cell: _Cell) -> tuple[Any, ...]:
    """Table order: clean, missing patterns, then corruption by corruption."""
    plain = cell.corruption == "none"
    return (
        not plain,
        cell.corruption,
        cell.modality or "",
        len(cell.missing),
        cell.missing,
        cell.severity,
    )


# Words


def _short(text: str, limit: int = 24) -> str:
    # SVG is XML, and one control character in a name would make it unreadable.
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}{_GAP}%"


def _points(value: float) -> str:
    return f"{value:.1f} points"


def _severity(value: float) -> str:
    return f"{value:g}"


def _percent_change(results: _Results, cell: _Cell) -> str:
    """Change of the mean accuracy against clean, in signed points, never a minus zero."""
    change = round(100 * (cell.accuracy.mean - results.clean.accuracy.mean), 1)
    return f"{change:+.1f}" if change else "0.0"


def _pattern(results: _Results, missing: Sequence[str], *, limit: int = 1000) -> str:
    """Name of a missing pattern: the shorter of what is missing and what is left."""
    if not missing:
        return "all present"
    left = [name for name in results.modalities if name not in missing]
    few_left = 0 < len(left) < len(missing)
    names = [_short(name, limit) for name in (left if few_left else missing)]
    return f"{'only' if few_left else 'without'} {', '.join(names)}"


def _condition(results: _Results, cell: _Cell) -> str:
    """Put a cell in words, to follow "accuracy" or precede a comma."""
    pattern = _pattern(results, cell.missing)
    pattern = f"with {pattern}" if pattern.startswith("only") else pattern
    if not cell.is_corrupted:
        return pattern if cell.missing else "with clean input"
    notes = [str(cell.strength)] if cell.strength else []
    if cell.unseen:
        notes.append("not used in training")
    elif cell.severity > results.training_severity:
        notes.append("beyond training")
    target = f" on {cell.modality}" if cell.modality else ""
    words = f"with {cell.corruption}{target} at severity {_severity(cell.severity)}"
    words += f" ({', '.join(notes)})" if notes else ""
    return f"{words}, {pattern}" if cell.missing else words


def _verdict(results: _Results) -> list[tuple[str, str]]:
    """Write the opening paragraph: pairs of a lead-in and what follows it."""
    parts = [
        ("Clean input.", _clean_sentence(results)),
        ("What hurts.", " ".join(_loss_sentences(results))),
        ("Does it turn away from noise?", _weight_sentence(results)),
        ("Does it know when it may be wrong?", _calibration_sentence(results)),
    ]
    if len(results.seeds) == 1:
        caution = (
            "All of this is one training seed: another training run may differ by more than the "
            "intervals show, and fusion weights and ECE come without an interval."
        )
        parts.append(("Caution.", caution))
    return [(lead, text) for lead, text in parts if text]


def _clean_sentence(results: _Results) -> str:
    accuracy = results.clean.accuracy
    many = len(results.seeds) > 1
    words = (
        f"With clean and complete input the model is right on {_percent(accuracy.mean)} of the "
        f"{results.num_examples} examples of the {results.split} split{' on average' * many}"
    )
    if accuracy.low is not None and accuracy.high is not None:
        meaning = f"lowest to highest of {len(results.seeds)} training seeds"
        meaning = meaning if many else f"95{_GAP}% bootstrap interval"
        words += f" ({meaning}: {_percent(accuracy.low)} to {_percent(accuracy.high)})"
    guess = _percent(1 / results.num_classes)
    return f"{words}; guessing among {results.num_classes} classes gives {guess}."


def _change(results: _Results, cell: _Cell, field: str) -> _Change:
    """Change of "accuracy" (points lost) or "ece" against the clean cell, paired by seed."""
    before, after = results.clean.by_seed(field), cell.by_seed(field)
    scale = -100.0 if field == "accuracy" else 1.0
    changes = [scale * (after[seed] - before[seed]) for seed in results.seeds]
    amount = math.fsum(changes) / len(changes)
    if len(changes) > 1:
        return _Change(cell, amount, all(change * amount > 0 for change in changes))
    low, high = results.clean.rows[0].get("accuracy_low"), cell.rows[0].get("accuracy_high")
    if field == "accuracy" and low is not None and high is not None:
        return _Change(cell, amount, high < low)
    # One seed and no interval: nothing could speak against the change.
    return _Change(cell, amount, True)


def _doubt(results: _Results, change: _Change) -> str:
    if change.sure:
        return ""
    many = len(results.seeds) > 1
    return " (not in every seed)" if many else f" (the 95{_GAP}% intervals overlap)"


def _loss_sentences(results: _Results) -> list[str]:
    """Say what costs accuracy, the costliest kind of fault first."""
    both = [cell for cell in results.cells if cell.is_corrupted and cell.missing]
    worst = [min(curve, key=lambda cell: cell.accuracy.mean) for curve in results.curves]
    by_modality: dict[str | None, _Cell] = {}
    for cell in sorted(worst, key=lambda cell: cell.accuracy.mean):
        by_modality.setdefault(cell.modality, cell)
    kinds = {
        "a corrupted input": [cell for cell in by_modality.values() if cell.is_corrupted],
        "a missing input": results.patterns[1:],
        "a corrupted and a missing input together": both,
    }
    # A curve that never leaves clean has no worst cell; it still counts as tested.
    tested = [bool(results.curves), len(results.patterns) > 1, bool(both)]
    losses = {}
    for (kind, cells), was_tested in zip(kinds.items(), tested, strict=True):
        changes = [_change(results, cell, "accuracy") for cell in cells]
        if was_tested:
            losses[kind] = sorted(changes, key=lambda change: -change.amount)
    if not losses:
        return [
            "The grid has no corruption and no missing pattern, so this page says nothing about "
            "robustness."
        ]
    ranked = sorted(losses.items(), key=lambda item: -item[1][0].amount if item[1] else 0.0)
    return [
        _loss_sentence(results, kind, changes, index == 0)
        for index, (kind, changes) in enumerate(ranked)
    ]


def _loss_sentence(results: _Results, kind: str, changes: Sequence[_Change], is_first: bool) -> str:
    """One kind of fault: its three costliest cells, and a bound for the others."""
    costly = [change for change in changes if change.amount >= _POINT_TOLERANCE]
    if not costly:
        return f"No tested case of {kind} lowers the mean accuracy."
    items: list[str] = []
    for change in costly[:3]:
        verb = "accuracy is " if not items else ""
        left = _percent(change.cell.accuracy.mean)
        items.append(
            f"{_condition(results, change.cell)}, {verb}{_points(change.amount)} lower, at {left}"
            f"{_doubt(results, change)}"
        )
    rest = [change for change in changes if change not in costly[:3]]
    if rest:
        bound = max(0.0, max(change.amount for change in rest))
        items.append(
            f"the other {len(rest)} lose at most {_points(bound)}"
            if len(rest) > 1
            else f"the other one loses {_points(bound)}"
        )
    return f"{'The largest loss comes from' if is_first else 'As for'} {kind}: {'; '.join(items)}."


def _weight_change(curve: _Curve, modality: str) -> tuple[bool, str]:
    """Whether a weight is lower at the curve's end than at its start, and its course in words."""
    first, last = curve[0].by_seed("weights", modality), curve[-1].by_seed("weights", modality)
    means = [cell.mean("weights", modality) for cell in curve]
    change = means[-1] - means[0]
    numbers = f"{means[0]:.2f} to {means[-1]:.2f}"
    if max(means) - min(means) < _WEIGHT_TOLERANCE:
        return False, f"stays at {means[0]:.2f}"
    if abs(change) < _WEIGHT_TOLERANCE:
        return False, f"moves, but ends where it began ({numbers})"
    sign = math.copysign(1.0, change)
    agree = sum((last[seed] - first[seed]) * sign > 0 for seed in first)
    words = f"{'falls' if change < 0 else 'rises'} from {numbers}"
    if agree < len(first):
        return False, f"{words} on average, but only in {agree} of {len(first)} seeds"
    steps = [sign * (after - before) for before, after in itertools.pairwise(means)]
    if min(steps) < -_WEIGHT_TOLERANCE:
        words += ", not at every step"
    return change < 0, words


def _weight_sentence(results: _Results) -> str:
    """Whether the fusion weight leaves the corrupted modality."""
    if len(results.modalities) == 1:
        return "There is one modality, so there are no fusion weights to compare."
    curves = [curve for curve in results.weight_curves if curve[-1].modality in results.modalities]
    if not curves:
        if not results.curves:
            return ""
        return (
            "The report has no fusion weights for these cells, so it cannot say whether they "
            "follow the noise."
        )
    found = []
    for curve in curves:
        modality = str(curve[-1].modality)
        lower, words = _weight_change(curve, modality)
        found.append((lower, f"{modality} {words} ({curve[-1].corruption})"))
    num_lower = sum(lower for lower, _ in found)
    # The exceptions come first, so that a cut list never hides them.
    items = [item for _, item in sorted(found, key=lambda pair: pair[0])]
    more = [f"{len(items) - 4} more in the table below"] if len(items) > 4 else []
    listed = "; ".join(items[:4] + more)
    share = f" in {num_lower} of {len(found)} cases" if len(found) > 1 else ""
    seeds = " in every seed" if len(results.seeds) > 1 else ""
    outcome = f"falls{seeds}{share}" if num_lower else f"does not fall{seeds}"
    return (
        "From clean input to the highest severity, the fusion weight of the corrupted modality "
        f"{outcome}: {listed}."
    )


def _calibration_sentence(results: _Results) -> str:
    """Whether stated confidence stays as reliable as on clean input."""
    cells = [cell for cell in results.cells if len(cell.by_seed("ece")) == len(results.seeds)]
    if results.clean not in cells:
        return ""
    clean = results.clean.mean("ece")
    worst = max(cells, key=lambda cell: cell.mean("ece"))
    start = f"The calibration error (ECE) is {clean:.3f} with clean input"
    if len(cells) == 1:
        return f"{start}."
    if worst.mean("ece") <= clean:
        return f"{start} and no higher in any other cell."
    change = _change(results, worst, "ece")
    words = f"{start} and {worst.mean('ece'):.3f} at worst, {_condition(results, worst)}"
    words += _doubt(results, change)
    if change.amount < _ECE_TOLERANCE:
        return f"{words}: its confidence is about as far off as with clean input."
    return f"{words}: there its confidence is a less reliable guide."


# Charts


def _charts(results: _Results) -> dict[str, dict[str, Any]]:
    # The reader's own matplotlibrc must not change the page, nor a "$" in a name start a formula.
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False}
        )
        # Text stays text in the SVG, so a glyph that matplotlib's font lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return {
            "accuracy": _accuracy_charts(results),
            "missing": _missing_chart(results),
            "weights": _weights_chart(results),
        }


def _line_name(modality: str | None) -> str:
    return "whole input" if modality is None else _short(modality)


def _style(results: _Results, modality: str | None) -> dict[str, Any]:
    """Colour, marker and dashes of a modality, the same on every chart."""
    if modality not in results.modalities:
        return {"color": _INK, "marker": "X", "linestyle": "-"}
    index = results.modalities.index(modality)
    dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": dashes,
    }


def _svg(figure: Figure, label: str) -> Markup:
    """Turn a figure into an <svg> element for inline use in HTML.

    Namespaces, metadata and the doctype are dropped (HTML needs none of them, and they hold
    addresses); ids are made unique over the page; numbers keep two decimals.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    # Clip paths of two figures can share a hash; the label tells the figures apart.
    prefix = f"c{zlib.crc32(label.encode()):x}-"
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        # Only text elements hold text; the rest is the indentation between elements.
        element.text = element.text if element.tag == "text" else None
        element.tail = None
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.tag == "g":
            attributes.pop("id", None)
        element.attrib.clear()
        for name, value in attributes.items():
            element.set(name, _tidy(name, value, prefix))
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    # Safe in the page: ElementTree has escaped every text.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tidy(name: str, value: str, prefix: str) -> str:
    """One attribute of an SVG element, shorter and safe beside other figures."""
    if name == "id":
        return prefix + value
    if name == "href":
        return re.sub(r"^#", "#" + prefix, value)
    value = value.replace("url(#", f"url(#{prefix}")
    if name == "style":  # the page's style sheet names the font
        value = re.sub(r"font-family: [^;]*(; )?", "", value)
        value = re.sub(r"(font: (?:\w+ )*[\d.]+px) [^;]*", r"\1 sans-serif", value)
    value = re.sub(r" ?rotate\(-?0 [^)]*\)", "", value)
    return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", value).strip()


def _clear_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)


def _line(axes: Axes, curve: _Curve, numbers: Sequence[_Number], **style: Any) -> None:
    """Draw a line over the curve's severities, with a band where every point has a spread."""
    severities = [cell.severity for cell in curve]
    axes.plot(severities, [number.mean for number in numbers], **style)
    band = [(n.low, n.high) for n in numbers if n.low is not None and n.high is not None]
    if len(band) == len(numbers):
        lows, highs = [low for low, _ in band], [high for _, high in band]
        axes.fill_between(severities, lows, highs, color=style["color"], alpha=0.18, linewidth=0)


def _spaced(
    positions: Sequence[float], texts: Sequence[str], width: float, size: float
) -> list[int]:
    """Which labels to show so that none touches the next: the last one always, else from the left.

    Args:
        positions: rising x positions in [0, 1].
        texts: the labels, one per position.
        width: width of the axis in points.
        size: font size in points; a character of DejaVu Sans is about 0.58 of it wide.
    """
    halves = [(0.29 * len(text) * size + 2) / width for text in texts]
    shown: list[int] = []
    for index, position in enumerate(positions):
        is_last = index == len(positions) - 1
        while (
            is_last
            and len(shown) > 1
            and position - halves[index] < positions[shown[-1]] + halves[shown[-1]]
        ):
            shown.pop()
        if (
            not shown
            or is_last
            or position - halves[index] >= positions[shown[-1]] + halves[shown[-1]]
        ):
            shown.append(index)
    return shown


def _severity_axis(axes: Axes, results: _Results, curves: Sequence[_Curve], width: float) -> None:
    """Severity ticks that do not touch, and the training range as a labelled band."""
    severities = sorted({cell.severity for curve in curves for cell in curve})
    limit = max(severities[-1], results.training_severity)
    texts = [_severity(value) for value in severities]
    ticks = [severities[i] for i in _spaced([s / limit for s in severities], texts, width, 10)]
    axes.set_xticks(ticks, [_severity(value) for value in ticks])
    axes.tick_params(axis="x", pad=4.5)
    axes.set_xlim(-0.04 * limit, 1.04 * limit)
    if _in_training(results, curves):
        axes.axvspan(0, results.training_severity, color=_SHADE, zorder=0, linewidth=0)


def _in_training(results: _Results, curves: Sequence[_Curve]) -> bool:
    """Whether training knew all these corruptions, so that a chart may show up to where."""
    return results.training_severity > 0 and not any(curve[-1].unseen for curve in curves)


def _strength_rows(axes: Axes, results: _Results, curves: Sequence[_Curve]) -> None:
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

    put(0, 0, "severity", ha="right", color=_INK, size=9)
    limit = axes.get_xlim()[1] / 1.04
    row = 0
    for curve in curves:
        texts = [str(cell.strength or ("clean" if cell.severity == 0 else "")) for cell in curve]
        if not any(cell.strength for cell in curve):
            continue
        row += 1
        colour = _style(results, curve[-1].modality)["color"]
        put(0, row, _line_name(curve[-1].modality), ha="right", color=colour, size=8)
        texts = [_short(text, 18) for text in texts]
        for i in _spaced([cell.severity / limit for cell in curve], texts, 500, 8):
            put(curve[i].severity, row, texts[i], ha="center", color=_INK, size=8)


def _accuracy_floor(cells: Iterable[_Cell]) -> float:
    """Where the accuracy axis starts: 0, or a round number where every value is high."""
    lowest = min(
        min(n.mean, n.mean if n.low is None else n.low)
        for c in cells
        if (n := c.number("accuracy"))
    )
    floor = math.floor((lowest - 0.02) * 10) / 10
    return floor if floor >= 0.4 else 0.0


def _accuracy_charts(results: _Results) -> dict[str, Any]:
    """One chart of accuracy where each modality has one corruption, else one per corruption."""
    groups: dict[str, list[_Curve]] = {}
    for curve in results.curves:
        groups.setdefault(curve[-1].corruption, []).append(curve)
    modalities = [curve[-1].modality for curve in results.curves]
    if len(groups) > 1 and len(set(modalities)) == len(modalities):
        groups = {"": results.curves}
    ranked = sorted(
        groups, key=lambda name: min(c.accuracy.mean for curve in groups[name] for c in curve)
    )
    shown = [name for name in groups if name in ranked[:_MAX_ACCURACY_CHARTS]]
    floor = _accuracy_floor(cell for curve in results.curves for cell in curve) if groups else 0.0
    return {
        "figures": [(name, _accuracy_chart(results, name, groups[name], floor)) for name in shown],
        "num_left_out": len(groups) - len(shown),
        "floor": floor,
    }


def _accuracy_chart(results: _Results, name: str, curves: Sequence[_Curve], floor: float) -> Markup:
    figure = Figure(figsize=(_WIDTH, 3.2 + 0.2 * len(curves)), layout="constrained")
    axes = figure.add_subplot()
    _clear_frame(axes)
    _severity_axis(axes, results, curves, 500)
    for curve in curves:
        label = _line_name(curve[-1].modality)
        label += "" if name else f": {_short(curve[-1].corruption)}"
        style = _style(results, curve[-1].modality)
        _line(axes, curve, [cell.accuracy for cell in curve], label=label, linewidth=2, **style)
    _accuracy_scale(axes, results, floor)
    _strength_rows(axes, results, curves)
    if _in_training(results, curves):
        axes.annotate(
            f"training range (0 to {_severity(results.training_severity)})",
            (0, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            size=9,
            color=_FAINT,
        )
    figure.legend(loc="outside upper left", ncols=4 if name else 2, frameon=False)
    return _svg(figure, f"Line chart of accuracy against severity {name}".strip())


def _accuracy_scale(axes: Axes, results: _Results, floor: float) -> None:
    """Set the percent axis and, where it is in sight, the level of guessing."""
    num_ticks = 6 if floor == 0 else round((1 - floor) / 0.1) + 1
    ticks = [floor + (1 - floor) * i / (num_ticks - 1) for i in range(num_ticks)]
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.set_ylim(floor, 1.0 + 0.015 * (1 - floor))
    axes.set_ylabel("accuracy")
    guess = 1 / results.num_classes
    if guess >= floor:
        axes.axhline(guess, color=_FAINT, linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(
            "guessing",
            (1, guess),
            xycoords=axes.get_yaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            size=9,
            color=_FAINT,
        )


def _bar_name(results: _Results, cell: _Cell) -> str:
    """Name a pattern to fit beside its bar: a long list shortens its names before it is cut."""
    name = _pattern(results, cell.missing)
    return name if len(name) <= 44 else _short(_pattern(results, cell.missing, limit=12), 60)


def _missing_chart(results: _Results) -> dict[str, Any]:
    """Bars of accuracy per missing pattern, all present on top."""
    cells = results.patterns[:_MAX_BARS]
    if len(cells) == 1:
        return {"figure": None, "num_left_out": 0}
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.3 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    for row, cell in enumerate(cells):
        number = cell.accuracy
        axes.barh(
            row,
            number.mean,
            height=0.66,
            color=_INK if not cell.missing else _COLOURS[0],
            alpha=0.75,
        )
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
    axes.axvline(1 / results.num_classes, color=_FAINT, linewidth=1.2, linestyle=(0, (2, 3)))
    svg = _svg(figure, "Bar chart of accuracy per missing pattern")
    return {"figure": svg, "num_left_out": len(results.patterns) - len(cells)}


def _weights_chart(results: _Results) -> dict[str, Any]:
    """Mean fusion weight of each modality against severity, one panel per corrupted modality."""
    curves = results.weight_curves
    ranked = sorted(curves, key=lambda curve: min(cell.accuracy.mean for cell in curve))
    shown = [curve for curve in curves if curve in ranked[:_MAX_WEIGHT_PANELS]]
    if not shown:
        return {"figure": None, "num_left_out": 0}
    num_columns = min(len(shown), 3 if len(shown) > 4 else 2)
    num_rows = math.ceil(len(shown) / num_columns)
    figure = Figure(figsize=(_WIDTH, 0.6 + 2.6 * num_rows), layout="constrained")
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
    for line in legend.get_lines():  # the first panel's thick line is that panel's own
        line.set_linewidth(1.4)
    svg = _svg(figure, "Line charts of the mean fusion weight of each modality against severity")
    return {"figure": svg, "num_left_out": len(curves) - len(shown)}


def _weight_panel(axes: Axes, results: _Results, curve: _Curve, width: float) -> None:
    _clear_frame(axes)
    _severity_axis(axes, results, [curve], width)
    corrupted = curve[-1].modality
    for modality in results.modalities:
        numbers = [number for cell in curve if (number := cell.number("weights", modality))]
        style = _style(results, modality) | {"markersize": 5}
        thick = 3.2 if modality == corrupted else 1.4
        _line(axes, curve, numbers, label=_short(modality), linewidth=thick, **style)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("severity")
    title = _short(curve[-1].corruption)
    axes.set_title(f"{title}\non {_line_name(corrupted)}", loc="left", size=10)
