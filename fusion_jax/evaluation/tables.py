"""The page of an experiment: Markdown from the collected results alone, no number typed.

Nothing is averaged or resampled here (`fusion_jax.experiment_collect` does that), nor written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

NOT_RUN = "not run"
SIGNIFICANT = 0.05
SCALES = (
    "Mean scale that the balancer gave each encoder over training: of the finished update, or, "
    "where the run says so, of the gradient before the optimiser:"
)


def render_tables(result: Mapping[str, Any]) -> str:
    """The Markdown page of an experiment.

    Args:
        result: what `fusion_jax.experiment_collect.collect` returned.

    Returns:
        The page. A condition, seed or run without a result says "not run".
    """
    name, data = result["name"], result["data"]
    lines = [
        f"# {result['title']}",
        "",
        f"Generated from [{name}.json]({name}.json), do not edit: "
        f"`python -m fusion_jax.experiments table {result['definition']}`.",
        "",
        f"Accuracy in percent on the {data['num_examples']} examples of {_folds(result)}the "
        f"{data['split']} split of {data['name']}, mean over training seeds, with the 95 % "
        f"interval of a bootstrap over "
        f"{' x '.join(['seeds', *(result['clusters'] or ['examples'])])}. {_trained(result)} "
        f"'{NOT_RUN}' stands where a run has no result: it was not trained yet, or lacks the input "
        "that the condition is about.",
        "",
        *_endpoints(result),
        *_rows(result["cells"], result["strengths"], first=("seeds run", _seeds(result))),
    ]
    if any(result["differences"].values()):
        lines += [
            "",
            "Differences in points, paired by example and by the seeds that both runs have:",
            "",
            *_rows(result["differences"], result["strengths"]),
        ]
    lines += _separation(result)
    if any(result.get("drops", {}).values()):
        lines += [
            "",
            "Performance change rate (PCR): the part of the clean accuracy that is lost without a "
            "modality, in percent; lower is better.",
            "",
            *_rows(result["drops"], {}),
        ]
    scales = {label: run.get("update_scale", {}) for label, run in result["runs"].items()}
    if any(scales.values()):
        lines += ["", SCALES, "", *_scale_rows(scales)]
    if any(result["alone"].values()):
        columns = {f"trained alone - {label}": cells for label, cells in result["alone"].items()}
        lines += [
            "",
            "How far a model that was trained without the missing input (in brackets) is ahead, in "
            "points, paired in the same way:",
            "",
            *_rows(columns, {}),
        ]
    return "\n".join([*lines, *_by_fold(result), "", *_made(result), ""])


def _separation(result: Mapping[str, Any]) -> list[str]:
    """How well signals know a condition; nothing where there are none."""
    found = result.get("separation", {})
    columns = [
        (run, signal)
        for run, conditions in found.items()
        for signal in dict.fromkeys(name for signals in conditions.values() for name in signals)
    ]
    if not columns:
        return []
    lines = [
        "",
        "How well each run's signals tell a condition from clean inputs, for the modality that it "
        "is about: the probability that the signal is higher on a clean example, mean over the "
        "runs that are finished. 0.5 tells nothing; agreement should fall (above 0.5), entropy "
        "and predicted noise should rise (below):",
        "",
        _row("condition", [f"{run}: {signal}" for run, signal in columns]),
        "|---" * (len(columns) + 1) + "|",
    ]
    for label in dict.fromkeys(label for conditions in found.values() for label in conditions):
        cells = [
            f"{found[run][label][signal]:.2f}" if signal in found[run].get(label, {}) else NOT_RUN
            for run, signal in columns
        ]
        lines.append(_row(label, cells))
    return lines


def _folds(result: Mapping[str, Any]) -> str:
    """How many folds, for the first sentence; nothing where there are none."""
    return f"{len(result['folds'])} folds (not resampled), of " if "folds" in result else ""


def _fold_names(result: Mapping[str, Any]) -> list[str]:
    """What each fold is called: the value of its override where that tells them apart."""
    values = [fold.partition("=")[2] for fold in result["folds"]]
    return [*map(_plain, values if len(set(values)) == len(values) else result["folds"])]


def _by_fold(result: Mapping[str, Any]) -> list[str]:
    """The section of each fold's means; nothing where there are no folds."""
    if "folds" not in result:
        return []
    columns = next(iter(result["by_fold"].values()))
    lines = [
        "",
        "## By fold",
        "",
        "Mean accuracy in percent on the examples of each fold alone, over the seeds that count; "
        "plain means without intervals:",
        "",
        _row("fold", ("condition or endpoint", *columns)),
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, methods in zip(_fold_names(result), result["by_fold"].values(), strict=True):
        for label in dict.fromkeys(label for means in methods.values() for label in means):
            cells = [
                f"{100 * means[label]:.2f}" if label in means else NOT_RUN
                for means in methods.values()
            ]
            lines.append(_row(name, (label, *cells)))
    return lines


def _endpoints(result: Mapping[str, Any]) -> list[str]:
    """The section on what was named to be tested, and the heading of what comes after it."""
    endpoints = result.get("endpoints")
    if not endpoints:
        return []
    lines = [
        "## Endpoints, named before the runs",
        "",
        "Each is the unweighted mean over its conditions:",
        "",
        *(f"* {name}: {', '.join(labels)}" for name, labels in endpoints["conditions"].items()),
        "",
        *_rows(endpoints["accuracies"], {}, head="endpoint"),
    ]
    if endpoints["differences"]:
        lines += [
            "",
            "Differences in points, paired by example and by the seeds that both runs have:",
            "",
            *_tested_rows(endpoints),
            "",
            _tested(result),
            "",
            "The same differences seed by seed, in points:",
            "",
            *_by_seed_rows(endpoints),
        ]
    return [*lines, "", "## All conditions", ""]


def _tested(result: Mapping[str, Any]) -> str:
    """How p-values were made, in a sentence."""
    endpoints = result["endpoints"]
    count = sum(len(row) for row in endpoints["p_values"].values())
    return (
        f"p is two-sided, the larger of two: from {endpoints['resamples']} resamples of "
        f"{' x '.join(['seeds', *(result['clusters'] or ['examples'])])}, and from a t test over "
        "the seeds' differences, which has little power with few seeds. It is adjusted by Holm's "
        f"method for the {count} differences of this table (one that was not run counts as "
        f"p = 1); below {SIGNIFICANT} the difference is in bold."
    )


def _tested_rows(endpoints: Mapping[str, Any]) -> list[str]:
    """Endpoints by row, differences with adjusted p by column."""
    columns = endpoints["differences"]
    rows = [_row("endpoint", columns), "|---" * (len(columns) + 1) + "|"]
    for endpoint in endpoints["conditions"]:
        cells = []
        for name, differences in columns.items():
            cell, found = _interval(differences[endpoint]), endpoints["p_values"][name][endpoint]
            if found:
                _, adjusted = found
                cell = f"{f'**{cell}**' if adjusted < SIGNIFICANT else cell}, p = {adjusted:.4f}"
            cells.append(cell)
        rows.append(_row(endpoint, cells))
    return rows


def _by_seed_rows(endpoints: Mapping[str, Any]) -> list[str]:
    """Endpoints by row, the seeds' differences by column."""
    columns = endpoints["by_seed"]
    rows = [_row("endpoint", columns), "|---" * (len(columns) + 1) + "|"]
    for endpoint in endpoints["conditions"]:
        cells = [
            NOT_RUN
            if row[endpoint] is None
            else ", ".join(f"{100 * value:+.2f}" for value in row[endpoint])
            for row in columns.values()
        ]
        rows.append(_row(endpoint, cells))
    return rows


def _trained(result: Mapping[str, Any]) -> str:
    """Up to which severity was trained, in a sentence."""
    runs, labels = result["runs"], {label for cells in result["cells"].values() for label in cells}
    known_kinds = ("clean", "noise", "missing", "joint", "mixed", "correlated")
    other = any(label.partition("/")[0] not in known_kinds for label in labels)
    unseen = "; conditions named after a corruption are of a kind that was not" if other else ""
    known = {label: run["training_severity"] for label, run in runs.items() if run["made"]}
    values = sorted({value for severities in known.values() for value in severities})
    if len(values) == 1:
        return f"Severities up to {values[0]:g} were trained on{unseen}."
    each = ", ".join(
        f"{label} {' and '.join(f'{value:g}' for value in severities)}"
        for label, severities in known.items()
    )
    return f"Severities were trained on up to: {each}{unseen}."


def _seeds(result: Mapping[str, Any]) -> list[str]:
    """Per run, how many of the seeds were run, with all folds where there are any."""
    wanted = len(result["seeds"])
    folds = range(len(result.get("folds", [])))
    whole = [{f"{seed}/{k}" for k in folds} or {str(seed)} for seed in result["seeds"]]
    return [
        f"{sum(entries <= {*run['made']} for entries in whole)} of {wanted}"
        for run in result["runs"].values()
    ]


def _rows(
    columns: Mapping[str, Mapping[str, Sequence[float] | None]],
    strengths: Mapping[str, str],
    *,
    first: tuple[str, Sequence[str]] | None = None,
    head: str = "condition",
) -> list[str]:
    """A table in percent, one column per run and one row per condition (or other `head`)."""
    rows = [_row(head, columns), "|---" * (len(columns) + 1) + "|"]
    if first:
        rows.append(_row(*first))
    for label in dict.fromkeys(label for column in columns.values() for label in column):
        strength = f" ({strengths[label]})" if label in strengths else ""
        rows.append(
            _row(
                f"{label}{strength}", [_interval(column.get(label)) for column in columns.values()]
            )
        )
    return rows


def _scale_rows(scales: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Runs by row, modalities by column; a run without a result has none."""
    names = sorted({name for scale in scales.values() for name in scale})
    rows = [_row("run", names), "|---" * (len(names) + 1) + "|"]
    for label, scale in scales.items():
        if not scale:
            continue
        cells = [f"{scale[name]:.3f}" if name in scale else NOT_RUN for name in names]
        rows.append(_row(label, cells))
    return rows


def _row(head: str, cells: Any) -> str:
    return f"| {' | '.join([head, *cells])} |"


def _interval(values: Sequence[float] | None) -> str:
    """Mean and interval in percent."""
    if values is None:
        return NOT_RUN
    mean, low, high = (100 * value for value in values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _made(result: Mapping[str, Any]) -> list[str]:
    """How each run, seed and fold was made."""
    heads = ("command", "step of the best checkpoint", "minutes", "commit", "hardware")
    keys = ("seed", "fold") if "folds" in result else ("seed",)
    lines = ["Made with:", "", _row("run", (*keys, *heads)), "|---" * (len(keys) + 6) + "|"]
    for label, run in result["runs"].items():
        for entry, named in _entries(result):
            if entry not in run["made"]:
                error = run["failed"].get(entry)
                said = f"failed: {_plain(error)}" if error else NOT_RUN
                lines.append(_row(label, (*named, said, *[NOT_RUN] * 4)))
                continue
            made = run["made"][entry]
            cells = (*named, f"`{_plain(made['command'])}`", str(made["step"]), _minutes(made))
            lines.append(_row(label, (*cells, made["commit"] or "unknown", made["hardware"])))
    return [*lines, "", *_incomplete(result), f"Versions: {_versions(result['runs'])}."]


def _entries(result: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Each seed, or seed and fold: its entry in "made" and "failed", and its cells."""
    seeds = [str(seed) for seed in result["seeds"]]
    if "folds" not in result:
        return [(seed, (seed,)) for seed in seeds]
    names = _fold_names(result)
    return [(f"{seed}/{k}", (seed, name)) for seed in seeds for k, name in enumerate(names)]


def _incomplete(result: Mapping[str, Any]) -> list[str]:
    """Which seeds lack folds, in a sentence; nothing where none does."""
    if not result.get("incomplete"):
        return []
    wanted = len(result["folds"])
    each = ", ".join(f"{name}: {n} of {wanted} folds" for name, n in result["incomplete"].items())
    return [f"Left out of the numbers until all folds are finished: {each}.", ""]


def _minutes(made: Mapping[str, Any]) -> str:
    """Wall time; it is known where a run was not interrupted."""
    return "not recorded" if made["seconds"] is None else f"{made['seconds'] / 60:.1f}"


def _versions(runs: Mapping[str, Any]) -> str:
    """Every version that any run was made with."""
    found: dict[str, list[str]] = {}
    for run in runs.values():
        for made in run["made"].values():
            for package, version in made["versions"].items():
                if version not in found.setdefault(package, []):
                    found[package].append(version)
    return ", ".join(f"{package} {' and '.join(versions)}" for package, versions in found.items())


def _plain(text: str) -> str:
    """Text that does not end the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
