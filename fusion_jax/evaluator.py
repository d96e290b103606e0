"""One grid program on one split: its records, and the report that is made of them."""

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from fusion_jax.cells import CLEAN, Cell, Conditions, cell_label
from fusion_jax.config import write_json
from fusion_jax.data.donors import donor_indices
from fusion_jax.data.loader import eval_batches
from fusion_jax.errors import FusionError, writing
from fusion_jax.evaluation.grid import (
    CellRecords,
    GridProgram,
    cell_records,
    evaluate_grid,
    grid_chunks,
)
from fusion_jax.evaluation.intervals import (
    bootstrap_weights,
    interval,
)
from fusion_jax.evaluation.records import Records, RecordWriter
from fusion_jax.evaluation.summary import summarise
from fusion_jax.metrics import separation
from fusion_jax.report.page import render_report
from fusion_jax.rng import stream
from fusion_jax.runs import (
    describe_machine,
    held,
)
from fusion_jax.shown_examples import worst_examples
from fusion_jax.sources import DataSpec, Source
from fusion_jax.training import hosts
from fusion_jax.training.checkpoints import digest
from fusion_jax.training.parallel import DataParallel
from fusion_jax.training.progress import ExampleCount

SCHEMA = 2


@dataclasses.dataclass
class Evaluator:
    """One program and one split, for any number of seeds."""

    source: Source
    conditions: Conditions
    cells: list[Cell]
    task: Any
    batch_size: int
    split: str
    parallel: DataParallel
    program: GridProgram
    silent: bool
    reuse: bool = False

    def __post_init__(self) -> None:
        self.parallel.check(eval_batch_size=self.batch_size)
        self.key = stream(jax.random.key(0), "evaluation", self.split)
        self.labels = [cell_label(cell, self.conditions.names) for cell in self.cells]
        self.identity = _identity(self.source)
        self.donors = _donors(self.conditions.corruptions, self.source.spec, self.identity)

    def records(
        self,
        variables: PyTree,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        progress: float = 1.0,
    ) -> Records:
        """Evaluate into a folder, going on where an evaluation of the same was killed.

        Raises:
            FusionError: where another process evaluates into it.
        """
        with contextlib.ExitStack() as stack:
            hosts.lead_does(lambda: stack.enter_context(_alone(folder)))
            return self._records(variables, folder, facts, progress)

    def _records(
        self, variables: PyTree, folder: Path, facts: Mapping[str, Any], progress: float
    ) -> Records:
        """As `records`, with the folder for itself."""
        writer = RecordWriter(
            folder,
            facts={**facts, **self._facts(variables)},
            cells=self.labels,
            identity={name: self.identity[name] for name in self.identity if name != "present"},
            writes=hosts.is_lead(),
            reuse=self.reuse,
            agree=hosts.agreed,
        )
        chunks = grid_chunks(
            self.program,
            variables,
            eval_batches(
                self.source,
                batch_size=self.batch_size,
                first=writer.rows,
                host=hosts.this_host(),
                donors=self.donors,
            ),
            cells=self.cells,
            key=self.key,
            progress=progress,
            place=self.parallel.place_rows,
        )
        log = ExampleCount(
            f"{folder.parent.name}, {len(self.cells)} cells",
            total=len(self.source),
            done=writer.rows,
            silent=self.silent or not hosts.is_lead(),
        )
        with contextlib.closing(log):
            for chunk in chunks:
                _refuse_not_finite(chunk, self.labels)
                before = writer.rows
                writer.write(chunk)
                log.advance(writer.rows - before)
        writer.finish()
        hosts.wait_for_all(f"evaluated {folder}")
        return Records(folder)

    def on_clean(self, source: Source, split: str) -> "Evaluator":
        """The same program on another split, without any corruption."""
        return dataclasses.replace(self, source=source, split=split, cells=[Cell()])

    def nll(self, variables: PyTree, progress: float) -> Float[np.ndarray, " n"]:
        """Negative log-likelihood of each example in the first cell; nothing is written."""
        first, *_ = evaluate_grid(
            self.program,
            variables,
            eval_batches(
                self.source, batch_size=self.batch_size, host=hosts.this_host(), donors=self.donors
            ),
            cells=self.cells,
            key=self.key,
            progress=progress,
            place=self.parallel.place_rows,
        )
        return first.records["nll"]

    def report(
        self,
        found: Sequence[Records],
        *,
        seeds: list[int],
        run: Mapping[str, Any],
        name: str,
        calibration: Sequence[np.ndarray] = (),
    ) -> dict[str, Any]:
        """The content of report.json, from the records of every seed."""
        spec = self.source.spec
        weights = bootstrap_weights(
            {cluster: self.identity[cluster] for cluster in spec.clusters}, num=len(self.source)
        )
        rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        labelled = zip(self.labels, self.cells, strict=True)
        misaligned = {label for label, cell in labelled if cell.misaligned}
        summaries = {}
        for index, (seed, records) in enumerate(zip(seeds, found, strict=True)):
            whole, all_rows = records.of_cells(), []
            clean = cell_records(whole, 0)
            for number, cell in enumerate(self.cells):
                facts = {"cell": records.cells[number], "seed": seed}
                facts |= _condition_facts(self.conditions, cell)
                row = _row(
                    self.task,
                    spec,
                    cell_records(whole, number),
                    weights,
                    clean=clean,
                    target=self.identity["target"],
                )
                rows[cell.several].append(facts | row)
                all_rows.append(facts | row)
            summaries[str(seed)] = summarise(
                all_rows,
                records.cells,
                whole,
                modalities=spec.names,
                num_classes=spec.num_classes,
                misaligned=misaligned,
                calibration_nll=calibration[index] if calibration else None,
            )
        return {
            "schema": SCHEMA,
            "run": dict(run),
            "data": {
                "name": name,
                "split": self.split,
                "num_examples": len(self.source),
                "num_classes": spec.num_classes,
                "modalities": list(spec.names),
            },
            "training_severity": self.conditions.training_severity,
            "seeds": seeds,
            "summary": summaries,
            "cells": rows[False],
            "joint": rows[True],
        }

    def worst_examples(
        self, found: Sequence[Records], sample_rates: Mapping[str, int]
    ) -> list[dict[str, Any]]:
        """Examples of the ten worst cells with pictures."""
        return worst_examples(
            self.cells,
            found,
            self.source,
            self.conditions,
            donors=self.donors,
            key=self.key,
            sample_rates=sample_rates,
        )

    def _facts(self, variables: PyTree) -> dict[str, Any]:
        """What unfinished records must be of, for an evaluation to go on with them."""
        return {
            "split": self.split,
            "batch_size": self.batch_size,
            "variables": int(digest(variables)),
            "examples": [zlib.crc32(self.identity[name].tobytes()) for name in self.identity],
            "devices": jax.device_count(),
            "jax": jax.__version__,
            "commit": describe_machine()["commit"],
            "backend": jax.default_backend(),
        }


