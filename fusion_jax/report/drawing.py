"""What the charts of the page share: styles, severity axes, and figures as SVG elements."""

import contextlib
import io
import math
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_jax.report.results import Cell, Curve, Number, Results

# Colour-blind-safe (Okabe and Ito, Tol); markers and dashes tell the lines apart in a grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B07800", "#6B6B6B")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":")
INK, FAINT, SHADE = "#222222", "#666666", "#EEF1F4"
WIDTH = 9.0  # inches; the page scales a chart to its column


@contextlib.contextmanager
def plain_style() -> Iterator[None]:
    """Draw inside this: the reader's own matplotlibrc must not change the page."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        # Nor may a "$" in a name start a formula.
        matplotlib.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False}
        )
        # Text stays text in the SVG, so a glyph that matplotlib's font lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def style(results: Results, modality: str | None) -> dict[str, Any]:
    """Colour, marker and dashes of a modality, the same on every chart."""
    if modality not in results.modalities:
        return {"color": INK, "marker": "X", "linestyle": "-"}
    index = results.modalities.index(modality)
    dashes = _DASHES[index // len(COLOURS) % len(_DASHES)]
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": dashes,
    }


def svg(figure: Figure, label: str) -> Markup:
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


def clear_frame(axes: Axes) -> None:
    """Take away what is no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)


def line(axes: Axes, curve: Curve, numbers: Sequence[Number], **style: Any) -> None:
    """Draw a line over the curve's severities, with a band where every point has a spread."""
    severities = [cell.severity for cell in curve]
    axes.plot(severities, [number.mean for number in numbers], **style)
    band = [(n.low, n.high) for n in numbers if n.low is not None and n.high is not None]
    if len(band) == len(numbers):
        lows, highs = [low for low, _ in band], [high for _, high in band]
        axes.fill_between(severities, lows, highs, color=style["color"], alpha=0.18, linewidth=0)


def spaced(
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


def severity_axis(axes: Axes, results: Results, curves: Sequence[Curve], width: float) -> None:
    """Severity ticks that do not touch, and the training range as a labelled band."""
    severities = sorted({cell.severity for curve in curves for cell in curve})
    limit = max(severities[-1], results.training_severity)
    texts = [f"{value:g}" for value in severities]
    chosen = spaced([s / limit for s in severities], texts, width, 10)
    axes.set_xticks([severities[i] for i in chosen], [texts[i] for i in chosen])
    axes.tick_params(axis="x", pad=4.5)
    axes.set_xlim(-0.04 * limit, 1.04 * limit)
    if in_training(results, curves):
        axes.axvspan(0, results.training_severity, color=SHADE, zorder=0, linewidth=0)


def in_training(results: Results, curves: Sequence[Curve]) -> bool:
    """Whether training knew all these corruptions, so that a chart may show up to where."""
    return results.training_severity > 0 and not any(curve[-1].unseen for curve in curves)


def accuracy_floor(cells: Iterable[Cell]) -> float:
    """Where the accuracy axis starts: 0, or a round number where every value is high."""
    lowest = min(
        min(n.mean, n.mean if n.low is None else n.low)
        for c in cells
        if (n := c.number("accuracy"))
    )
    floor = math.floor((lowest - 0.02) * 10) / 10
    return floor if floor >= 0.4 else 0.0


def accuracy_scale(axes: Axes, results: Results, floor: float) -> None:
    """Set the percent axis and, where it is in sight, the level of guessing."""
    num_ticks = 6 if floor == 0 else round((1 - floor) / 0.1) + 1
    ticks = [floor + (1 - floor) * i / (num_ticks - 1) for i in range(num_ticks)]
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.set_ylim(floor, 1.0 + 0.015 * (1 - floor))
    axes.set_ylabel("accuracy")
    guess = 1 / results.num_classes
    if guess >= floor:
        axes.axhline(guess, color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(
            "guessing",
            (1, guess),
            xycoords=axes.get_yaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            size=9,
            color=FAINT,
        )
