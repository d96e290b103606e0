"""Time the training step of UDML over two ResNet-18 encoders against PyTorch.

python benchmarks/bench_step.py [--shape=av_mnist|published] [--batch=16] [--rounds=5] [--steps=5]
    [--dtype=float32 --dtype=bfloat16] [--torch=PYTHON] [--compile] [--notf32] [--out=FOLDER]

Shape "av_mnist" is `configs/av_mnist.py:resnet18` (waveforms of 8,000 samples and images of 28 x 28
x 1, encoders of width 32, batch 128). "published" has spectrograms of 257 x 188 x 1 and 8-bit
images of 224 x 224 x 3, 6 classes, encoders of width 64 with the large stem, the same recipe and
losses, batch 16 on CPU and 64 on a GPU. Ours is the library's own compiled step with donated state,
as the loop runs it, and the prediction in evaluation mode. The other is benchmarks/torch_step.py,
which says what is equal; `--torch` is an interpreter with PyTorch (the extra "parity"). Before
anything is timed its steps must agree with ours.

Each side is a process of its own, with the batch on its device. They run by turns in drawn order: a
block of `--steps` steps of one, while the other sleeps. Printed are medians over the rounds in
milliseconds a step, and the median over the rounds of PyTorch / ours. PyTorch runs in the fastest
of its usual settings, found by trial for training and prediction apart: channels first or last, and
on CPU its threads asleep (OMP_WAIT_POLICY=PASSIVE) or spinning for a moment while they wait. On a
GPU `torch.compile` is timed too; TF32 is allowed on both sides or, with
`--notf32`, on none. The targets are 1.0 on CPU, 1.5 on a GPU and 1.0 there against `torch.compile`.
A folder in `--out` receives step_<shape>_<platform>.json, with the most memory that each process
held (on a GPU also there) and the seconds to the end of its first step, imports apart.
"""

import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags
from published import NAMES, SPECS, experiment
from sides import Side, has_torch, torch_program, without_path

from fusion_jax.config import Config, Recipe, write_json
from fusion_jax.corruptions.batch import corrupt_batch, drop_modalities
from fusion_jax.rng import example_keys
from fusion_jax.runs import build_step, describe_machine, new_state, root_key, state_shapes
from fusion_jax.training.parallel import DataParallel
from fusion_jax.types import Batch

SHAPE = flags.DEFINE_enum("shape", "av_mnist", ["av_mnist", "published"], "shape of the inputs")
BATCH = flags.DEFINE_integer("batch", None, "rows (default: see above)", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "times that each side is timed", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 5, "steps of a block", lower_bound=1)
DTYPES = ("float32", "bfloat16")
DTYPE = flags.DEFINE_multi_enum("dtype", None, DTYPES, "of the encoders (default: both)")
TORCH = flags.DEFINE_string("torch", None, "Python interpreter with PyTorch (default: this one)")
COMPILE = flags.DEFINE_bool("compile", None, "time torch.compile too (default: on a GPU)")
TF32 = flags.DEFINE_bool("tf32", True, "allow TF32 in float32, on both sides")
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")
SERVE = flags.DEFINE_enum("serve", None, DTYPES, "be our side: answer requests on standard input")

ROWS = {"av_mnist": {"cpu": 128, "gpu": 128}, "published": {"cpu": 16, "gpu": 64}}
KINDS = ("train", "forward")
LAYOUTS = ("contiguous_format", "channels_last")
FORMS = {"eager": [], "compile": ["--compile"]}
CHECKED_ROWS, CHECKED_STEPS = 4, 3


def random_batch(rows: int) -> Batch:
    """Random inputs, loud at first and silent after; times do not depend on what they show."""
    generator, spec = np.random.default_rng(0), SPECS[SHAPE.value]
    inputs = {}
    for name, each in spec.modalities.items():
        values = generator.standard_normal((rows, *each.shape))
        if each.dtype == "uint8":
            values = generator.integers(0, 256, values.shape)
        elif each.dtype == "int16":
            values = 3000 * values * (np.arange(values.shape[1]) < 0.6 * values.shape[1])
        inputs[name] = values.astype(each.dtype)
    return Batch(
        inputs=inputs,
        present=np.ones((rows, len(NAMES)), bool),
        target=generator.integers(0, spec.num_classes, rows).astype(np.int32),
        mask=np.ones(rows, bool),
        example_id=np.arange(rows, dtype=np.int32),
    )


