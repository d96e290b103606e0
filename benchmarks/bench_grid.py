"""Time the joint robustness grid against the same cells worked through one by one.

FUSION_JAX_DATA=FOLDER python benchmarks/bench_grid.py [--examples=1000] [--cells=8] [--rounds=3]
    [--torch=PYTHON] [--out=FOLDER]

Two ResNet-18 encoders on audio-visual MNIST (`configs/av_mnist.py:resnet18`, fresh parameters: time
does not depend on them), six corruptions of five severities on each modality, missing ones too:
1,023 cells. Timed in turn on the same cores, compilation apart:

* the grid of the library, whole: each condition encoded once, all combinations fused;
* the same grid without factorisation (`make_function_grid_program`): each condition corrupted once,
  the whole model for each cell, on `--cells` cells drawn by seed;
* cell by cell: one jitted program that corrupts and predicts, called for each cell and batch, on
  the same cells;
* where there is PyTorch (`--torch` is an interpreter that has it): the same in a loop over cells in
  NumPy and PyTorch (benchmarks/torch_grid.py), on the same cells, once its model gives our logits.

Printed are seconds for all cells, those of a sample scaled up to them, as medians over the rounds,
and how many times faster the first is. The targets are at least 10 times against cell by cell and
20 times against PyTorch. A folder in `--out` receives grid_<platform>.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from sides import has_torch, without_path

from fusion_jax.cells import Cell, Conditions
from fusion_jax.config import write_json
from fusion_jax.corruptions.clipping import Clipping
from fusion_jax.corruptions.coloured_noise import ColouredNoise
from fusion_jax.corruptions.contrast import Contrast
from fusion_jax.corruptions.gaussian_blur import GaussianBlur
from fusion_jax.corruptions.impulse_noise import ImpulseNoise
from fusion_jax.corruptions.occlusion import Occlusion
from fusion_jax.corruptions.pixelate import Pixelate
from fusion_jax.corruptions.quantisation import Quantisation
from fusion_jax.corruptions.sample_dropout import SampleDropout
from fusion_jax.corruptions.time_mask import TimeMask
from fusion_jax.data.loader import eval_batches
from fusion_jax.evaluation.grid import (
    TracedCondition,
    decide_program,
    encode_program,
    grid_chunks,
    make_function_grid_program,
    make_grid_program,
)
from fusion_jax.models import FusionModel
from fusion_jax.runs import describe_machine
from fusion_jax.sources import ArraySource
from fusion_jax.tasks.classification import Classification
from fusion_jax.training.parallel import DataParallel

EXAMPLES = flags.DEFINE_integer("examples", 1000, "examples of the grid", lower_bound=1)
CELLS = flags.DEFINE_integer("cells", 8, "cells that slow sides are timed on", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "times that each side is timed", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 250, "rows of a batch", lower_bound=1)
TORCH = flags.DEFINE_string("torch", None, "Python interpreter with PyTorch")
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")

ROOT = Path(__file__).parent.parent
SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
UNSEEN = {
    "audio": (ColouredNoise(), Clipping(), TimeMask(), Quantisation(), SampleDropout()),
    "image": (ImpulseNoise(), GaussianBlur(), Contrast(), Occlusion(), Pixelate()),
}


def config() -> Any:
    """The configuration of the host."""
    import runpy

    return runpy.run_path(str(ROOT / "configs" / "av_mnist.py"))["get_config"]("resnet18")


def examples(data: Any, num: int) -> ArraySource:
    """The first test examples, in memory, so that no file is read while time is taken."""
    source = data.source("test")
    record = source[np.arange(num)]
    return ArraySource(record["inputs"], record["target"], num_classes=source.spec.num_classes)


class Sides:
    """The programs that are timed, each as a function of the cells."""

    def __init__(self, model: FusionModel, conditions: Conditions, source: ArraySource):
        self.model, self.conditions, self.source = model, conditions, source
        record = source[np.arange(2)]
        self.variables = jax.jit(
            lambda: model.init(
                jax.random.key(0), record["inputs"], np.ones((2, 2), bool), train=False
            )
        )()
        parallel, task = DataParallel(), Classification()
        corruptions = conditions.corruptions
        self.place = parallel.place_rows
        self.factorised = make_grid_program(model, task, corruptions, compiled=parallel.evaluation)

        def predict(inputs: Any, present: Any) -> Any:
            return model.apply(self.variables, inputs, present, train=False).prediction

        self.function = make_function_grid_program(
            predict, model.modalities, task, corruptions, compiled=parallel.evaluation
        )
        encode = {name: encode_program(model, name, corruptions[name]) for name in model.modalities}
        decide = decide_program(model, task)

        def one_cell(variables: Any, batch: Any, numbers: Any, severities: Any, keep: Any) -> Any:
            key = jax.random.key(0)
            encoded = {
                name: [
                    encode[name](variables, batch, TracedCondition(numbers[m], severities[m]), key)
                ]
                for m, name in enumerate(model.modalities)
            }
            which = jnp.zeros((1, len(model.modalities)), int)
            return decide(variables, encoded, which, keep[None], 1.0, batch)

        self.one_cell = parallel.evaluation(one_cell)

    def batches(self) -> list[Any]:
        """All batches, on the device."""
        found = eval_batches(self.source, batch_size=BATCH.value)
        return [jax.block_until_ready(self.place(batch)) for batch in found]

    def grid(self, program: Any, cells: list[Cell]) -> np.ndarray:
        """All records of the library's grid; returns what was right [cells, N]."""
        chunks = grid_chunks(
            program,
            self.variables,
            self.batches(),
            cells=cells,
            key=jax.random.key(0),
            place=lambda batch: batch,
        )
        return np.concatenate([chunk["correct"] for chunk in chunks], axis=1)

    def by_cell(self, cells: list[Cell]) -> np.ndarray:
        """The same, one call for each cell and batch."""
        names, known = self.model.modalities, self.conditions.corruptions
        batches, found = self.batches(), []
        for cell in cells:
            numbers, severities = [], []
            for name in names:
                condition = cell.condition(name)
                kinds = ["", *(type(each).__name__ for each in known[name])]
                numbers.append(kinds.index(condition.corruption))
                severities.append(condition.severity)
            keep = np.array([name not in cell.missing for name in names])
            results = [
                self.one_cell(
                    self.variables, batch, np.int32(numbers), np.float32(severities), keep
                )
                for batch in batches
            ]
            found.append(np.concatenate([r["correct"][0] for r in jax.device_get(results)]))
        return np.stack(found)


