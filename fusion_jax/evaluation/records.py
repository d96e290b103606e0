"""Per-example records of a grid in a folder of memory-mapped arrays, written batch by batch.

    <folder>/<name>.npy       [cells, N, ...] for what a cell gave, [N, ...] for what is known of
                              the examples (example_id, target, clusters)
    <folder>/progress.json    how far it is, of what; gone when it is finished
    <folder>/finished.json    the names of the cells and of what is known of the examples

An evaluation that was killed goes on where the last whole batch was written, and ends with the same
bytes as one that was not.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.config import read_json, write_json
from fusion_jax.errors import FusionError, writing

PROGRESS, FINISHED = "progress.json", "finished.json"


class Records(Mapping[str, np.ndarray]):
    """The finished records of a grid: name -> array, memory-mapped, read only.

    Attributes:
        cells: names of the cells, in the order of the first axis.
    """

    def __init__(self, folder: str | Path):
        """Open the records in a folder.

        Raises:
            FusionError: where there are none, or they are not finished.
        """
        self.folder = Path(folder)
        if not (self.folder / FINISHED).exists():
            raise FusionError(
                f"there are no finished records in {self.folder}: evaluate the run first"
            )
        known = read_json(self.folder / FINISHED)
        self.cells: list[str] = known["cells"]
        self._of_examples: list[str] = known["examples"]

    def __getitem__(self, name: str) -> np.ndarray:
        path = self.folder / _file(name)
        if not path.exists():
            raise KeyError(name)
        return np.load(path, mmap_mode="r")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(_name(path) for path in self.folder.glob("*.npy")))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def cell(self, label: str) -> int:
        """Position of a cell by its name.

        Raises:
            FusionError: where there is none of that name.
        """
        if label not in self.cells:
            raise FusionError(f"there is no cell {label!r} among the records in {self.folder}")
        return self.cells.index(label)

    def of_cells(self) -> dict[str, np.ndarray]:
        """Name -> [cells, N, ...], without what is known of the examples whatever the cell."""
        return {name: self[name] for name in self if name not in self._of_examples}


class RecordWriter:
    """Writes the records of one grid; a second one with the same facts goes on where it stopped."""

    def __init__(
        self,
        folder: str | Path,
        *,
        facts: Mapping[str, Any],
        cells: Sequence[str],
        identity: Mapping[str, np.ndarray],
        writes: bool = True,
        reuse: bool = False,
        agree: Callable[[Callable[[], int]], int] = lambda look: look(),
    ):
        """Begin, or go on.

        Args:
            folder: of the records.
            facts: what the records are of, JSON-ready; unfinished ones of anything else are
                removed.
            cells: names of the cells.
            identity: name -> [N, ...], what is known of the examples.
            writes: whether this process is the one that writes; others only follow.
            reuse: whether finished records of the same facts count as written; they are removed
                otherwise.
            agree: gives all processes what a function gives on the one that writes: how far it is.
                Others do not look for themselves, as it may be removing what they would see.
        """
        self._folder, self._writes = Path(folder), writes
        self._cells, self._num = list(cells), len(next(iter(identity.values())))
        # As it comes back from a file: tuples are lists there.
        self._facts = json.loads(json.dumps({**facts, "cells": self._cells, "examples": self._num}))
        self._of_examples = sorted(identity)
        self._arrays: dict[str, np.memmap] = {}
        self.rows = agree(lambda: self._begin(identity, reuse))

    def _begin(self, identity: Mapping[str, np.ndarray], reuse: bool) -> int:
        """Rows that are there already; without any, a new folder."""
        rows = self._found_rows(reuse)
        if not rows:
            with writing(f"cannot write {self._folder}"):
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True)
                for name, values in identity.items():
                    np.save(self._folder / _file(name), values)
        return rows

    def write(self, found: Mapping[str, np.ndarray]) -> None:
        """Write the records [cells, rows, ...] of the next rows."""
        first = self.rows
        self.rows += next(iter(found.values())).shape[1]
        if not self._writes:
            return
        with writing(f"cannot write {self._folder}"):
            for name, values in found.items():
                array = self._array(name, values)
                array[:, first : self.rows] = values
                array.flush()
        # After the arrays: what it counts is there.
        write_json(self._folder / PROGRESS, {"rows": self.rows, "facts": self._facts})

    def finish(self) -> None:
        """Mark the records as finished."""
        if self._writes:
            self._arrays.clear()
            known = {
                "cells": self._cells,
                "examples": self._of_examples,
                "facts": self._facts,
            }
            write_json(self._folder / FINISHED, known)
            (self._folder / PROGRESS).unlink(missing_ok=True)

    def _found_rows(self, reuse: bool) -> int:
        """How many rows are there already, of the same facts."""
        unfinished, finished = self._folder / PROGRESS, self._folder / FINISHED
        if finished.exists():
            same = reuse and read_json(finished).get("facts") == self._facts
            return self._num if same else 0
        if not unfinished.exists():
            return 0
        known = read_json(unfinished)
        return int(known["rows"]) if known.get("facts") == self._facts else 0

    def _array(self, name: str, values: np.ndarray) -> np.memmap:
        if name not in self._arrays:
            path = self._folder / _file(name)
            self._arrays[name] = np.lib.format.open_memmap(
                path,
                mode="r+" if path.exists() else "w+",
                dtype=values.dtype,
                shape=(len(self._cells), self._num, *values.shape[2:]),
            )
            # A full disk is an error here, and not a signal that ends the process later.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return self._arrays[name]


def _file(name: str) -> str:
    """The file of an array: signals are named "signal/Entropy"."""
    return name.replace("/", ".") + ".npy"


def _name(path: Path) -> str:
    return path.stem.replace(".", "/")