class Program:
    """Our compiled training step and forward pass, with their state."""

    def __init__(self, config: Config, batch: Batch):
        """Build; the first calls compile."""
        spec, parallel = SPECS[SHAPE.value], DataParallel(jax.devices()[:1])

        def predict(variables: Any, batch: Batch) -> Any:
            output: Any = config.model.apply(variables, batch.inputs, batch.present, train=False)
            return output.prediction, output.fusion.weights

        self.place_state = parallel.place_state
        self._step = parallel.compile(build_step(config), state_shapes(config, spec))
        self._predict = parallel.evaluation(predict)
        self._batch = parallel.place_batch(batch)
        self.state = parallel.create(
            functools.partial(new_state, config, spec), root_key(config, 0)
        )

    def train(self) -> Any:
        """One training step; returns its metrics."""
        self.state, metrics = self._step(self.state, self._batch)
        return metrics

    def forward(self) -> Any:
        """Prediction and weights of the batch, in evaluation mode."""
        return self._predict({"params": self.state.params, **self.state.collections}, self._batch)

    def timed(self, do: str, calls: int) -> float:
        """Seconds of so many steps, or forward passes, from a device at rest to one at rest."""
        function = {"train": self.train, "forward": self.forward}[do]
        jax.block_until_ready(self.state)
        start = time.perf_counter()
        for _ in range(calls):
            found = function()
        jax.block_until_ready((self.state, found))
        seconds = time.perf_counter() - start
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), found
        return seconds


def serve(dtype: str) -> None:
    """Answer requests until there are no more."""
    jax.config.update("jax_default_matmul_precision", "default" if TF32.value else "highest")
    batch = random_batch(BATCH.value)
    start = time.perf_counter()
    program = Program(experiment(SHAPE.value, dtype), batch)
    program.timed("train", 1)
    first = time.perf_counter() - start
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "facts":
            answer = {"run": describe_machine(), "memory": {"process": peak_megabytes()}}
            # `timed` ends the program otherwise.
            answer |= {"first_step_seconds": first, "finite": True}
            stats = jax.devices()[0].memory_stats()
            if stats:
                answer["memory"]["device"] = stats["peak_bytes_in_use"] / 1e6
        else:
            answer = {"seconds": program.timed(request["do"], request["calls"])}
        print(json.dumps(answer), flush=True)


def peak_megabytes() -> float:
    """The most memory that this process held; `getrusage` would count its parent's too."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


def processor() -> str:
    """The name of the processor."""
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown"


def our_side(dtype: str, rows: int) -> Side:
    """The library."""
    tf32 = "--tf32" if TF32.value else "--notf32"
    command = [sys.executable, __file__, f"--serve={dtype}", f"--shape={SHAPE.value}", tf32]
    # On a GPU the other side needs memory too.
    return Side([*command, f"--batch={rows}"], XLA_PYTHON_CLIENT_PREALLOCATE="false")


def torch_command(platform: str, *arguments: str) -> list[str]:
    """benchmarks/torch_step.py."""
    return [*torch_program(TORCH.value, "torch_step.py", platform), *arguments]


def fastest_torch(start: Path, platform: str, dtype: str, form: str) -> dict[str, Any]:
    """PyTorch's fastest setting for each kind of step: its side, its name, milliseconds of all."""
    policies = ("PASSIVE", "") if platform == "cpu" else ("",)
    best: dict[str, Any] = {kind: {"side": None, "trials": {}} for kind in KINDS}
    sides = []
    for layout, policy in itertools.product(LAYOUTS, policies):
        name = f"{layout}, threads asleep" if policy else layout
        arguments = [f"--serve={start}", f"--layout={layout}", f"--dtype={dtype}", *FORMS[form]]
        arguments += ["--tf32"] * TF32.value
        environment = {"OMP_WAIT_POLICY": policy} if policy else {}
        sides.append(Side(torch_command(platform, *arguments), **environment))
        for kind in KINDS:
            sides[-1].ask(do=kind, calls=1)
            found = min(sides[-1].milliseconds(kind, STEPS.value) for _ in range(2))
            if found < min(best[kind]["trials"].values(), default=np.inf):
                best[kind] |= {"side": sides[-1], "setting": name}
            best[kind]["trials"][name] = found
        kept = [best[kind]["side"] for kind in KINDS]
        for side in [side for side in sides if side not in kept]:
            side.close()
            sides.remove(side)
    return best