def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds, and what was returned."""
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def torch_grid(*arguments: str) -> dict[str, Any]:
    """What benchmarks/torch_grid.py prints."""
    command = [
        TORCH.value or sys.executable,
        str(ROOT / "benchmarks" / "torch_grid.py"),
        *arguments,
    ]
    # Its threads wait asleep: where other work shares the cores, spinning in wait for a thread that
    # is not running made the loop 10 times slower, which is no property of the method.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(result.stdout)


def check_torch(sides: Sides, folder: Path) -> dict[str, float]:
    """Compare the model in PyTorch with ours on 8 examples, with each modality missing too.

    Noise goes into every variable: in fresh ones the residual branches and the predicted noise are
    0, so that nothing of them would be compared. With this seed the predicted noise is cut at its
    lower bound in some examples and not in others.
    """
    inputs = sides.source[np.arange(min(8, len(sides.source)))]["inputs"]
    rows = len(next(iter(inputs.values())))
    present = np.repeat(np.array([[1, 1], [1, 0], [0, 1]], bool)[:, None], rows, axis=1)
    generator = np.random.default_rng(10)
    variables = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * generator.standard_normal(x.shape, np.float32),
        sides.variables,
    )
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(lambda here: sides.model.apply(variables, inputs, here, train=False))
        outputs = [apply(here) for here in present]
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    arrays |= {f"inputs/{name}": x for name, x in inputs.items()}
    arrays["logits"] = np.stack([output.prediction for output in outputs])
    arrays["weights"] = np.stack([output.fusion.weights for output in outputs])
    np.savez(folder / "check.npz", present=present, **arrays)
    return torch_grid(f"--check={folder / 'check.npz'}")


def torch_seconds(source: ArraySource, cells: list[Cell], folder: Path) -> float:
    """Seconds that PyTorch and NumPy take for some cells."""
    record = source[np.arange(len(source))]
    path = folder / "examples.npz"
    np.savez(path, target=record["target"], **record["inputs"])
    given = [
        {
            "noise": {name: [c.corruption, c.severity] for name, c in cell.noise},
            "missing": list(cell.missing),
        }
        for cell in cells
    ]
    found = torch_grid(str(path), json.dumps(given), str(BATCH.value), str(os.cpu_count()))
    return float(found["seconds"])


def main(_: Any) -> None:
    chosen = config()
    source = examples(chosen.data, EXAMPLES.value)
    conditions = Conditions(chosen.recipe.corruptions, UNSEEN, SEVERITIES, 0.4)
    sides = Sides(chosen.model, conditions, source)
    cells = [cell for cell in conditions.cells(sides.model.modalities, "joint") if not drawn(cell)]
    generator = np.random.default_rng(0)
    sample = [cells[i] for i in sorted(generator.choice(len(cells), CELLS.value, replace=False))]
    scale = len(cells) / len(sample)
    programs: dict[str, tuple[Callable[[], np.ndarray], float]] = {
        "factorised grid": (lambda: sides.grid(sides.factorised, cells), 1.0),
        "grid without factorisation": (lambda: sides.grid(sides.function, sample), scale),
        "cell by cell": (lambda: sides.by_cell(sample), scale),
    }
    # Compiled and warm; and all must say the same, or their times mean nothing.
    where = [cells.index(cell) for cell in sample]
    whole = sides.grid(sides.factorised, cells)[where]
    for name in ("grid without factorisation", "cell by cell"):
        agree = np.mean(programs[name][0]() == whole)
        assert agree > 0.999, (name, agree)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    with_torch = has_torch(TORCH.value)
    if with_torch:
        seconds["PyTorch and NumPy"] = []
    with tempfile.TemporaryDirectory() as folder:
        if with_torch:
            print("differences from PyTorch:", check_torch(sides, Path(folder)))
        for _ in range(ROUNDS.value):
            for name, (function, factor) in programs.items():
                seconds[name].append(timed(function)[0] * factor)
            if with_torch:
                found = torch_seconds(source, sample, Path(folder))
                seconds["PyTorch and NumPy"].append(found * scale)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    first = medians["factorised grid"]
    print(f"{len(cells)} cells, {len(source)} examples; sample of {len(sample)} cells")
    for name, value in medians.items():
        print(f"{name:28} {value:10.1f} s  {value / first:6.1f} times the factorised grid")
    if OUT.value:
        facts = describe_machine() | {"load": os.getloadavg()}
        # Where PyTorch lies is of no use to others.
        facts["command"] = without_path(facts["command"])
        write_json(
            Path(OUT.value) / f"grid_{jax.default_backend()}.json",
            facts
            | {
                "cells": len(cells),
                "examples": len(source),
                "sample": len(sample),
                "batch": BATCH.value,
                "seconds": seconds,
                "medians": medians,
                "times": {name: value / first for name, value in medians.items()},
            },
        )


def drawn(cell: Cell) -> bool:
    """Whether the severities of a cell differ from example to example."""
    return any(condition.drawn for _, condition in cell.noise)


if __name__ == "__main__":
    app.run(main)
