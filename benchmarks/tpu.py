"""Compile the programs of a configuration for TPUs that are not there, and say what XLA made.

python benchmarks/tpu.py --config=configs/av_mnist.py --topologies=v5e:2x2,v5p:2x2x1
python benchmarks/tpu.py --table

The compiler comes with the package libtpu (`pip install -e ".[tpu]"`); no TPU and no network is
needed. Nothing is run, so there are no step times here: memory is what XLA has planned, FLOPs and
traffic are what it counts. The first command writes benchmarks/results/tpu_aot.json and the page
docs/results/tpu_aot.md, the second the page alone. `--strategies=jit,fsdp,pmap` names the layouts.
"""

import dataclasses
import functools
import os
import re
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Without these libtpu looks for the chips and the host list of a real slice, and one process at a
# time may load it. JAX itself stays on the CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.experimental import topologies
from ml_collections import config_flags

from fusion_jax.config import Config, read_json, write_json
from fusion_jax.errors import FusionError, first_line
from fusion_jax.evaluation.grid import TracedCondition, decide_program, encode_program
from fusion_jax.frequency import frequency_ratio
from fusion_jax.runs import batch_shapes, build_step, describe_run, state_shapes
from fusion_jax.sources import DataSpec
from fusion_jax.training.parallel import DataParallel, make_strategy
from fusion_jax.types import Batch

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "tpu_aot.json"
PAGE = ROOT / "docs" / "results" / "tpu_aot.md"
KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One communication in a compiled program.

    Attributes:
        kind: one of KINDS.
        bytes: of the whole arrays, after they are gathered or before they are scattered.
        shapes: of those arrays, as XLA writes them: "f32[64,10]".
        origin: the operation of the program that it comes from, "" where XLA names none.
    """

    kind: str
    bytes: int
    shapes: tuple[str, ...]
    origin: str


def tpu_devices(topology: str) -> list[Any]:
    """Devices of a topology ("v5e:2x2", "v5p:2x2x1") that can be compiled for but not used.

    Raises:
        FusionError: without libtpu, or for a topology that it does not know.
    """
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except RuntimeError as error:
        if "not installed" in str(error):
            raise FusionError('the TPU compiler is missing: pip install -e ".[tpu]"') from error
        raise FusionError(f"no TPU topology {topology!r}: {first_line(error)}") from error


def lower_training(config: Config, spec: DataSpec, strategy: DataParallel) -> Any:
    """The training step of `fusion_jax.training.loop`, lowered."""
    shapes = state_shapes(config, spec)
    batch = strategy.batch_template(batch_shapes(spec, size=config.batch_size))
    program = strategy.program(build_step(config), shapes)
    return strategy.on_mesh(program.lower)(strategy.template(shapes), batch)


def lower_evaluation(config: Config, spec: DataSpec, strategy: DataParallel) -> Any:
    """The program of one cell of the robustness grid, lowered."""
    state = strategy.template(state_shapes(config, spec))
    model, corruptions = config.model, config.evaluation_corruptions()
    encode = {
        name: encode_program(model, name, corruptions.get(name, ())) for name in model.modalities
    }
    decide = decide_program(model, config.task)

    def cell(variables: Any, batch: Batch, number: Any, severity: Any, keep: Any, key: Any) -> Any:
        encoded = {
            name: [encode[name](variables, batch, TracedCondition(number[m], severity[m]), key)]
            for m, name in enumerate(model.modalities)
        }
        return decide(variables, encoded, jnp.zeros((1, *keep.shape), int), keep[None], 1.0, batch)

    modalities = (len(model.modalities),)
    rows = batch_shapes(spec, size=config.eval_batch_size)
    arguments = (
        {"params": state.params, **state.collections},
        strategy.rows_template(dataclasses.replace(rows, donors=rows.inputs)),
        jax.ShapeDtypeStruct(modalities, "int32"),
        jax.ShapeDtypeStruct(modalities, "float32"),
        jax.ShapeDtypeStruct(modalities, "bool"),
        jax.eval_shape(functools.partial(jax.random.key, 0)),
    )
    return strategy.on_mesh(strategy.evaluation_program(cell).lower)(*arguments)


def lower_ratio(transform: str, config: Config, spec: DataSpec, strategy: DataParallel) -> Any:
    """The frequency ratio metric of 64 images of 224 x 224 x 3, lowered; whatever the model."""
    del config, spec
    images = strategy.rows_template(jax.ShapeDtypeStruct((64, 224, 224, 3), "float32"))
    metric = jax.jit(functools.partial(frequency_ratio, transform=transform))
    return strategy.on_mesh(metric.lower)(images)


# Everything that is compiled: program -> how it is lowered and the strategies that change it (the
# state lies the same way under pmap as under jit, so evaluation is the same program).
PROGRAMS = {
    "training step": (lower_training, ("jit", "fsdp", "pmap")),
    "evaluation step": (lower_evaluation, ("jit", "fsdp")),
    "frequency ratio, DCT": (functools.partial(lower_ratio, "dct"), ("jit",)),
    "frequency ratio, FFT": (functools.partial(lower_ratio, "fft"), ("jit",)),
}


def shape_bytes(shape: str) -> int:
    """Bytes of "f32[64,10]" without the padding of its tiles."""
    kind, _, sizes = shape.rstrip("]").partition("[")
    bits = re.search(r"\d+", kind)
    count = 1
    for size in filter(None, sizes.split(",")):
        count *= int(size)
    # A pred takes a byte.
    return count * (int(bits.group()) if bits else 8) // 8


def collectives(text: str, *, devices: int) -> list[Collective]:
    """The communication in a compiled program's text; what stands in a loop is counted once.

    XLA for TPU writes a reduce-scatter as a computation "all-reduce-scatter" of an all-reduce and a
    slice, and cuts an overlapped collective into a chain of equal pieces.
    """
    pattern = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
    found, seen, computation = [], set(), ""
    for line in text.splitlines():
        if not line.startswith(" "):
            computation = line
        match = pattern.search(line)
        if not match:
            continue
        piece = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', line)
        if piece:
            if piece.groups() in seen:
                continue
            seen.add(piece.groups())
        found.append(_collective(match, line, computation, devices))
    return found


def _collective(match: re.Match, line: str, computation: str, devices: int) -> Collective:
    """The collective that a line of a compiled program performs."""
    kind, shapes = match[2], re.findall(r"[a-z]+\d*\[[\d,]*\]", match[1])
    if match[3]:  # (operands, results): the whole arrays are the larger ones.
        shapes = [max(shapes, key=shape_bytes)]
    size = sum(map(shape_bytes, shapes))
    if kind == "reduce-scatter":
        size *= devices
    if kind == "all-reduce" and computation.startswith("%all-reduce-scatter"):
        kind = "reduce-scatter"
    origin = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, size, tuple(shapes), origin[1] if origin else "")


def aliased_arguments(text: str) -> int:
    """How many arguments of a compiled program give their memory to a result."""
    return len(re.findall(r"(?:may|must)-alias\)", text.partition("\n")[0]))


def describe(compiled: Any, *, devices: int) -> dict[str, Any]:
    """What XLA says of a compiled program, for one device."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    return {
        "bytes": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "aliased_arguments": aliased_arguments(text),
        "collectives": [dataclasses.asdict(item) for item in collectives(text, devices=devices)],
    }


