"""The result files of an experiment: one for each run and seed, and what they must agree with.

A result file is small, named after its run and seed, and kept with the project (docs/results). It
holds which examples were predicted right under each condition; what the examples are is kept once
for all runs. So tables can be made, and experiments gone on with, where the checkpoints are not.
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

from fusion_jax.config import CLASS, Config, field_default, first_difference, read_json, to_tree
from fusion_jax.errors import FusionError, first_line, writing
from fusion_jax.experiment_definition import Experiment, Run
from fusion_jax.runs import FREE_FIELDS, seed_folder

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """One run with one seed.

    Attributes:
        run: what is trained.
        seed: with which seed.
        folder: of the run, with checkpoints and per-example records.
        result: the file that says what came out.
    """

    run: Run
    seed: int
    folder: Path
    result: Path

    def __str__(self) -> str:
        return f"{self.run.label} seed {self.seed}"

    def definition(self) -> dict[str, Any]:
        """What a result file says was asked for."""
        return {
            "config": self.run.config,
            "overrides": list(self.run.overrides),
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
    """The file with the examples of a job's experiment."""
    return job.result.parent / "examples.npz"


def read_examples(job: Job) -> Examples:
    """The examples of a job's experiment.

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
    with np.load(seed_folder(job.folder, 0) / f"records_{split}.npz") as arrays:
        labels, correct = [str(label) for label in arrays["cells"]], arrays["correct"] > 0
        names = read_json(job.folder / "run.json")["data"]["clusters"]
        arrays = {name: arrays[name] for name in ("example_id", *names)}
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
    return {label: pack(row) for label, row in zip(labels, correct, strict=True)}


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
    """All runs with all seeds: first every run with the first seed, so that tables fill evenly.

    Args:
        experiment: the definition.
        workdir: folder for checkpoints and records.
        results: folder for result files, docs/results in this project.
    """
    return [
        Job(
            run,
            seed,
            workdir / experiment.name / run.label / f"seed_{seed}",
            results / experiment.name / f"{run.label}_seed{seed}.json",
        )
        for seed in experiment.seeds
        for run in experiment.runs
    ]


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
    elif begun.exists():
        made, before = job.folder, now | {"resolved": _without_free(read_json(begun))}
    else:
        return None
    difference = first_difference(_shared(before, now), _shared(now, before))
    if difference is None:
        return None
    path, old, new = difference
    path = path.removeprefix("definition.").replace("resolved.", "config.")
    return (
        f"{made} was made with {path} = {old}, the definition now says {new}: "
        f"undo that, or remove {job.result} and {job.folder} to run it anew"
    )


def _without_free(tree: Any) -> Any:
    """A configuration's JSON form without the fields that leave its numbers as they are."""
    return {name: item for name, item in tree.items() if name not in FREE_FIELDS}


def _shared(tree: Any, other: Any) -> Any:
    """`tree` without default fields of objects that `other` lacks; classes by their bare name."""
    if isinstance(tree, dict) and isinstance(other, dict):
        return {
            name: item.rpartition(".")[2] if name == CLASS else _shared(item, other.get(name))
            for name, item in tree.items()
            if name in other or CLASS not in tree or not _at_default(tree[CLASS], name, item)
        }
    if isinstance(tree, list) and isinstance(other, list):
        return [
            _shared(item, other[index] if index < len(other) else None)
            for index, item in enumerate(tree)
        ]
    return tree


def _at_default(path: str, name: str, item: Any) -> bool:
    """Whether a field has its class's default; true where there is no such class or field now."""
    try:
        return bool(item == field_default(path, name))
    except FusionError:
        return True
