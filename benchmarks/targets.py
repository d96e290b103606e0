"""The targets of speed beside what was measured, from the files in benchmarks/results.

python benchmarks/targets.py

Prints the table and writes it to docs/results/speed.md, with the steps and the parts of a step in
full; `make bench` ends with it. What has no result file says "not measured"; docs/performance.md
explains what misses its target.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results" / "speed.md"
NOT_MEASURED = "not measured"
# Names in result files.
MATRIX = "matrix_product_flops_per_second"
NOISE = "numpy_over_ours, milliseconds"


class Target(NamedTuple):
    """A row: what is measured, its limit, and where the number stands.

    Attributes:
        what: in words.
        limit: the number to reach.
        least: whether it is the least allowed, or the most.
        form: of a number, as in `format`.
        file: in benchmarks/results.
        value: the number, from the file's content.
    """

    what: str
    limit: float
    least: bool
    form: str
    file: str
    value: Callable[[dict[str, Any]], float]


def step(dtype: str, form: str) -> Callable[[dict[str, Any]], float]:
    """PyTorch's time of a training step over ours."""
    return lambda found: found[dtype][form]["train"]["over_ours"]


UDML = "training step of UDML over two ResNet-18, {}: PyTorch's time over ours"
GRID = "grid of 1,023 cells: {} over ours"
TARGETS = [
    Target(
        UDML.format(f"{shape} shapes, CPU, eager"),
        1.0,
        True,
        ".2f",
        f"step_{shape}_cpu.json",
        step("float32", "eager"),
    )
    for shape in ("av_mnist", "published")
]
TARGETS += [
    Target(
        UDML.format(f"published shapes, GPU, {dtype}, {words}"),
        limit,
        True,
        ".2f",
        "step_published_gpu.json",
        step(dtype, form),
    )
    for dtype in ("float32", "bfloat16")
    for form, words, limit in (("eager", "eager", 1.5), ("compile", "torch.compile", 1.0))
]
TARGETS += [
    Target(
        "frequency ratio on a GPU: share of the bandwidth of a copy",
        0.7,
        True,
        ".0%",
        "frequency_ratio_gpu.json",
        lambda found: statistics.median(
            min(each["share_of_copy_bandwidth"].values()) for each in found["rounds"]
        ),
    ),
    Target(
        "MA-AFS over static fusion, ResNet-18 host, forward",
        0.05,
        False,
        "+.1%",
        "schedulers_cpu.json",
        lambda found: found["parts"]["MA-AFS, one view"]["forward_added_share"],
    ),
    Target(
        "UDML over static fusion, ResNet-18 host, forward",
        0.10,
        False,
        "+.1%",
        "schedulers_cpu.json",
        lambda found: found["parts"]["+ dependence"]["forward_added_share"],
    ),
    Target(
        "MWAM over no balancing, ResNet-18 host, training step",
        0.03,
        False,
        "+.1%",
        "balancers_cpu.json",
        lambda found: found["steps"]["64"]["added"]["MWAM robust"],
    ),
    Target(
        GRID.format("cell by cell"),
        10.0,
        True,
        ".1f",
        "grid_cpu.json",
        lambda found: found["times"]["cell by cell"],
    ),
    Target(
        GRID.format("PyTorch and NumPy"),
        20.0,
        True,
        ".1f",
        "grid_cpu.json",
        lambda found: found["times"]["PyTorch and NumPy"],
    ),
    Target(
        "input wait, av_mnist, of the training loop",
        0.05,
        False,
        ".1%",
        "loop_cpu.json",
        lambda found: found["loops"]["configs/av_mnist.py"]["input_share"],
    ),
    Target(
        "first training step with the compilation cache, av_mnist, seconds",
        15.0,
        False,
        ".1f",
        "start_cpu.json",
        lambda found: statistics.median(found["seconds"]["configs/av_mnist.py"]["warm"]),
    ),
]


def row(target: Target) -> str:
    """A row of the table."""
    limit = f"{'at least' if target.least else 'at most'} {target.limit:{target.form.lstrip('+')}}"
    path = RESULTS / target.file
    try:
        found = json.loads(path.read_text())
        value = target.value(found)
    # Without PyTorch a file has our own times alone.
    except (FileNotFoundError, KeyError):
        return f"| {target.what} | {limit} | {NOT_MEASURED} | | |"
    reached = value >= target.limit if target.least else value <= target.limit
    facts = found.get("run", found)
    where = f"[{target.file}](../../benchmarks/results/{target.file}): {facts['hardware']}"
    verdict = "reached" if reached else "**missed**"
    return f"| {target.what} | {limit} | {value:{target.form}} | {verdict} | {where} |"


