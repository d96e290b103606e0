"""The least time that a training step can take, on paper, and how it should scale to 256 chips.

python benchmarks/limits.py [--batch=64] [--program=v5e:2x2/bfloat16]
python benchmarks/limits.py --table

Two ResNet-18 with the UDML scheduler at the published shapes (spectrograms 257 x 188 x 1, 8-bit
images 224 x 224 x 3). The step is compiled ahead of time for TPU v5e and v5p, which needs libtpu
(`pip install -e ".[tpu]"`) and no TPU; XLA counts its operations and the bytes that they touch, and
says what is communicated. From these and the numbers on the makers' data sheets follow

* floor: the larger of operations / peak and bytes / bandwidth of memory. XLA counts bytes for every
  fused operation as if all of them went to memory; what stays on the chip makes it less.
* weak scaling, with the batch of each chip kept: the floor, plus a ring all-reduce of the bytes
  that the step reduces, 2 (n - 1) / n of them over a chip's links in one direction. Nothing of it
  is assumed to overlap: with overlap the larger of the two is the limit.

A program is written to benchmarks/results/limits.json as soon as it is compiled, beside those of
earlier calls, each with its commit; the page says what is missing.

An H200 has no compiler here: its operations and bytes are those that XLA counts for v5p. Beyond 8
of them a ring runs over the network. Nothing is run.
"""

import dataclasses
import sys
import time
from importlib import metadata
from typing import Any, NamedTuple

import tpu
from absl import app, flags, logging
from published import SPECS, experiment

from fusion_jax.config import read_json, write_json
from fusion_jax.errors import FusionError
from fusion_jax.runs import describe_machine
from fusion_jax.training.parallel import make_strategy

BATCH = flags.DEFINE_integer("batch", 64, "rows of each chip", lower_bound=8)
TABLE = flags.DEFINE_bool("table", False, "write the page from the result file, compile nothing")

RESULT = tpu.ROOT / "benchmarks" / "results" / "limits.json"
PAGE = tpu.ROOT / "docs" / "results" / "limits.md"
CHIPS = (1, 4, 8, 16, 64, 256)


class Chip(NamedTuple):
    """Of the maker's data sheet, for one chip, dense.

    Attributes:
        flops: floating-point operations a second of matrix products, by dtype of the step.
        bandwidth: bytes a second of its memory.
        link: bytes a second to other chips in one direction, all links together.
        near: chips that these links join; 0 for all.
        far: bytes a second beyond.
        compiled_for: topology that its program is compiled for; of one host.
    """

    flops: dict[str, float]
    bandwidth: float
    link: float
    near: int
    far: float
    compiled_for: str


# A TPU multiplies float32 in bfloat16 by default, an H200 in TF32.
SHEETS = {
    "TPU v5e": Chip({"float32": 197e12, "bfloat16": 197e12}, 819e9, 200e9, 0, 0, "v5e:2x2"),
    "TPU v5p": Chip({"float32": 459e12, "bfloat16": 459e12}, 2765e9, 600e9, 0, 0, "v5p:2x2x1"),
    "H200": Chip({"float32": 495e12, "bfloat16": 989e12}, 4.8e12, 450e9, 8, 50e9, "v5p:2x2x1"),
}


# Every program: name -> topology and dtype.
PROGRAMS = {
    f"{chip.compiled_for}/{dtype}": (chip.compiled_for, dtype)
    for chip in SHEETS.values()
    for dtype in chip.flops
}
PROGRAM = flags.DEFINE_multi_enum("program", None, [*PROGRAMS], "to compile; repeat (default: all)")


def count(topology: str, dtype: str, rows: int) -> dict[str, Any]:
    """What XLA says of the step on one chip of a topology."""
    devices = tpu.tpu_devices(topology)
    config = dataclasses.replace(experiment("published", dtype), batch_size=rows * len(devices))
    strategy = make_strategy(config.parallel, devices)
    lowered = tpu.lower_training(config, SPECS["published"], strategy)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    print(f"{topology} {dtype}: compiled in {seconds:.0f} s", flush=True)
    found = tpu.describe(compiled, devices=len(devices))
    run = describe_machine()
    run["versions"]["libtpu"] = metadata.version("libtpu")
    return {
        "run": run,
        "batch": rows,
        "compile_seconds": round(seconds, 1),
        "flops": found["flops"],
        "bytes_accessed": found["bytes_accessed"],
        "bytes_of_memory": found["bytes"],
        "bytes_reduced": sum(
            each["bytes"] for each in found["collectives"] if each["kind"] == "all-reduce"
        ),
    }


