"""Time what a balancer adds to a training step of two ResNet-18 encoders.

python benchmarks/bench_balancers.py [--batch=16] [--pixels=64,112] [--repeats=15] [--out=FOLDER]

The step is the library's own (AdamW, sum fusion), compiled once for each balancer; the steps run by
turns on the same batch of images. Printed are medians in milliseconds and the median over the turns
of the share that each balancer adds to the step without one; "none, again" is a second program
equal to the first, and says how far to trust the others. The target is at most 3 % for MWAM. A
folder in `--out` receives balancers_<platform>.json.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from fusion_jax.balancing.mwam import MWAM
from fusion_jax.balancing.none import NoBalancer
from fusion_jax.balancing.ogm import OGM
from fusion_jax.config import Recipe, write_json
from fusion_jax.encoders.resnet import ResNetEncoder
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel, parameter_modality
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import AdamW
from fusion_jax.runs import describe_machine
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.parallel import DataParallel
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step
from fusion_jax.types import Batch

BATCH = flags.DEFINE_integer("batch", 16, "rows", lower_bound=1)
PIXELS = flags.DEFINE_list("pixels", ["64", "112"], "image sides, multiples of 8")
REPEATS = flags.DEFINE_integer("repeats", 15, "timed steps of each balancer", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")

NAMES = ("depth", "rgb")
BALANCERS = {
    "none": NoBalancer(),
    "none, again": NoBalancer(),
    "MWAM robust": MWAM(),
    "MWAM official": MWAM(preset="official"),
    "OGM-GE": OGM(gradient_noise=1.0),
}


def make_batch(pixels: int, rows: int) -> Batch:
    """Random images; the time of a step does not depend on what they show."""
    generator = np.random.default_rng(0)
    inputs = {
        name: generator.normal(size=(rows, pixels, pixels, 3)).astype(np.float32) for name in NAMES
    }
    return Batch(
        inputs=jax.device_put(inputs),
        present=np.ones((rows, 2), bool),
        target=generator.integers(0, 10, rows).astype(np.int32),
        mask=np.ones(rows, bool),
        example_id=np.arange(rows, dtype=np.int32),
    )


def make_step(balancer: Any, batch: Batch) -> Callable[[], None]:
    """A call that does one training step and keeps the state."""
    parts = {
        "model": FusionModel(
            encoders={name: ResNetEncoder(stem="imagenet") for name in NAMES},
            scheduler=StaticScheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(num_classes=10),
        ),
        "objective": Supervised(),
        "balancer": balancer,
        "tx": AdamW().build(
            num_steps=1000,
            path_to_modality=lambda path: parameter_modality(path, NAMES),
            modalities=NAMES,
        ),
    }
    step = make_train_step(
        **parts,
        task=Classification(),
        recipe=Recipe(noise_rate=0.0, modality_dropout=0.0),
        num_steps=1000,
    )
    state = create_state(**parts, example=batch, key=jax.random.key(0))
    program = DataParallel(jax.devices()[:1]).compile(step, state)

    def run() -> None:
        nonlocal state
        state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def measure(pixels: int, rows: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each step with each balancer, by turns in drawn order.

    Drawn, not rotated: else the same one would always follow the one that leaves the caches and the
    memory as they are worst.
    """
    batch = make_batch(pixels, rows)
    steps = {name: make_step(balancer, batch) for name, balancer in BALANCERS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():
        run()  # compiles
    generator = np.random.default_rng(0)
    for _ in range(repeats):
        for name in generator.permutation(list(steps)):
            start = time.perf_counter()
            steps[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main(_: list[str]) -> None:
    """Measure, print and write."""
    result: dict[str, Any] = {"run": describe_machine(), "batch": BATCH.value}
    result |= {"repeats": REPEATS.value, "steps": {}}
    for pixels in PIXELS.value:
        load = round(os.getloadavg()[0], 2)
        times = measure(int(pixels), BATCH.value, REPEATS.value)
        found = {name: float(np.median(values)) for name, values in times.items()}
        added = {
            name: float(np.median(np.divide(values, times["none"]))) - 1
            for name, values in times.items()
        }
        result["steps"][pixels] = {
            "load_average": load,
            "milliseconds": found,
            "added": {name: share for name, share in added.items() if name != "none"},
        }
        for name, value in found.items():
            print(f"{pixels:>4} pixels {name:>15} {value:9.1f} ms {added[name]:+7.1%}", flush=True)
    if OUT.value:
        platform = jax.default_backend()
        write_json(Path(OUT.value) / f"balancers_{platform}.json", result)


if __name__ == "__main__":
    app.run(main)