def steps() -> list[str]:
    """What bench_step.py measured, in full."""
    rows = []
    for path in sorted(RESULTS.glob("step_*.json")):
        found = json.loads(path.read_text())
        for dtype in [name for name in ("float32", "bfloat16") if name in found]:
            for side, kinds in found[dtype].items():
                words = "fusion_jax" if side == "ours" else f"PyTorch, {side}"
                if not all(each.get("finite", True) for each in kinds.values()):
                    words += " (its results are NaN)"
                rows += [
                    f"| {found['shape']}, batch {found['batch']} | {dtype} | {words} | {kind} | "
                    f"{each['milliseconds']:.0f} | {each['over_ours']:.2f} | "
                    f"{each['first_step_seconds']:.1f} | {each['memory']['process']:.0f} | "
                    f"{found['run']['hardware']}, load {found['load_average'][0]:.1f} |"
                    for kind, each in kinds.items()
                ]
    head = [
        "",
        "## Steps in full",
        "",
        "Median milliseconds of a training step or a prediction; its median ratio to ours, by "
        "turns; seconds to the end of the first step, without the compilation cache; the most "
        "memory that the process held, compilation included.",
        "",
        "| shape | dtype | | | ms | over ours | first step, s | memory, MB | hardware |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return head + rows if rows else []


def parts() -> list[str]:
    """What bench_convolution.py measured."""
    path = RESULTS / "convolution_cpu.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return [
        "",
        "## Parts of a ResNet-18 step on CPU",
        "",
        f"Batch {found['batch']}, float32, medians in milliseconds, with gradients; theirs are "
        "XLA's and Flax's forms under the compiler's own options. "
        f"{found['run']['hardware']}, load {found['load_average'][0]:.1f}.",
        "",
        "| part | theirs | ours | theirs over ours |",
        "|---|---|---|---|",
        *(
            f"| {name} | {each['theirs']:.2f} | {each['ours']:.2f} | {each['ratio']:.1f} |"
            for name, each in found["milliseconds"].items()
        ),
    ]


def section(title: str, file: str, intro: list[str], lines: Callable[..., list[str]]) -> list[str]:
    """A section of the page from a result file; nothing where that is missing."""
    path = RESULTS / file
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    *words, columns = intro
    rule = "|---" * (columns.count("|") - 1) + "|"
    hardware = f"{found['run']['hardware']}."
    rows = lines(found)
    head = ["", f"## {title}", "", " ".join([*words, hardware]), "", columns, rule]
    return [*head, *rows] if rows else []


def seeds() -> list[str]:
    """What bench_seeds.py measured."""
    return section(
        "Several seeds",
        "seeds_cpu.json",
        [
            "Median milliseconds of a step of all seeds, and its median ratio to ours one after "
            "the other, by turns.",
            "| model | seeds | | ms | over ours, one after the other |",
        ],
        lambda found: [
            f"| {model} | {found['seeds']} | {side} | {each['milliseconds']:.1f} | "
            f"{each['over_one_after_the_other']:.2f} |"
            for model, sides in found["models"].items()
            for side, each in sides.items()
        ],
    )


def start() -> list[str]:
    """What bench_start.py measured."""
    return section(
        "Time to the first step",
        "start_cpu.json",
        [
            "Median seconds from the command to the end of the first training step.",
            "| configuration | cold | with the compilation cache |",
        ],
        lambda found: [
            f"| `{config}` | {statistics.median(taken['cold']):.1f} | "
            f"{statistics.median(taken['warm']):.1f} |"
            for config, taken in found["seconds"].items()
        ],
    )


def loop() -> list[str]:
    """What bench_loop.py measured."""
    return section(
        "The training loop",
        "loop_cpu.json",
        [
            "Every step waited for. Utilisation is of a float32 matrix product measured there and "
            "then.",
            "| configuration | steps a second | waiting for input | utilisation |",
        ],
        lambda found: [
            f"| `{config}` | {each['steps_per_second']:.1f} | {each['input_share']:.1%} | "
            f"{each['flops_per_second_per_device'] / each[MATRIX]['float32']:.0%} |"
            for config, each in found["loops"].items()
        ],
    )


def kernels() -> list[str]:
    """What bench_frequency_ratio.py and bench_noise.py measured."""

    def ratio(found: dict[str, Any], group: str, name: str) -> float:
        return statistics.median(each[group][name] for each in found["rounds"])

    return section(
        "The frequency ratio",
        "frequency_ratio_cpu.json",
        ["Median over the rounds.", "| form | PyTorch's time over ours |"],
        lambda found: [
            f"| {name} | {ratio(found, 'pytorch_over_ours', name):.0f} |"
            for name in found["rounds"][0].get("pytorch_over_ours", ())
        ],
    ) + section(
        "Noise on a batch",
        "noise_cpu.json",
        ["Median over the rounds.", "| against | its time over ours |"],
        lambda found: [
            f"| {name} | {ratio(found, NOISE, name):.1f} |" for name in found["rounds"][0][NOISE]
        ],
    )


def main() -> None:
    """Print the table of targets; write it with what stands behind it."""
    table = [
        "| what | target | measured | | result file and hardware |",
        "|---|---|---|---|---|",
        *map(row, TARGETS),
    ]
    text = [
        "# Targets of speed",
        "",
        "Generated from the files in `benchmarks/results`, do not edit: "
        "`python benchmarks/targets.py`. Each number is explained in "
        "[performance.md](../performance.md).",
        "",
        *table,
        *steps(),
        *seeds(),
        *start(),
        *loop(),
        *kernels(),
        *parts(),
        "",
    ]
    PAGE.write_text("\n".join(text))
    print("\n".join(table))


if __name__ == "__main__":
    main()