def write_report(workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Write report.json and report.html, and give the report back."""
    if hosts.is_lead():
        write_json(workdir / "report.json", report)
        page, path = render_report(report), workdir / "report.html"
        with writing(f"cannot write {path}"):
            path.with_suffix(".tmp").write_text(page)
            path.with_suffix(".tmp").replace(path)
    return report


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other evaluations out of a folder of records."""
    with held(folder.with_name(f".{folder.name}.lock")) as (_, free):
        if not free:
            raise FusionError(
                f"another process evaluates into {folder}: wait for it, or stop it first"
            )
        yield


def _refuse_not_finite(chunk: Mapping[str, np.ndarray], labels: Sequence[str]) -> None:
    """Say at once where a model gives no prediction: no metric could be computed in the end."""
    broken = np.flatnonzero(~np.isfinite(chunk["confidence"]).all(axis=1))
    if len(broken):
        raise FusionError(
            f"the model's prediction is not finite in the cell {labels[broken[0]]!r} and "
            f"{len(broken) - 1} others: see what it makes of such inputs"
        )


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
    corruptions: Mapping[str, Sequence[Any]], spec: DataSpec, identity: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Modality -> position of each example's donor, where a corruption of it needs one."""
    return {
        name: donor_indices(
            identity["example_id"], identity["target"], identity["present"][:, m], name=name
        )
        for m, name in enumerate(spec.names)
        if any(getattr(each, "needs_donor", False) for each in corruptions.get(name, ()))
    }


def _row(
    task: Any,
    spec: DataSpec,
    found: CellRecords,
    weights: np.ndarray,
    *,
    clean: CellRecords,
    target: np.ndarray,
) -> dict[str, Any]:
    """The numbers of one row of the report; `clean` are the records without any corruption."""
    low, high = interval(found.records["correct"], weights)

    def by_modality(values: np.ndarray) -> dict[str, float]:
        return dict(zip(spec.names, np.float64(values).mean(axis=0).tolist(), strict=True))

    def where_present(values: np.ndarray) -> dict[str, float | None]:
        """A signal of an input that is not there means nothing: no mean without any."""
        chosen = [values[found.present[:, m], m] for m in range(len(spec.names))]
        means = [float(np.float64(part).mean()) if len(part) else None for part in chosen]
        return dict(zip(spec.names, means, strict=True))

    return {
        **task.report(found.records, target),
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


def _condition_facts(conditions: Conditions, cell: Cell) -> dict[str, Any]:
    """What was done to the inputs; "severities" by modality where to several at once."""
    words = [conditions.strength(name, each) for name, each in cell.noise]
    missing = list(cell.missing)
    if not cell.several:
        name, condition = cell.noise[0] if cell.noise else (None, CLEAN)
        return {
            "corruption": condition.corruption or "none",
            "modality": name,
            "severity": condition.severity,
            "strength": words[0] if words else None,
            "unseen": name is not None and condition.corruption != conditions.names.get(name),
            "missing": missing,
        }
    first = cell.noise[0][1]
    drawn = "correlated" if first.shared else "mixed"
    return {
        "corruption": drawn if first.drawn else "joint",
        "corruptions": {name: condition.corruption for name, condition in cell.noise},
        "severities": {name: condition.severity for name, condition in cell.noise},
        "strength": ("up to " if first.drawn else "") + ", ".join(words),
        "missing": missing,
    }
