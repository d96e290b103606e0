"""Time from the command to the end of the first training step, cold and with the compilation cache.

python benchmarks/bench_start.py [--config=configs/av_mnist.py] [--repeats=3] [--out=FOLDER]

`train.py` is started as a user starts it, with a line of log for every step; taken is the time from
the start of the process to the line of the first step. Cold has an empty compilation cache, warm
the one that the cold start filled. Data are prepared before anything is timed. Printed are medians
in seconds; the target for a warm start is 15 seconds. A folder in `--out` receives
start_<platform>.json.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags

from fusion_jax.config import write_json
from fusion_jax.runs import describe_machine

CONFIGS = flags.DEFINE_multi_string(
    "config", ["configs/av_mnist.py", "configs/av_mnist.py:resnet18"], "config files to start"
)
REPEATS = flags.DEFINE_integer("repeats", 3, "cold and warm starts of each", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")

ROOT = Path(__file__).resolve().parent.parent
FIRST_STEP = re.compile(r"step 1/\d+ ")
TARGET_SECONDS = 15.0


def first_step_seconds(config: str, cache: str, workdir: str) -> float:
    """Seconds from the start of train.py to the log line of its first step; it is stopped then."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT / config}",
        f"--workdir={workdir}",
        "--config.log_every=1",
        f"--config.compilation_cache={cache}",
    ]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr
        said = []
        for line in process.stderr:
            said.append(line)
            if FIRST_STEP.search(line):
                taken = time.perf_counter() - start
                process.kill()
                return taken
    sys.exit(f"error: {config} came to no step:\n{''.join(said[-3:])}")


def starts(config: str) -> dict[str, list[float]]:
    """Seconds of cold and warm starts."""
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        first_step_seconds(config, f"{folder}/prepare", f"{folder}/prepare_run")
        for number in range(REPEATS.value):
            for kind in found:
                taken = first_step_seconds(
                    config, f"{folder}/cache_{number}", f"{folder}/{kind}_{number}"
                )
                found[kind].append(taken)
    return found


def main(_: list[str]) -> None:
    """Measure and print, as the flags say."""
    result = {}
    for config in CONFIGS.value:
        result[config] = starts(config)
        medians = {kind: statistics.median(taken) for kind, taken in result[config].items()}
        print(
            f"{config}: first step after {medians['cold']:.1f} s cold, {medians['warm']:.1f} s "
            f"with the compilation cache (target: {TARGET_SECONDS:g} s)",
            flush=True,
        )
    if OUT.value:
        path = Path(OUT.value) / f"start_{jax.default_backend()}.json"
        write_json(path, {"run": describe_machine(), "seconds": result, "target": TARGET_SECONDS})


if __name__ == "__main__":
    app.run(main)