def named(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The leaves of a tree by their paths, copied: the step consumes its state."""
    return {
        prefix + jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def settings(config: Config) -> np.ndarray:
    """What torch_step.py must know of the experiment, as JSON."""

    def fields(thing: Any, *names: str) -> dict[str, Any]:
        found = {name: getattr(thing, name) for name in names if hasattr(thing, name)}
        return {"kind": type(thing).__name__} | found

    model, recipe = config.model, config.recipe
    shapes = {name: spec.shape for name, spec in SPECS[SHAPE.value].modalities.items()}
    prepare = {n: fields(x, "mean", "deviation") for n, x in model.preprocess.items()}
    noise = recipe.corruptions.items()
    found = {
        "prepare": {name: prepare.get(name) for name in NAMES},
        "channels": {name: shapes[name][-1] if len(shapes[name]) == 3 else 1 for name in NAMES},
        "width": model.encoders["image"].width,
        "classes": model.head.num_classes,
        "noise": {n: fields(x, "strengths", "reference", "deviation") for n, x in noise},
        "recipe": dataclasses.asdict(dataclasses.replace(recipe, corruptions={})),
        "optimizer": dataclasses.asdict(config.optimizer),
        "num_steps": config.num_steps,
    }
    return np.array(json.dumps(found))


def given(config: Config, batch: Batch, variables: dict[str, np.ndarray]) -> dict[str, Any]:
    """What both forms of torch_step.py read."""
    inputs = {f"inputs/{name}": x for name, x in batch.inputs.items()}
    rows = {"present": batch.present, "target": batch.target}
    return {"settings": settings(config), **inputs, **rows, **variables}


def law(config: Config, batch: Batch) -> dict[str, np.ndarray]:
    """Levels and sizes of noise, and how often a modality stays."""
    rows = len(batch.target)
    severity = np.linspace(0, config.recipe.max_severity, rows).astype(np.float32)
    keys = example_keys(jax.random.key(1), batch.example_id)
    found: dict[str, Any] = {"settings": settings(config), "severity": severity}
    for name, x in batch.inputs.items():
        corruption = config.recipe.corruptions[name]
        noisy = np.asarray(corrupt_batch(corruption, x, keys=keys, severity=severity), np.float32)
        change = (noisy - x).reshape(rows, -1)
        found[f"{name}/size"] = np.sqrt(np.mean(change**2, axis=1))
        found[f"{name}/level"] = np.asarray(corruption.noise_level(severity))
    present, ids = np.ones((20000, len(NAMES)), bool), np.arange(20000)
    rate = config.recipe.modality_dropout
    kept = drop_modalities(jax.random.key(2), present, rate=rate, example_id=ids)
    found["kept"] = np.asarray(kept).mean(axis=0)
    return {f"law/{name}": np.asarray(values) for name, values in found.items()}


def checked(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `torch_step.py --check` reads, and the variables of a fresh state.

    Noise goes into every variable: in fresh ones the residual branches and the predicted noise are
    0, so that nothing of them would be compared.
    """
    batch = random_batch(CHECKED_ROWS)
    batch.present[-2:] = [[True, False], [False, True]]
    quiet = {
        name: dataclasses.replace(each, strengths=(0.0, 3e-9, 3e-9), reference=1e-9)
        for name, each in config.recipe.corruptions.items()
    }
    # The first step is clean and its rate is 0.
    recipe = Recipe(quiet, noise_rate=1.0, severities=(0.6,), noise_start=0.2, modality_dropout=0.0)
    optimizer = dataclasses.replace(
        config.optimizer, learning_rate=1e-4, warmup_fraction=0.0, weight_decay=1.0
    )
    checked = dataclasses.replace(config, recipe=recipe, optimizer=optimizer, num_steps=4)
    program = Program(checked, batch)
    fresh = {"params": program.state.params, **program.state.collections}
    start = named(fresh)
    generator = np.random.default_rng(10)
    moved = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * generator.standard_normal(x.shape, np.float32), fresh
    )
    found = given(checked, batch, named(moved)) | law(config, batch)
    params = moved.pop("params")
    program.state = program.place_state(
        dataclasses.replace(program.state, params=params, collections=moved)
    )
    before: Any = jax.tree.map(np.zeros_like, params)
    with jax.default_matmul_precision("highest"):
        for step in range(CHECKED_STEPS):
            metrics = program.train()
            for name in ("loss", "task_loss", "scheduler_loss", "gradient_norm"):
                found[f"step{step}/metrics/{name}"] = np.array(metrics[name])
            # Adam's first moment tells the gradients that it was given.
            moment = jax.tree.map(np.array, optax.tree.get(program.state.opt_state, "mu"))
            gradients = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, moment, before)
            found |= named({"params": gradients}, f"step{step}/gradients/")
            before = moment
    after = {"params": program.state.params, **program.state.collections}
    return found | named(after, "after/"), start


