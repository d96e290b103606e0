"""The result files of an experiment: one for each run, seed and fold; what they must agree with.

A result file is small, named after its run, seed and fold, and kept with the project
(docs/results). It holds which examples were predicted right under each condition; what the examples
are is kept once for all runs, by fold. So tables can be made, and experiments gone on with, where
the checkpoints are not.
"""

import base64
import binascii
import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from fusion_jax.config import CLASS, Config, meaningful_difference, read_json, to_tree
from fusion_jax.errors import FusionError, first_line, writing
from fusion_jax.evaluation.records import Records
from fusion_jax.experiment_definition import Experiment, Run
from fusion_jax.runs import FREE_FIELDS, seed_folder

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """One run with one seed, and one fold where the experiment has folds.

    Attributes:
        run: what is trained.
        seed: with which seed.
        folder: of the run, with checkpoints and per-example records.
        result: the file that says what came out.
        fold: position in the experiment's folds, None where it has none.
        fold_override: "path=value" of that fold.
    """

    run: Run
    seed: int
    folder: Path
    result: Path
    fold: int | None = None
    fold_override: str | None = None

    def __str__(self) -> str:
        fold = "" if self.fold is None else f" fold {self.fold} ({self.fold_override})"
        return f"{self.run.label} seed {self.seed}{fold}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """Those of the run, then that of the fold."""
        return (*self.run.overrides, *([self.fold_override] if self.fold_override else []))

    def build(self) -> Config:
        """The checked configuration for the seed and fold.

        Raises:
            FusionError: for a file, a field or a value that cannot work, in one line.
        """
        return dataclasses.replace(self.run, overrides=self.overrides).build(self.seed)

    def definition(self) -> dict[str, Any]:
        """What a result file says was asked for."""
        return {
            "config": self.run.config,
            "overrides": list(self.overrides),
            "seed": self.seed,
        }

    def read_result(self) -> dict[str, Any] | None:
        """The content of the result file, None where there is none.

        Raises:
            FusionError: where it is damaged or of another version.
        """
        if not self.result.exists():
            return None
        result = read_json(self.result)
        if not isinstance(result, dict) or result.get("schema") != SCHEMA:
            raise FusionError(
                f"{self.result} is no result of this version (schema {SCHEMA}): "
                "move it away to run that again"
            )
        return result

    def finished(self) -> dict[str, Any] | None:
        """The result if training and evaluation succeeded, else None."""
        result = self.read_result()
        return result if result and result["status"] == "done" else None


@dataclasses.dataclass(frozen=True)
class Examples:
    """What an experiment was evaluated on.

    Attributes:
        example_id: [N].
        clusters: name -> id of the cluster of each example.
    """

    example_id: Int[np.ndarray, " n"]
    clusters: Mapping[str, Int[np.ndarray, " n"]]


def examples_path(job: Job) -> Path:
    """The file with the examples of a job's experiment, and of its fold where there are folds."""
    return job.result.parent / f"examples{_ending(job.fold)}.npz"


def read_examples(job: Job) -> Examples:
    """The examples of a job's experiment and fold.

    Raises:
        FusionError: where they are missing or damaged.
    """
    path = examples_path(job)
    try:
        with np.load(path) as arrays:
            known = dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FusionError(
            f"cannot read {path}: {first_line(error)}: bring it back, or remove {path.parent} to "
            "run the experiment again"
        ) from error
    return Examples(known.pop("example_id"), known)


def keep_records(job: Job, split: str) -> dict[str, str]:
    """Keep what tables need of the records that the evaluation of a job left in its folder.

    Returns:
        condition -> which examples were right, packed: the entry "correct" of the result file.

    Raises:
        FusionError: where the other runs were evaluated on other examples.
    """
    records = Records(seed_folder(job.folder, 0) / f"records_{split}")
    names = read_json(job.folder / "run.json")["data"]["clusters"]
    arrays: dict[str, Any] = {name: records[name] for name in ("example_id", *names)}
    path = examples_path(job)
    if path.exists():
        known = read_examples(job)
        before = {"example_id": known.example_id, **known.clusters}
        if set(before) != set(arrays) or any(
            not np.array_equal(before[name], arrays[name]) for name in before
        ):
            raise FusionError(
                f"{job} was evaluated on other examples than {path} names: if the other results "
                "there are removed, remove it too"
            )
    else:
        with writing(f"cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.npz")
            np.savez_compressed(temporary, **arrays)
            temporary.replace(path)
    return {
        label: pack(row > 0) for label, row in zip(records.cells, records["correct"], strict=True)
    }


