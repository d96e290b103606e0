"""Time training of several seeds: one after the other, and all at once in one vectorised program.

python benchmarks/bench_seeds.py [--seeds=8] [--rounds=7] [--steps=3] [--torch=PYTHON]
    [--out=FOLDER]

Three models: "features" (six MLP encoders at the sizes of `configs/handwritten.py`, equal weights,
no noise and no dropout), "av_digits" (`configs/av_digits.py`: a small CNN and an MLP), "resnet18"
(UDML over two ResNet-18 at the shapes of `configs/av_mnist.py:resnet18`, batch 16). Every seed has
a state and a random batch of its own. One after the other is what `config.num_seeds` runs, at once
what it runs with `config.parallel.seeds_at_once`. Their losses must agree first.

With `--torch`, an interpreter with PyTorch (the extra "parity"), "features" is trained by
benchmarks/torch_seeds.py too, seed by seed and by `torch.func` at once; their losses must agree
with ours.

Programs run by turns in drawn order. Printed are medians over the rounds in milliseconds for a step
of all seeds, and the median ratio to ours one after the other. A folder in `--out` receives
seeds_<platform>.json.
"""

import dataclasses
import functools
import json
import os
import runpy
import tempfile
import time
from pathlib import Path
from typing import Any

# On a GPU the other side needs memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from absl import app, flags
from published import ROOT, SPECS, experiment
from sides import PAUSE_SECONDS, Side, has_torch, torch_program, without_path

from fusion_jax.config import Config, Recipe, write_json
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.runs import build_step, describe_machine, new_state, root_key, state_shapes
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.sources import ArraySpec, DataSpec
from fusion_jax.tasks.classification import ClassificationHead
from fusion_jax.training.parallel import DataParallel
from fusion_jax.training.seeds import OneSeed, SeedsAtOnce
from fusion_jax.types import Batch

SEEDS = flags.DEFINE_integer("seeds", 8, "trained together", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 7, "times that each program is timed", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 3, "steps of all seeds in a block", lower_bound=1)
TORCH = flags.DEFINE_string("torch", None, "Python interpreter with PyTorch (default: this one)")
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")

FEATURES = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
CHECKED_STEPS = 3
LOSS_TOLERANCE = 1e-4


def models() -> dict[str, tuple[Config, DataSpec, int]]:
    """Configuration, data and rows of each model."""
    resnet = experiment("av_mnist")
    digits = runpy.run_path(str(ROOT / "configs" / "av_digits.py"))["get_config"]()
    features = dataclasses.replace(
        resnet,
        model=FusionModel(
            encoders={name: MLPEncoder(hidden=(64,)) for name in FEATURES},
            scheduler=StaticScheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(num_classes=10),
        ),
        recipe=Recipe(corruptions={}, modality_dropout=0.0),
        objective=Supervised(unimodal_weight=1.0),
    )
    vectors = {name: ArraySpec((size,), "float32") for name, size in FEATURES.items()}
    return {
        "features": (features, DataSpec(vectors, 10), 64),
        "av_digits": (digits, digits.data.source("train").spec, 64),
        "resnet18": (resnet, SPECS["av_mnist"], 16),
    }


def random_batches(spec: DataSpec, rows: int) -> Batch:
    """Random inputs [seeds, rows, ...]; times do not depend on what they show."""
    generator, lead = np.random.default_rng(0), (SEEDS.value, rows)
    inputs = {}
    for name, each in spec.modalities.items():
        values = generator.standard_normal((*lead, *each.shape))
        scale, shift = {"uint8": (40, 128), "int16": (3000, 0), "float32": (1, 0)}[each.dtype]
        inputs[name] = np.clip(values * scale + shift, 0 if each.dtype == "uint8" else None, None)
        inputs[name] = inputs[name].astype(each.dtype)
    return Batch(
        inputs=inputs,
        present=np.ones((*lead, len(spec.modalities)), bool),
        target=generator.integers(0, spec.num_classes, lead).astype(np.int32),
        mask=np.ones(lead, bool),
        example_id=np.tile(np.arange(rows, dtype=np.int32), (SEEDS.value, 1)),
    )