def compile_all(
    config: Config, spec: DataSpec, *, names: Sequence[str], strategies: Sequence[str]
) -> list[dict[str, Any]]:
    """Compile every program for every topology and strategy; a record of each."""
    records = []
    for topology in names:
        devices = tpu_devices(topology)
        for program, (lower, differing) in PROGRAMS.items():
            for strategy in (name for name in strategies if name in differing):
                parallel = dataclasses.replace(config.parallel, strategy=strategy)
                lowered = lower(config, spec, make_strategy(parallel, devices))
                start = time.perf_counter()
                compiled = lowered.compile()
                seconds = time.perf_counter() - start
                print(f"{topology} {program} {strategy}: compiled in {seconds:.0f} s", flush=True)
                records.append(
                    {
                        "topology": topology,
                        "devices": len(devices),
                        "hosts": len({device.process_index for device in devices}),
                        "chip": devices[0].device_kind,
                        "program": program,
                        "strategy": strategy,
                        "compile_seconds": round(seconds, 1),
                        **describe(compiled, devices=len(devices)),
                    }
                )
    return records


def page(result: dict[str, Any]) -> str:
    """The Markdown page of a result."""
    run = result["run"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return "\n".join(
        [
            "# Compiled for TPU, ahead of time",
            "",
            "Generated from [tpu_aot.json](../../benchmarks/results/tpu_aot.json), do not edit: "
            "`python benchmarks/tpu.py --table`.",
            "",
            "No TPU was used: XLA planned the memory and counted the costs; only the compiler was "
            "timed. All numbers are for one chip and one step. XLA counts the body of a loop once, "
            "and noise is made in a loop over blocks of 8 rows: FLOP and bytes accessed are too "
            "low by the other blocks.",
            "",
            f"Made with `python benchmarks/{run['command']}` at commit {run['commit']} on "
            f"{run['hardware']}: {result['batch_size']} examples in a training batch and "
            f"{result['eval_batch_size']} in an evaluation batch, over all chips.",
            "",
            "Kilobytes of 1000 bytes, with the padding of tiles. Aliased: results that take the "
            "memory of arguments (the donated state).",
            "",
            *_memory_rows(result["programs"]),
            "",
            "Communication: number of collectives, and in kilobytes the sum of their arrays, whole "
            "(after gathering, before scattering), and the largest collective. One that stands in "
            "a loop is counted once.",
            "",
            *_collective_rows(result["programs"]),
            "",
            f"Versions: {versions}.",
            "",
        ]
    )


def _label(record: dict[str, Any]) -> str:
    """First columns of both tables."""
    place = f"{record['topology']} ({record['devices']})"
    return f"| {place} | {record['program']} | {record['strategy']} |"


def _memory_rows(records: list[dict[str, Any]]) -> list[str]:
    """Memory, cost and compile time."""
    rows = [
        "| topology (chips) | program | strategy | arguments | results | aliased | temporaries "
        "| code | MFLOP | MB accessed | s to compile |",
        "|---|---|---|" + "---:|" * 8,
    ]
    for record in records:
        sizes = " | ".join(f"{size / 1e3:,.0f}" for size in record["bytes"].values())
        rows.append(
            f"{_label(record)} {sizes} | {record['flops'] / 1e6:,.0f} "
            f"| {record['bytes_accessed'] / 1e6:,.1f} | {record['compile_seconds']:.0f} |"
        )
    return rows


def _collective_rows(records: list[dict[str, Any]]) -> list[str]:
    """Number, bytes and largest of each kind of collective."""
    rows = [
        f"| topology (chips) | program | strategy | {' | '.join(KINDS)} |",
        "|---" * (3 + len(KINDS)) + "|",
    ]
    for record in records:
        cells = []
        for kind in KINDS:
            sizes = [item["bytes"] for item in record["collectives"] if item["kind"] == kind]
            text = (
                f"{len(sizes)}: {sum(sizes) / 1e3:,.1f}, at most {max(sizes, default=0) / 1e3:,.1f}"
            )
            cells.append(text if sizes else "")
        rows.append(f"{_label(record)} {' | '.join(cells)} |")
    return rows


def main(_: list[str]) -> None:
    """Compile and write, as the flags say."""
    given = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    if not given.table:
        config = given.config
        spec = config.data.source("train").spec
        try:
            programs = compile_all(
                config, spec, names=given.topologies, strategies=given.strategies
            )
        except FusionError as error:
            sys.exit(f"error: {error}")
        run = describe_run(config, spec)
        run["versions"]["libtpu"] = metadata.version("libtpu")
        sizes = {"batch_size": config.batch_size, "eval_batch_size": config.eval_batch_size}
        RESULT.parent.mkdir(exist_ok=True)
        write_json(RESULT, {"run": run, **sizes, "programs": programs})
    PAGE.write_text(page(read_json(RESULT)))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "av_mnist.py"))
    flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1"], "names of TPU topologies")
    flags.DEFINE_list("strategies", ["jit", "fsdp", "pmap"], "layouts over the chips")
    flags.DEFINE_bool("table", False, "write the page from the result file, compile nothing")
    app.run(main)