def floor_milliseconds(chip: Chip, dtype: str, found: dict[str, Any]) -> dict[str, float]:
    """What arithmetic and memory take at their best."""
    return {
        "arithmetic": 1e3 * found["flops"] / chip.flops[dtype],
        "memory": 1e3 * found["bytes_accessed"] / chip.bandwidth,
    }


def reduce_milliseconds(chip: Chip, size: float, chips: int) -> float:
    """A ring all-reduce of `size` bytes; beyond the near chips over the slower network."""
    if chips == 1:
        return 0.0
    near = not chip.near or chips <= chip.near
    return 1e3 * 2 * (chips - 1) / chips * size / (chip.link if near else chip.far)


def page(counts: dict[str, Any]) -> str:
    """The Markdown page of the programs that were compiled."""
    head = (
        "| chip | dtype | GFLOP | GB touched | arithmetic ms | memory ms | bound by "
        "| examples/s at most | MB reduced | commit |"
    )
    scale_head = "| chip | dtype | " + " | ".join(f"{n} chips" for n in CHIPS) + " |"
    floors, scaling = [head, "|---" * 10 + "|"], [scale_head, "|---" * (2 + len(CHIPS)) + "|"]
    missing = []
    for name, chip in SHEETS.items():
        for dtype in chip.flops:
            found = counts.get(f"{chip.compiled_for}/{dtype}")
            if found is None:
                missing.append(f"{name} {dtype}")
                continue
            least = floor_milliseconds(chip, dtype, found)
            slowest = max(least.values())
            bound = max(least, key=lambda part: least[part])
            floors.append(
                f"| {name} | {dtype} | {found['flops'] / 1e9:,.0f} "
                f"| {found['bytes_accessed'] / 1e9:.2f} | {least['arithmetic']:.2f} "
                f"| {least['memory']:.2f} | {bound} | {1e3 * found['batch'] / slowest:,.0f} "
                f"| {found['bytes_reduced'] / 1e6:.1f} | {found['run']['commit']} |"
            )
            cells = []
            for chips in CHIPS:
                reduce = reduce_milliseconds(chip, found["bytes_reduced"], chips)
                cells.append(f"{100 * slowest / (slowest + reduce):.1f} % (+{reduce:.2f} ms)")
            scaling.append(f"| {name} | {dtype} | {' | '.join(cells)} |")
    return "\n".join([*introduction(counts, missing), *floors, *EXPLAINED, *scaling, ""])


def introduction(counts: dict[str, Any], missing: list[str]) -> list[str]:
    """What stands before the tables."""
    [batch] = {found["batch"] for found in counts.values()}
    versions = next(iter(counts.values()))["run"]["versions"]
    words = ", ".join(f"{name} {text}" for name, text in versions.items())
    return [
        "# The least time of a training step, on paper",
        "",
        "Generated from [limits.json](../../benchmarks/results/limits.json), do not edit: "
        "`python benchmarks/limits.py --table`. Nothing was run: the step was compiled for TPUs "
        "that are not there, XLA counted, and the rest is arithmetic with data sheets.",
        "",
        f"Two ResNet-18 with UDML at the published shapes, {batch} examples on each chip. {words}.",
        *(["", f"Not compiled: {', '.join(missing)}."] if missing else []),
        "",
    ]


EXPLAINED = [
    "",
    "XLA counts bytes as if every fused operation went through memory: the memory column is what "
    "the compiled program would take without on-chip reuse. It counts the body of a loop once, and "
    "noise is made in a loop over blocks of 8 rows, so the noise of the other blocks is missing. "
    "The H200 rows take the counts of v5p.",
    "",
    "## Weak scaling",
    "",
    "Share of a chip's time that is left for the step when all its gradients are reduced after it "
    "in a ring, without any overlap, and what the ring takes.",
    "",
]


def main(_: list[str]) -> None:
    """Compile and write, as the flags say."""
    logging.set_verbosity(logging.WARNING)
    for program in [] if TABLE.value else (PROGRAM.value or PROGRAMS):
        try:
            found = count(*PROGRAMS[program], BATCH.value)
        except FusionError as error:
            sys.exit(f"error: {error}")
        # Read again: another call may have written meanwhile.
        others = read_json(RESULT) if RESULT.exists() else {}
        same = {name: each for name, each in others.items() if each["batch"] == BATCH.value}
        write_json(RESULT, same | {program: found})
    PAGE.write_text(page(read_json(RESULT)))


if __name__ == "__main__":
    app.run(main)