def check(platform: str, path: Path) -> dict[str, Any]:
    """The largest differences from each form of PyTorch; all ends where they are too large."""
    found = {}
    for layout, form in itertools.product(LAYOUTS, forms(platform)):
        options = [f"--check={path}", f"--layout={layout}", *FORMS[form]]
        result = subprocess.run(
            torch_command(platform, *options), stdout=subprocess.PIPE, check=True
        )
        name = f"{form}, {layout}"
        found[name] = json.loads(result.stdout)
        print(f"differences from PyTorch, {name}: {found[name]}", flush=True)
    return found


def forms(platform: str) -> list[str]:
    """The forms of PyTorch that are timed."""
    compiled = platform == "gpu" if COMPILE.value is None else COMPILE.value
    return list(FORMS) if compiled else ["eager"]


def measure(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds a step of each side and kind in each round, by turns in drawn order."""
    turns = [(name, kind) for name in sides for kind in KINDS]
    times: dict[str, Any] = {name: {kind: [] for kind in KINDS} for name in sides}
    for name, kind in turns:
        sides[name][kind]["side"].milliseconds(kind, STEPS.value)  # compiles
    generator = np.random.default_rng(0)
    for _ in range(ROUNDS.value):
        for turn in generator.permutation(len(turns)):
            name, kind = turns[turn]
            times[name][kind].append(sides[name][kind]["side"].milliseconds(kind, STEPS.value))
    return times


def compare(start: Path | None, platform: str, dtype: str, rows: int) -> dict[str, Any]:
    """All that is measured in one dtype."""
    ours = our_side(dtype, rows)
    sides: dict[str, Any] = {"ours": {kind: {"side": ours} for kind in KINDS}}
    if start:
        for form in forms(platform):
            sides[form] = fastest_torch(start, platform, dtype, form)
    times = measure(sides)
    found: dict[str, Any] = {"run": ours.ask(do="facts")["run"]}
    for name, kinds in sides.items():
        found[name] = {}
        for kind, entry in kinds.items():
            mine, facts = times[name][kind], entry["side"].ask(do="facts")
            facts.pop("run", None)
            if dtype == "float32" and not facts["finite"]:
                raise SystemExit(f"{name}: not finite in float32")
            ratios = [a / b for a, b in zip(mine, times["ours"][kind], strict=True)]
            found[name][kind] = {
                "milliseconds": float(np.median(mine)),
                "over_ours": float(np.median(ratios)),
                "rounds": mine,
                **{key: value for key, value in entry.items() if key != "side"},
                **facts,
            }
            print(
                f"{dtype} {name:>8} {kind:>8} {found[name][kind]['milliseconds']:10.2f} ms "
                f"{found[name][kind]['over_ours']:6.2f} times ours, first step "
                f"{facts['first_step_seconds']:.1f} s, memory {facts['memory']} MB"
                f"{'' if facts['finite'] else ', results are NaN'}",
                flush=True,
            )
    for side in {entry["side"] for kinds in sides.values() for entry in kinds.values()}:
        side.close()
    return found


def main(_: list[str]) -> None:
    """Check, measure, print and write, as the flags say."""
    if SERVE.value:
        serve(SERVE.value)
        return
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    platform = subprocess.run(ask, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    if platform not in ("cpu", "gpu"):
        raise app.UsageError(f"the default backend is {platform}: PyTorch is timed on cpu and gpu")
    # This process only tells what is right; the device is its children's.
    jax.config.update("jax_platforms", "cpu")
    rows, load = BATCH.value or ROWS[SHAPE.value][platform], os.getloadavg()
    result: dict[str, Any] = {"shape": SHAPE.value, "batch": rows, "steps": STEPS.value}
    result |= {"load_average": load, "tf32": TF32.value and platform == "gpu"}
    result["threads"] = len(os.sched_getaffinity(0))
    # Of this program, not of the process that times ours.
    command = without_path(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    facts = {"command": command, "processor": processor()}
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        start = None
        if has_torch(TORCH.value):
            start, compared = Path(folder) / "start.npz", Path(folder) / "check.npz"
            arrays, fresh = checked(experiment(SHAPE.value))
            np.savez(compared, **arrays)
            np.savez(start, **given(experiment(SHAPE.value), random_batch(rows), fresh))
            result["differences"] = check(platform, compared)
        # Written at once: what comes after may fail.
        for dtype in DTYPE.value or DTYPES:
            result[dtype] = compare(start, platform, dtype, rows)
            result.setdefault("run", result[dtype].pop("run") | facts)
            if OUT.value:
                write_json(Path(OUT.value) / f"step_{SHAPE.value}_{platform}.json", result)


if __name__ == "__main__":
    app.run(main)
