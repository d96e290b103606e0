"""Limits that a report must keep, from a TOML file: a gate for continuous integration."""

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.errors import FusionError, first_line

LIMITS = ("min", "max")
METRICS = (
    *("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "nll", "brier", "ece"),
    *("adaptive_ece", "failure_auroc", "aurc"),
)


def read_thresholds(path: str | Path) -> list[dict[str, Any]]:
    """Read limits from a TOML file.

    One table for each limit, of the mean over training seeds in each cell that a pattern names:

        [[threshold]]
        cells = ["clean", "missing/*"]
        metric = "accuracy"
        min = 0.9

    Raises:
        FusionError: where the file is missing, or a table is not as above.
    """
    try:
        tables = tomllib.loads(Path(path).read_text()).get("threshold")
    except OSError as error:
        raise FusionError(f"cannot read {path}: {first_line(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FusionError(f"{path} is not TOML: {first_line(error)}") from error
    if not isinstance(tables, list) or not tables:
        raise FusionError(f"{path} has no [[threshold]]: give at least one")
    for number, table in enumerate(tables, 1):
        if not isinstance(table, dict):
            raise FusionError(f"{path} has no [[threshold]]: give at least one")
        unknown = set(table) - {"cells", "metric", *LIMITS}
        if unknown or not {"cells", "metric"} <= set(table) or not set(table) & set(LIMITS):
            raise FusionError(
                f"{path}: threshold {number} must have cells, metric, and min or max"
                + (f"; it has {sorted(unknown)[0]!r}" if unknown else "")
            )
        patterns = table["cells"]
        if not isinstance(patterns, list) or not all(isinstance(each, str) for each in patterns):
            raise FusionError(f"{path}: cells of threshold {number} must be a list of patterns")
        if not patterns:
            raise FusionError(f"{path}: threshold {number} names no cells: give one at least")
        if table["metric"] not in METRICS:
            raise FusionError(
                f"{path}: there is no metric {table['metric']!r}: choose one of {list(METRICS)}"
            )
        for limit in set(table) & set(LIMITS):
            if isinstance(table[limit], bool) or not isinstance(table[limit], int | float):
                raise FusionError(f"{path}: {limit} of threshold {number} must be a number")
    return tables


def check_thresholds(
    report: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Check a report against limits.

    Returns:
        One dict for each limit and cell: "cell", "metric", "value", "limit" (such as "min 0.9") and
        "passed". A value that is not known, such as the failure AUROC where all are right, does not
        pass.

    Raises:
        FusionError: for a pattern that no cell matches.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in (*report["cells"], *report["joint"]):
        found.setdefault(row["cell"], []).append(row)
    check_patterns(list(found), tables)
    return [
        check
        for table in tables
        for pattern in table["cells"]
        for label in found
        if fnmatch.fnmatchcase(label, pattern)
        for check in _checks(label, found[label], table)
    ]


def check_patterns(labels: Sequence[str], tables: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a pattern that matches none of the cells, before they are evaluated.

    Raises:
        FusionError: for such a pattern.
    """
    for table in tables:
        for pattern in table["cells"]:
            if not fnmatch.filter(labels, pattern):
                raise FusionError(
                    f"no cell of the report matches {pattern!r}: there are {', '.join(labels)}"
                )


def _checks(
    label: str, rows: Sequence[Mapping[str, Any]], table: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The limits of one table on one cell."""
    metric = table["metric"]
    values = [row[metric] for row in rows]
    mean = None if None in values else sum(values) / len(values)
    return [
        {
            "cell": label,
            "metric": metric,
            "value": mean,
            "limit": f"{limit} {table[limit]:g}",
            "passed": mean is not None
            and (mean >= table[limit] if limit == "min" else mean <= table[limit]),
        }
        for limit in LIMITS
        if limit in table
    ]
