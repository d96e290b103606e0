"""Count and time what schedulers and their parts add to a host of two ResNet-18 encoders.

python benchmarks/bench_schedulers.py [--batch=16] [--pixels=64] [--steps=31] [--out=FOLDER]
python benchmarks/bench_schedulers.py --table

The step is the library's own (AdamW), compiled once for each program; a host and its programs run
by turns on the same batch of 8-bit images and spectrograms, in training and in evaluation. Printed
are the parameters that a program has more than its host, and medians in milliseconds with the share
that it adds to its host's. The targets are at most 10 % of the forward pass for UDML, and 1 % of
the parameters and 5 % of the forward pass for MA-AFS. A folder in `--out` receives
schedulers_<platform>.json; `--table` writes docs/results/schedulers_cost.md from
benchmarks/results/schedulers_cpu.json.
"""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags

from fusion_jax.balancing.none import NoBalancer
from fusion_jax.config import Recipe, read_json, write_json
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.encoders.resnet import ResNetEncoder
from fusion_jax.fusion.concat import ConcatFusion
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel, parameter_modality
from fusion_jax.objectives.ma_afs import MAAFSObjective
from fusion_jax.objectives.ranked_confidence import RankedConfidence
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import AdamW
from fusion_jax.preprocess.standardise import Standardise
from fusion_jax.runs import describe_machine
from fusion_jax.schedulers.arm import ARMScheduler
from fusion_jax.schedulers.combined import CombinedScheduler
from fusion_jax.schedulers.ma_afs import MAAFSScheduler
from fusion_jax.schedulers.qmf import QMFScheduler
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler, official_udml
from fusion_jax.signals.predicted_noise import PredictedNoise
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.parallel import DataParallel
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step
from fusion_jax.types import Batch

BATCH = flags.DEFINE_integer("batch", 16, "rows", lower_bound=1)
PIXELS = flags.DEFINE_integer("pixels", 64, "side of images and spectrograms", lower_bound=32)
STEPS = flags.DEFINE_integer("steps", 31, "timed calls of each program", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")
TABLE = flags.DEFINE_bool("table", False, "measure nothing, write the page of the last result")

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "schedulers_cpu.json"
PAGE = ROOT / "docs" / "results" / "schedulers_cost.md"

NAMES = ("audio", "image")
HOST, CONCAT_HOST = "static", "static, concatenation"
ALONE_HOST = "static, noise, each modality alone too"
# One view: without the losses that compare a corrupted with a clean pass.
ONE_VIEW = MAAFSObjective(ranking=0.0, consistency=0.0)


@dataclasses.dataclass(frozen=True)
class Part:
    """What is timed: a scheduler in a host, with what it trains on.

    Attributes:
        scheduler: gives the weights.
        host: the program that it is compared with.
        noise: whether half of the inputs are noisy in training.
        probabilistic: whether encoders give Gaussian codes.
        fusion: the fusion operator.
        objective: what is minimised.
    """

    scheduler: nn.Module
    host: str = HOST
    noise: bool = True
    probabilistic: bool = False
    fusion: nn.Module = dataclasses.field(default_factory=SumFusion)
    objective: Any = dataclasses.field(default_factory=Supervised)


PARTS = {
    HOST: Part(StaticScheduler(), noise=False),
    "+ noise injection": Part(StaticScheduler()),
    "+ noise estimator": Part(UDMLScheduler(signals=(PredictedNoise(),), exponents=(0.5,))),
    "+ dependence": Part(UDMLScheduler()),
    "+ Gaussian codes": Part(UDMLScheduler(divergence_weight=1e-5), probabilistic=True),
    "QMF": Part(QMFScheduler(), objective=RankedConfidence()),
    ALONE_HOST: Part(StaticScheduler(), host=ALONE_HOST, objective=Supervised(unimodal_weight=1.0)),
    "ARM": Part(ARMScheduler(), host=ALONE_HOST, objective=Supervised(unimodal_weight=1.0)),
    "MA-AFS, one view": Part(MAAFSScheduler(), host=ALONE_HOST, objective=ONE_VIEW),
    "MA-AFS, two views": Part(MAAFSScheduler(), host=ALONE_HOST, objective=MAAFSObjective()),
    "combined, one view": Part(CombinedScheduler(), host=ALONE_HOST, objective=ONE_VIEW),
    "combined, two views": Part(CombinedScheduler(), host=ALONE_HOST, objective=MAAFSObjective()),
    CONCAT_HOST: Part(StaticScheduler(), host=CONCAT_HOST, noise=False, fusion=ConcatFusion()),
    "official UDML": Part(
        official_udml(),
        host=CONCAT_HOST,
        probabilistic=True,
        fusion=ConcatFusion(),
        objective=Supervised(unimodal_weight=4.0),
    ),
}


def make_batch(pixels: int, rows: int) -> Batch:
    """Random 8-bit images and spectrograms; the times do not depend on what they show."""
    generator = np.random.default_rng(0)
    inputs = {
        "audio": generator.normal(size=(rows, pixels, pixels, 1)).astype(np.float32),
        "image": generator.integers(0, 256, (rows, pixels, pixels, 3)).astype(np.uint8),
    }
    return Batch(
        inputs=jax.device_put(inputs),
        present=np.ones((rows, 2), bool),
        target=generator.integers(0, 10, rows).astype(np.int32),
        mask=np.ones(rows, bool),
        example_id=np.arange(rows, dtype=np.int32),
    )


class Program:
    """The compiled training step and forward pass of one part, with their state."""

    def __init__(self, part: Part, batch: Batch):
        """Build; the first calls compile."""
        model = FusionModel(
            preprocess={"image": Standardise()},
            encoders={
                name: ResNetEncoder(stem="imagenet", probabilistic=part.probabilistic)
                for name in NAMES
            },
            scheduler=part.scheduler,
            fusion=part.fusion,
            head=ClassificationHead(num_classes=10),
        )
        built: dict[str, Any] = {
            "model": model,
            "objective": part.objective,
            "balancer": NoBalancer(),
            "tx": AdamW().build(
                num_steps=1000,
                path_to_modality=lambda path: parameter_modality(path, NAMES),
                modalities=NAMES,
            ),
        }
        corruptions = {"audio": GaussianNoise(deviation=1.0), "image": GaussianNoise()}
        recipe = Recipe(corruptions=corruptions if part.noise else {}, modality_dropout=0.0)
        step = make_train_step(**built, task=Classification(), recipe=recipe, num_steps=1000)

        def predict(variables: Any, batch: Batch) -> Any:
            output: Any = model.apply(variables, batch.inputs, batch.present, train=False)
            return output.prediction, output.fusion.weights

        self._batch, parallel = batch, DataParallel(jax.devices()[:1])
        self._state = create_state(**built, example=batch, key=jax.random.key(0))
        self._step = parallel.compile(step, self._state)
        self._predict = parallel.evaluation(predict)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))

    def train(self) -> None:
        """One training step."""
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))

    def forward(self) -> None:
        """Prediction and weights of the batch, in evaluation mode."""
        variables = {"params": self._state.params, **self._state.collections}
        jax.block_until_ready(self._predict(variables, self._batch))


