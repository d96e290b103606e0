"""Limits that a report must keep, from a TOML file: a gate for continuous integration."""

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.errors import FusionError, first_line

LIMITS = ("min", "max")


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
        unknown = set(table) - {"cells", "metric", *LIMITS}
        if unknown or not {"cells", "metric"} <= set(table) or not set(table) & set(LIMITS):
            raise FusionError(
                f"{path}: threshold {number} must have cells, metric, and min or max"
                + (f"; it has {sorted(unknown)[0]!r}" if unknown else "")
            )
        if not isinstance(table["cells"], list):
            raise FusionError(f"{path}: cells of threshold {number} must be a list of patterns")
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
        FusionError: for a pattern that no cell matches, or a metric that rows do not have.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in (*report["cells"], *report["joint"]):
        found.setdefault(row["cell"], []).append(row)
    results = []
    for table in tables:
        for pattern in table["cells"]:
            labels = [label for label in found if fnmatch.fnmatchcase(label, pattern)]
            if not labels:
                raise FusionError(
                    f"no cell of the report matches {pattern!r}: there are {', '.join(found)}"
                )
            for label in labels:
                results += _checks(label, found[label], table)
    return results


def _checks(
    label: str, rows: Sequence[Mapping[str, Any]], table: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The limits of one table on one cell."""
    metric = table["metric"]
    numbers = [name for name, value in rows[0].items() if isinstance(value, float)]
    if metric not in rows[0] or isinstance(rows[0][metric], str | dict | list):
        raise FusionError(f"rows have no metric {metric!r}: there are {', '.join(numbers)}")
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
