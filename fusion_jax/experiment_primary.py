"""The primary comparison of several experiments, corrected over their data sets, as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.errors import FusionError
from fusion_jax.evaluation.intervals import holm
from fusion_jax.evaluation.tables import NOT_RUN, SIGNIFICANT


def render_primary(collected: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Name and Markdown of the page.

    On each data set the method has to be ahead of every one of the others, so its p-value is the
    largest of theirs; Holm's method adjusts these over the data sets. What was not run counts as
    p = 1.

    Args:
        collected: what `fusion_jax.experiment_collect.collect` returned for each data set.

    Raises:
        FusionError: where one names no primary comparison, or they name different ones.
    """
    named = []
    for result in collected:
        if "primary" not in result:
            raise FusionError(
                f"{result['definition']} names no [primary] comparison, or was collected before it "
                "did: collect it again"
            )
        primary = result["primary"]
        named.append((primary["run"], primary["endpoint"], tuple(primary["against"])))
    if len(set(named)) > 1:
        raise FusionError(f"the definitions name different primary comparisons: {set(named)}")
    run, endpoint, others = named[0]
    raw = [_largest(result["primary"]["against"]) for result in collected]
    adjusted = holm([1.0 if p is None else p for p in raw])
    paths = " ".join(result["definition"] for result in collected)
    lines = [
        f"# {run} against {' and '.join(others)}",
        "",
        f"Generated, do not edit: `python -m fusion_jax.experiments primary {paths}`.",
        "",
        f"Endpoint: {endpoint}. Differences in points with 95 % intervals, as in the experiments' "
        "own pages. p is the largest of a row's (the method has to be ahead of every one), "
        f"adjusted by Holm's method over the {len(collected)} data sets; below {SIGNIFICANT} it is "
        "in bold.",
        "",
        f"| experiment | {' | '.join(f'{run} - {other}' for other in others)} | p | adjusted p |",
        "|---" * (len(others) + 3) + "|",
    ]
    for result, p, holm_p in zip(collected, raw, adjusted, strict=True):
        against = result["primary"]["against"]
        cells = [_points(against[other]["difference"]) for other in others]
        shown = [NOT_RUN] * 2 if p is None else [f"{p:.4f}", _bold(holm_p)]
        link = f"[{result['title']}]({result['name']}.md)"
        lines.append(f"| {' | '.join([link, *cells, *shown])} |")
    return f"primary_{run}", "\n".join([*lines, ""])


def _largest(against: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The largest p-value, None where one was not run."""
    found = [entry["p_value"] for entry in against.values()]
    return None if None in found else max(found)


def _points(values: Sequence[float] | None) -> str:
    """A difference in points with its interval."""
    if values is None:
        return NOT_RUN
    mean, low, high = (100 * value for value in values)
    return f"{mean:+.2f} [{low:.2f}, {high:.2f}]"


def _bold(p: float) -> str:
    """A p-value, in bold where it is small."""
    return f"**{p:.4f}**" if p < SIGNIFICANT else f"{p:.4f}"