def measure(programs: dict[str, Program], steps: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each program's training step and forward pass.

    By turns in drawn order, not rotated: else the same one would always follow the one that leaves
    the caches and the memory as they are worst.
    """
    generator = np.random.default_rng(0)
    medians = {}
    for kind in ("train", "forward"):
        calls = {name: getattr(program, kind) for name, program in programs.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()  # compiles
        for _ in range(steps):
            for name in generator.permutation(list(calls)):
                start = time.perf_counter()
                calls[name]()
                times[name].append(1e3 * (time.perf_counter() - start))
        medians[kind] = {name: float(np.median(values)) for name, values in times.items()}
    return medians


def render(result: dict[str, Any]) -> str:
    """The page of a result."""
    run, versions = result["run"], result["run"]["versions"]
    lines = [
        "# What schedulers cost",
        "",
        "Generated from [schedulers_cpu.json](../../benchmarks/results/schedulers_cpu.json), do "
        "not edit: `python benchmarks/bench_schedulers.py --table`.",
        "",
        f"Two ResNet-18 encoders, batch {result['batch']}, {result['pixels']} x "
        f"{result['pixels']} pixels; medians of {result['steps']} calls, programs by turns, on "
        f"{run['hardware']} (load average {result['load_average']} before), Python "
        f"{versions['python']}, jax {versions['jax']}, commit {run['commit']}. Shares are of the "
        "program in the column 'host'; a training step of two views computes every encoder twice, "
        "once without gradient.",
        "",
        "| program | host | parameters | training step, ms | forward pass, ms |",
        "|---|---|---|---|---|",
    ]
    for name, part in result["parts"].items():
        shares = (
            f"{part['parameters_added']:+,} ({part['parameters_added_share']:+.2%})",
            f"{part['train_milliseconds']:.0f} ({part['train_added_share']:+.1%})",
            f"{part['forward_milliseconds']:.1f} ({part['forward_added_share']:+.1%})",
        )
        if name == part["host"]:
            shares = (
                f"{part['parameters']:,}",
                f"{part['train_milliseconds']:.0f}",
                f"{part['forward_milliseconds']:.1f}",
            )
        lines.append(f"| {' | '.join([name, part['host'], *shares])} |")
    return "\n".join([*lines, ""])


def main(_: list[str]) -> None:
    """Measure, print and write."""
    if TABLE.value:
        PAGE.write_text(render(read_json(RESULT)))
        print(f"written: {PAGE}")
        return
    load = round(os.getloadavg()[0], 2)
    batch = make_batch(PIXELS.value, BATCH.value)
    medians: dict[str, dict[str, float]] = {"train": {}, "forward": {}}
    parameters: dict[str, int] = {}
    for host in dict.fromkeys(part.host for part in PARTS.values()):
        named = {name: part for name, part in PARTS.items() if part.host == host}
        programs = {name: Program(part, batch) for name, part in named.items()}
        for kind, values in measure(programs, STEPS.value).items():
            medians[kind] |= values
        parameters |= {name: program.parameters for name, program in programs.items()}
        # All programs of all hosts at once would take more pieces of memory than Linux gives.
        programs.clear()
        jax.clear_caches()
    parts = {}
    for name, part in PARTS.items():
        host_count, count = parameters[part.host], parameters[name]
        found: dict[str, Any] = {
            "host": part.host,
            "parameters": count,
            "parameters_added": count - host_count,
            "parameters_added_share": count / host_count - 1,
        }
        for kind, values in medians.items():
            found |= {f"{kind}_milliseconds": values[name]}
            found |= {f"{kind}_added_share": values[name] / values[part.host] - 1}
        parts[name] = found
        print(
            f"{name:>38} {count - host_count:>+8} parameters {count / host_count - 1:+7.2%}"
            f"   step {found['train_milliseconds']:8.1f} ms {found['train_added_share']:+7.1%}"
            f"   forward {found['forward_milliseconds']:7.1f} ms"
            f" {found['forward_added_share']:+7.1%}",
            flush=True,
        )
    if OUT.value:
        result = {"run": describe_machine(), "batch": BATCH.value, "pixels": PIXELS.value}
        result |= {"steps": STEPS.value, "load_average": load, "parts": parts}
        write_json(Path(OUT.value) / f"schedulers_{jax.default_backend()}.json", result)


if __name__ == "__main__":
    app.run(main)
