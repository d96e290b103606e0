"""Evaluate the folder of a run: grid, metrics, intervals, report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusion_jax.config import Config, write_json
from fusion_jax.data.donors import donor_indices
from fusion_jax.data.loader import eval_batches
from fusion_jax.errors import FusionError
from fusion_jax.evaluation.grid import (
    CLEAN,
    Cell,
    CellRecords,
    evaluate_grid,
    joint_cells,
    make_grid_program,
    robustness_cells,
    single_cells,
)
from fusion_jax.evaluation.intervals import bootstrap_weights, interval
from fusion_jax.evaluation.report import render_report
from fusion_jax.metrics import separation
from fusion_jax.rng import stream
from fusion_jax.runs import load_config, restore_best, seed_folder, state_shapes
from fusion_jax.sources import DataSpec, Source
from fusion_jax.training import hosts
from fusion_jax.training.parallel import DataParallel

SCHEMA = 1


def evaluate(
    workdir: str | Path, *, split: str = "test", data: Any = None, allow: Sequence[str] = ()
) -> dict[str, Any]:
    """Evaluate the best checkpoint of every seed of a run under noise and missing modalities.

    Writes `report.json`, `report.html` and, per seed, `records_<split>.npz` with one row per
    example.

    Args:
        workdir: folder of a trained run.
        split: "test", or "validation" while a design is still being chosen.
        data: the data set, for runs on data that was held in memory.
        allow: top-level packages besides fusion_jax whose classes the run may name.

    Returns:
        The report as a dict, the content of `report.json`.

    Raises:
        FusionError: for a folder that is not a trained run, or data that does not match it.
    """
    workdir = Path(workdir)
    config, spec, run = load_config(workdir, allow=allow)
    source = _source(config, data, split, spec)
    parallel, batch_size = DataParallel(), config.eval_batch_size
    parallel.check(eval_batch_size=batch_size)
    program = make_grid_program(
        config.model,
        config.task,
        config.evaluation_corruptions(),
        compiled=parallel.evaluation,
    )
    template = parallel.template(state_shapes(config, spec))
    cells = evaluation_cells(config, spec)
    labels = [cell_label(cell, config.recipe.corruption_names()) for cell in cells]
    identity = _identity(source)
    donors = _donors(config, spec, identity)
    weights = bootstrap_weights({name: identity[name] for name in spec.clusters}, num=len(source))
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    steps = {}
    for index in range(config.num_seeds):
        state = restore_best(template, workdir, index)
        found = evaluate_grid(
            program,
            {"params": state.params, **state.collections},
            eval_batches(source, batch_size=batch_size, host=hosts.this_host(), donors=donors),
            cells=cells,
            key=stream(jax.random.key(0), "evaluation", split),
            progress=int(state.step) / config.num_steps,
            place=parallel.place_rows,
        )
        steps[str(config.seed + index)] = int(state.step)
        if hosts.is_lead():
            path = seed_folder(workdir, index) / f"records_{split}.npz"
            save_records(path, identity, labels, found)
        for cell, records in zip(cells, found, strict=True):
            row = _row(config, spec, cell, records, weights, clean=found[0])
            rows[cell.several].append(row | {"seed": config.seed + index})
    report = {
        "schema": SCHEMA,
        "run": _run_facts(run) | {"trained_steps": steps},
        "data": _data_facts(spec, source, split, run),
        "training_severity": config.recipe.largest_severity(),
        "seeds": [config.seed + index for index in range(config.num_seeds)],
        "cells": rows[False],
        "joint": rows[True],
    }
    if hosts.is_lead():
        write_json(workdir / "report.json", report)
        (workdir / "report.html").write_text(render_report(report))
    return report


def evaluation_cells(config: Config, spec: DataSpec) -> list[Cell]:
    """The conditions of the robustness evaluation, in the order of records and tables.

    Clean, each modality under the recipe's corruption and each missing pattern; each modality under
    corruptions that training does not use; all modalities at once.
    """
    trained, severities = config.recipe.corruption_names(), config.evaluation_severities
    cells = robustness_cells(spec.names, corrupted=trained, severities=severities)
    for name in sorted(config.unseen):
        for corruption in config.unseen[name]:
            cells += single_cells({name: type(corruption).__name__}, severities)
    limits = sorted({config.recipe.largest_severity(), 1.0} - {0.0})
    return cells + joint_cells(trained, severities=severities, mixed=limits)


def save_records(
    path: Path, identity: dict[str, np.ndarray], labels: Sequence[str], found: Sequence[CellRecords]
) -> None:
    """Save per-example records [cell, N], weights and noise levels [cell, N, M], ids, clusters."""
    arrays: dict[str, Any] = dict(identity)
    for name in found[0].records:
        arrays[name] = np.stack([cell.records[name] for cell in found])
    arrays["weights"] = np.stack([cell.weights for cell in found])
    arrays["noise_level"] = np.stack([cell.noise_level for cell in found])
    arrays["present"] = np.stack([cell.present for cell in found])
    arrays["cells"] = np.array(labels)
    np.savez_compressed(path, **arrays)


def cell_label(cell: Cell, trained: Mapping[str, str]) -> str:
    """A stable name of a cell.

    "clean", "missing/audio+image", "noise/audio/0.4", "ImpulseNoise/image/0.4" (another corruption
    than the modality's in `trained`), "joint/audio/0.4+image/0.8", "mixed/0.4" (severities of
    examples differ, up to 0.4).

    Args:
        cell: the cell.
        trained: modality -> class name of the recipe's corruption.
    """
    if cell.missing:
        return "missing/" + "+".join(cell.missing)
    if not cell.noise:
        return "clean"
    if len(cell.noise) > 1:
        if cell.noise[0][1].drawn:
            return f"mixed/{cell.noise[0][1].severity:g}"
        return "joint/" + "+".join(f"{name}/{each.severity:g}" for name, each in cell.noise)
    [(name, condition)] = cell.noise
    family = "noise" if condition.corruption == trained.get(name) else condition.corruption
    return f"{family}/{name}/{condition.severity:g}"


def _source(config: Config, data: Any, split: str, spec: DataSpec) -> Source:
    """The split to evaluate on, checked against what the run was trained on."""
    data = config.data if data is None else data
    if data is None:
        raise FusionError(
            "the run was trained on data held in memory: pass it again, evaluate(workdir, data=...)"
        )
    source = data.source(split)
    if source.spec != spec:
        raise FusionError(
            f"the data has the specification {source.spec}, the run was trained on {spec}"
        )
    return source


def _identity(source: Source) -> dict[str, np.ndarray]:
    """Ids, targets, presence and cluster ids of all examples, in order.

    Inputs are read in parts and dropped.
    """
    names = ("example_id", "target", *source.spec.clusters)
    parts = []
    for start in range(0, len(source), 1024):
        record = source[np.arange(start, min(start + 1024, len(source)))]
        here = record.get("present", np.ones((len(record["target"]), len(source.spec.names)), bool))
        parts.append({name: record[name] for name in names} | {"present": here})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _donors(
    config: Config, spec: DataSpec, identity: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Modality -> position of each example's donor, where a corruption of it needs one."""
    corruptions = config.evaluation_corruptions()
    return {
        name: donor_indices(
            identity["example_id"], identity["target"], identity["present"][:, m], name=name
        )
        for m, name in enumerate(spec.names)
        if any(getattr(each, "needs_donor", False) for each in corruptions.get(name, ()))
    }


