"""Where the time of the real training loop goes: steps a second, and the share spent on input.

python benchmarks/bench_loop.py [--config=configs/av_mnist.py] [--steps=300] [--out=FOLDER]

`train.py --profile` trains into a folder that is removed, and its breakdown is read. The input's
share is that of waiting for a batch on the device, of all time in the loop after the first step
without evaluation and checkpoints; the target is 5 %. A folder in `--out` receives
loop_<platform>.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from fusion_jax.config import write_json
from fusion_jax.runs import describe_machine

CONFIGS = flags.DEFINE_multi_string(
    "config", ["configs/av_mnist.py", "configs/av_mnist.py:resnet18"], "config files to train"
)
STEPS = flags.DEFINE_integer("steps", 300, "training steps", lower_bound=20)
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")

ROOT = Path(__file__).resolve().parent.parent
TARGET_SHARE = 0.05


def breakdown(config: str) -> dict[str, Any]:
    """What a profiled run of a config says of its time."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            f"--config={ROOT / config}",
            f"--workdir={folder}/run",
            f"--config.num_steps={STEPS.value}",
            f"--config.eval_every={STEPS.value}",
            "--profile",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            sys.exit(f"error: {config}: {done.stderr.strip().splitlines()[-1]}")
        path = Path(folder) / "run" / "seed_0" / "profile" / "breakdown.json"
        return dict(json.loads(path.read_text()))


def main(_: list[str]) -> None:
    """Measure and print, as the flags say."""
    result = {}
    for config in CONFIGS.value:
        found = breakdown(config)
        loop = found["parts"]["input"] + found["parts"]["step"]
        found["input_share"] = found["parts"]["input"] / loop
        found["steps_per_second"] = (found["steps"] - 1) / loop
        result[config] = found
        print(
            f"{config}: {found['steps_per_second']:.2f} steps a second, input "
            f"{100 * found['input_share']:.1f} % of the loop (target: {100 * TARGET_SHARE:g} %)",
            flush=True,
        )
    if OUT.value:
        path = Path(OUT.value) / f"loop_{jax.default_backend()}.json"
        write_json(path, {"run": describe_machine(), "loops": result, "target": TARGET_SHARE})


if __name__ == "__main__":
    app.run(main)