class Ours:
    """The library's step of all seeds, in one form."""

    def __init__(self, config: Config, spec: DataSpec, rows: int, *, at_once: bool):
        """Fresh states; the first step compiles."""
        parallel, seeds = DataParallel(jax.devices()[:1]), range(SEEDS.value)
        init, shapes = functools.partial(new_state, config, spec), state_shapes(config, spec)
        several = functools.partial(SeedsAtOnce, count=SEEDS.value)
        self.program = (several if at_once else OneSeed)(parallel, build_step(config), shapes)
        states = [parallel.create(init, root_key(config, seed)) for seed in seeds]
        stacked = random_batches(spec, rows)
        batches = [parallel.place_batch(jax.tree.map(lambda x, i=i: x[i], stacked)) for i in seeds]
        groups = [slice(None)] if at_once else [slice(i, i + 1) for i in seeds]
        self.states = [self.program.pack(states[group]) for group in groups]
        self.batches = [batches[group] for group in groups]

    def timed(self, calls: int) -> tuple[float, np.ndarray]:
        """Seconds of so many steps of all seeds, and the last losses [seeds]."""
        jax.block_until_ready(self.states)
        start = time.perf_counter()
        found = []
        # As in a run: the steps of one seed, then those of the next.
        for place, batch in enumerate(self.batches):
            for _ in range(calls):
                self.states[place], metrics = self.program.step(self.states[place], batch)
            found.append(jax.block_until_ready((self.states[place], metrics["loss"]))[1])
        seconds = time.perf_counter() - start
        return seconds, np.concatenate([np.atleast_1d(loss) for loss in found])

    def close(self) -> None:
        """Give up the states."""
        self.states.clear()


class Theirs:
    """benchmarks/torch_seeds.py in one form, from the parameters that ours start with."""

    def __init__(self, start: Path, form: str, platform: str):
        """Start the process."""
        program = torch_program(TORCH.value, "torch_seeds.py", platform)
        # Threads that spin while they wait would take the cores of the next one.
        self.side = Side(
            [*program, f"--start={start}", f"--form={form}"], OMP_WAIT_POLICY="PASSIVE"
        )

    def timed(self, calls: int) -> tuple[float, np.ndarray]:
        """As `Ours.timed`."""
        answer = self.side.ask(do="train", calls=calls)
        return answer["seconds"], np.array(answer["losses"])

    def close(self) -> None:
        """End the process."""
        self.side.close()


def write_start(path: Path, config: Config, spec: DataSpec, rows: int) -> None:
    """What torch_seeds.py reads."""
    states = [new_state(config, spec, root_key(config, seed)) for seed in range(SEEDS.value)]
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *[state.params for state in states])
    named = {
        "params/" + jax.tree_util.keystr(where, simple=True, separator="/"): leaf
        for where, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    batches = random_batches(spec, rows)
    inputs = {f"inputs/{name}": values for name, values in batches.inputs.items()}
    settings = {"optimizer": dataclasses.asdict(config.optimizer), "num_steps": config.num_steps}
    np.savez(path, settings=json.dumps(settings), target=batches.target, **named, **inputs)


def programs(name: str, folder: Path) -> dict[str, Any]:
    """What is timed of a model."""
    config, spec, rows = models()[name]
    found: dict[str, Any] = {
        "one after the other": Ours(config, spec, rows, at_once=False),
        "at once": Ours(config, spec, rows, at_once=True),
    }
    if name == "features" and has_torch(TORCH.value):
        write_start(folder / "start.npz", config, spec, rows)
        for form, words in (("loop", "one after the other"), ("at_once", "at once")):
            found[f"PyTorch, {words}"] = Theirs(folder / "start.npz", form, jax.default_backend())
    return found


def measure(sides: dict[str, Any]) -> dict[str, Any]:
    """Check that all train the same, then time them by turns."""
    losses = {name: side.timed(CHECKED_STEPS)[1] for name, side in sides.items()}
    first = losses["one after the other"]
    differences = {name: float(np.max(np.abs(x / first - 1))) for name, x in losses.items()}
    assert all(np.isfinite(first)) and max(differences.values()) < LOSS_TOLERANCE, differences
    times: dict[str, list[float]] = {name: [] for name in sides}
    generator, names = np.random.default_rng(0), list(sides)
    for _ in range(ROUNDS.value):
        for place in generator.permutation(len(names)):
            name = names[place]
            time.sleep(PAUSE_SECONDS)
            times[name].append(1e3 * sides[name].timed(STEPS.value)[0] / STEPS.value)
    base = np.array(times["one after the other"])
    return {
        name: {
            "milliseconds": float(np.median(taken)),
            "over_one_after_the_other": float(np.median(np.array(taken) / base)),
            "loss_difference": differences[name],
            "rounds": taken,
        }
        for name, taken in times.items()
    }


def main(_: list[str]) -> None:
    """Measure, print and write, as the flags say."""
    load, result = os.getloadavg(), {}
    for name in models():
        with tempfile.TemporaryDirectory() as folder:
            sides = programs(name, Path(folder))
            result[name] = measure(sides)
            for side in sides.values():
                side.close()
        for side, found in result[name].items():
            print(
                f"{name:>10} {side:>30} {found['milliseconds']:10.2f} ms "
                f"{found['over_one_after_the_other']:6.2f} times ours one after the other",
                flush=True,
            )
    if OUT.value:
        run = describe_machine()
        run["command"] = without_path(run["command"])
        path = Path(OUT.value) / f"seeds_{jax.default_backend()}.json"
        write_json(path, {"run": run, "seeds": SEEDS.value, "load_average": load, "models": result})


if __name__ == "__main__":
    app.run(main)