def pack(values: Bool[np.ndarray, " n"]) -> str:
    """Truth values as text: bits, compressed, base64."""
    return base64.b64encode(zlib.compress(np.packbits(values).tobytes(), 9)).decode()


def unpack(text: str, num: int) -> Bool[np.ndarray, " n"]:
    """The `num` truth values that `pack` was given.

    Raises:
        FusionError: where the text is damaged.
    """
    try:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    except (binascii.Error, zlib.error) as error:
        raise FusionError(f"damaged records: {first_line(error)}") from error
    if len(packed) != -(-num // 8):
        raise FusionError(f"damaged records: {len(packed)} bytes for {num} examples")
    return np.unpackbits(packed, count=num).astype(bool)


def make_jobs(experiment: Experiment, *, workdir: Path, results: Path) -> list[Job]:
    """All runs with all seeds and folds: first all with the first seed, so that tables fill evenly.

    Args:
        experiment: the definition.
        workdir: folder for checkpoints and records.
        results: folder for result files, docs/results in this project.
    """
    folds: list[tuple[int | None, str | None]] = [*enumerate(experiment.folds)]
    return [
        Job(
            run,
            seed,
            workdir / experiment.name / run.label / f"seed_{seed}{_ending(fold)}",
            results / experiment.name / f"{run.label}_seed{seed}{_ending(fold)}.json",
            fold,
            override,
        )
        for seed in experiment.seeds
        for fold, override in folds or [(None, None)]
        for run in experiment.runs
    ]


def _ending(fold: int | None) -> str:
    """What names of files and folders say of a fold."""
    return "" if fold is None else f"_fold{fold}"


def changed_field(job: Job, config: Config) -> str | None:
    """What the definition changed since the job was finished or begun, or None.

    Fields that the library gained since then and that are left at their default do not count, nor
    do fields that it lost or the module that a class lives in: old results stay valid as the
    library grows.

    Returns:
        One line that names the field, both values and the cure.
    """
    now = {"definition": job.definition(), "resolved": _without_free(to_tree(config))}
    result, begun = job.finished(), job.folder / "config.json"
    if result:
        resolved = _without_free(result["resolved"])
        made, before = job.result, {"definition": result["definition"], "resolved": resolved}
        now["resolved"]["unseen"] = _common(resolved.get("unseen", {}), now["resolved"]["unseen"])
    elif begun.exists():
        made, before = job.folder, now | {"resolved": _without_free(read_json(begun))}
    else:
        return None
    difference = meaningful_difference(before, now)
    if difference is None:
        return None
    path, old, new = difference
    path = path.removeprefix("definition.").replace("resolved.", "config.")
    return (
        f"{made} was made with {path} = {old}, the definition now says {new}: "
        f"undo that, or remove {job.result} and {job.folder} to run it anew"
    )


def changed_kinds(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str] | None:
    """Two values of config.unseen in words, by class names, or None where these are the same."""
    words = [
        ", ".join(
            f"{name}: {' and '.join(each[CLASS].rpartition('.')[2] for each in value[name])}"
            for name in sorted(value)
        )
        or "nothing"
        for value in (before, now)
    ]
    return (words[0], words[1]) if words[0] != words[1] else None


def _common(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Of the corruptions that training does not use, those that a result was evaluated on.

    Others add conditions and leave those of the result alone.
    """
    kept = {}
    for name, corruptions in before.items():
        kinds = [each[CLASS].rpartition(".")[2] for each in corruptions]
        known = [each for each in now.get(name, []) if each[CLASS].rpartition(".")[2] in kinds]
        kept[name] = known
    return kept


def _without_free(tree: Any) -> Any:
    """A configuration's JSON form without the fields that leave its numbers as they are."""
    return {name: item for name, item in tree.items() if name not in FREE_FIELDS}
