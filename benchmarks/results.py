"""Collect evaluated runs into a result file, and print the tables of docs/results from it.

python benchmarks/results.py collect --name=N --workdirs=udml=A,static=B --single=audio=C,image=D
python benchmarks/results.py table --name=N

`collect` reads `report.json` and the per-example records of the run folders A to D and writes
docs/results/N.json. `table` writes docs/results/N.md from that file alone. No number is typed.

Intervals are 95 % percentile intervals of a bootstrap over training seeds and every cluster that
the data set names (recordings x images); both sides of a difference are resampled together.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

from fusion_jax.config import read_json, write_json
from fusion_jax.errors import FusionError
from fusion_jax.evaluation.intervals import bootstrap_weights, seed_interval

ROOT = Path(__file__).resolve().parent.parent / "docs" / "results"
NAME = flags.DEFINE_string("name", "av_mnist", "name of the result file")
WORKDIRS = flags.DEFINE_list("workdirs", [], "method=folder, for methods on all modalities")
SINGLE = flags.DEFINE_list("single", [], "modality=folder, for models of one modality alone")
REFERENCE = flags.DEFINE_string("reference", "static", "method that the others are compared with")


def load_run(folder: Path) -> dict:
    """Report and per-example correctness [S, cell, N] of an evaluated run."""
    report = read_json(folder / "report.json")
    path = f"records_{report['data']['split']}.npz"
    files = [np.load(folder / f"seed_{i}" / path) for i in range(len(report["seeds"]))]
    return {
        "report": report,
        "labels": [str(label) for label in files[0]["cells"]],
        "correct": np.stack([file["correct"] for file in files]),
        "example_id": files[0]["example_id"],
        "clusters": {
            name: files[0][name] for name in read_json(folder / "run.json")["data"]["clusters"]
        },
    }


def summary(values: np.ndarray, weights: np.ndarray) -> list[float]:
    """Mean, low and high of per-example values [S, N]."""
    return [float(values.mean(dtype=np.float64)), *seed_interval(values, weights)]


def collect(methods: dict[str, Path], single: dict[str, Path], reference: str) -> dict:
    """The content of a result file."""
    runs = {name: load_run(folder) for name, folder in {**methods, **single}.items()}
    first = runs[reference]
    for name, run in runs.items():
        if not np.array_equal(run["example_id"], first["example_id"]):
            raise FusionError(f"{name} was evaluated on other examples than {reference}")
    weights = bootstrap_weights(first["clusters"], num=len(first["example_id"]))
    cells, differences = {}, {}
    for name, run in runs.items():
        cells[name] = {
            label: summary(run["correct"][:, i], weights) for i, label in enumerate(run["labels"])
        }
    for name in methods:
        if name != reference:
            differences[f"{name} - {reference}"] = {
                label: summary(runs[name]["correct"][:, i] - first["correct"][:, i], weights)
                for i, label in enumerate(first["labels"])
            }
    modalities = first["report"]["data"]["modalities"]
    for name in methods:
        for alone in single:
            label = "missing/" + "+".join(m for m in modalities if m != alone)
            given = runs[name]["correct"][:, runs[name]["labels"].index(label)]
            trained = runs[alone]["correct"][:, runs[alone]["labels"].index("clean")]
            differences.setdefault("trained alone - " + name, {})[label] = summary(
                trained - given, weights
            )
    keep = ("run", "data", "seeds", "training_severity")
    return {
        "runs": {name: {key: run["report"][key] for key in keep} for name, run in runs.items()},
        "strengths": {
            f"noise/{row['modality']}/{row['severity']:g}": row["strength"]
            for row in first["report"]["cells"]
            if row["modality"]
        },
        "clusters": sorted(first["clusters"]),
        "cells": cells,
        "differences": differences,
    }


def table(result: dict, name: str) -> str:
    """The Markdown page of a result file."""
    runs = result["runs"]
    any_run = next(iter(runs.values()))
    lines = [
        f"# Results: {name}",
        "",
        f"Generated from [{name}.json]({name}.json), do not edit: "
        f"`python benchmarks/results.py table --name={name}`.",
        "",
        f"Accuracy in percent on the {any_run['data']['num_examples']} examples of the "
        f"{any_run['data']['split']} split, mean over training seeds {any_run['seeds']}, with the "
        f"95 % interval of a bootstrap over seeds x {' x '.join(result['clusters'])}. "
        f"Severities up to {any_run['training_severity']:g} were trained on.",
        "",
        *_rows("condition", result["cells"], result["strengths"], digits=2),
        "",
        "Differences in points, paired by example and seed:",
        "",
        *_rows("condition", result["differences"], result["strengths"], digits=2),
        "",
        "Made with:",
        "",
        "| run | command | steps of the best checkpoint per seed | commit | hardware |",
        "|---|---|---|---|---|",
    ]
    for label, run in runs.items():
        made = run["run"]
        steps = ", ".join(str(step) for step in made["trained_steps"].values())
        lines.append(
            f"| {label} | `{made['command']}` | {steps} | {made['commit']} | {made['hardware']} |"
        )
    versions = ", ".join(f"{key} {value}" for key, value in any_run["run"]["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}.", ""])


def _rows(corner: str, columns: dict, strengths: dict, *, digits: int) -> list[str]:
    """A Markdown table with one column per method and one row per condition."""
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    rows = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label in labels:
        cells = []
        for column in columns.values():
            if label not in column:
                cells.append("")
                continue
            mean, low, high = (100 * value for value in column[label])
            cells.append(f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        strength = f" ({strengths[label]})" if label in strengths else ""
        rows.append(f"| {label}{strength} | {' | '.join(cells)} |")
    return rows


def _folders(pairs: list[str]) -> dict[str, Path]:
    return {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in pairs)}


def main(arguments: list[str]) -> None:
    """Do what the first argument says."""
    action = arguments[1] if len(arguments) > 1 else ""
    if action == "collect":
        found = collect(_folders(WORKDIRS.value), _folders(SINGLE.value), REFERENCE.value)
        write_json(ROOT / f"{NAME.value}.json", found)
    elif action == "table":
        result = json.loads((ROOT / f"{NAME.value}.json").read_text())
        (ROOT / f"{NAME.value}.md").write_text(table(result, NAME.value))
    else:
        sys.exit("error: say collect or table")


if __name__ == "__main__":
    app.run(main)