def _row(
    config: Config,
    spec: DataSpec,
    cell: Cell,
    found: CellRecords,
    weights: np.ndarray,
    *,
    clean: CellRecords,
) -> dict[str, Any]:
    """One row of the report's table; `clean` are the records without any corruption."""
    low, high = interval(found.records["correct"], weights)

    def by_modality(values: np.ndarray) -> dict[str, float]:
        return dict(zip(spec.names, np.float64(values).mean(axis=0).tolist(), strict=True))

    def where_present(values: np.ndarray) -> dict[str, float | None]:
        """A signal of an input that is not there means nothing: no mean without any."""
        chosen = [values[found.present[:, m], m] for m in range(len(spec.names))]
        means = [float(np.float64(part).mean()) if len(part) else None for part in chosen]
        return dict(zip(spec.names, means, strict=True))

    return {
        **_condition_facts(config, cell),
        "missing": list(cell.missing),
        **config.task.compute(found.records),
        "accuracy_low": low,
        "accuracy_high": high,
        "weights": by_modality(found.weights),
        "signals": {name: where_present(value) for name, value in found.signals.items()},
        "separation": _separation(spec, clean=clean, found=found),
    }


def _separation(
    spec: DataSpec, *, clean: CellRecords, found: CellRecords
) -> dict[str, dict[str, float | None]]:
    """How well each signal of each modality tells a condition from clean inputs.

    Signal -> modality -> probability that its value on a clean example is above that on an example
    under the condition (an AUROC: 0.5 tells nothing, 1 is a signal that always falls, as agreement
    should where inputs do not belong together, 0 one that always rises, as predicted noise should);
    None where the modality is absent from either.
    """
    told: dict[str, dict[str, float | None]] = {}
    for signal, values in found.signals.items():
        told[signal] = {}
        for m, name in enumerate(spec.names):
            before = clean.signals[signal][clean.present[:, m], m]
            after = values[found.present[:, m], m]
            known = len(before) and len(after)
            told[signal][name] = separation(before, after) if known else None
    return told


def _condition_facts(config: Config, cell: Cell) -> dict[str, Any]:
    """What was done to the inputs; "severities" by modality where to several at once."""
    known = {
        (name, type(each).__name__): each
        for name, corruptions in config.evaluation_corruptions().items()
        for each in corruptions
    }
    words = [known[name, each.corruption].describe(each.severity) for name, each in cell.noise]
    if not cell.several:
        name, condition = cell.noise[0] if cell.noise else (None, CLEAN)
        return {
            "corruption": condition.corruption or "none",
            "modality": name,
            "severity": condition.severity,
            "strength": words[0] if words else None,
            "unseen": name is not None
            and condition.corruption != config.recipe.corruption_names().get(name),
        }
    drawn = cell.noise[0][1].drawn
    return {
        "corruption": "mixed" if drawn else "joint",
        "severities": {name: condition.severity for name, condition in cell.noise},
        "strength": ("up to " if drawn else "") + ", ".join(words),
    }


def _run_facts(run: dict[str, Any]) -> dict[str, Any]:
    """What the report says about how the run was made."""
    facts = {key: run[key] for key in ("command", "commit", "versions", "hardware")}
    words = run["command"].split()
    config = next((w.partition("=")[2] for w in words if w.startswith("--config=")), None)
    return facts | {"config": config, "overrides": [w for w in words if w.startswith("--config.")]}


def _data_facts(spec: DataSpec, source: Source, split: str, run: dict[str, Any]) -> dict[str, Any]:
    """What the report says about the data."""
    return {
        "name": run["data"]["name"],
        "split": split,
        "num_examples": len(source),
        "num_classes": spec.num_classes,
        "modalities": list(spec.names),
    }
