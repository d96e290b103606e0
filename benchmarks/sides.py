"""Programs in processes of their own, PyTorch's among them, that are timed by turns."""

import json
import os
import re
import subprocess
import sys
import time
from typing import Any

from absl import app
from published import ROOT

# A library's threads spin for a moment after their work, on the cores that the other one needs.
PAUSE_SECONDS = 0.2


class Side:
    """A process that runs blocks of steps when it is told to, and sleeps otherwise."""

    def __init__(self, command: list[str], **environment: str):
        """Start it."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(answer)

    def milliseconds(self, kind: str, steps: int) -> float:
        """Of a step, in a block of them."""
        time.sleep(PAUSE_SECONDS)
        return 1e3 * self.ask(do=kind, calls=steps)["seconds"] / steps

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def torch_program(interpreter: str | None, file: str, platform: str) -> list[str]:
    """The command of a PyTorch program in this folder, without what is its own."""
    device = {"cpu": "cpu", "gpu": "cuda"}[platform]
    threads = len(os.sched_getaffinity(0))
    program = [interpreter or sys.executable, str(ROOT / "benchmarks" / file)]
    return [*program, f"--device={device}", f"--threads={threads}"]


def has_torch(interpreter: str | None) -> bool:
    """Whether the interpreter (None: this one) has PyTorch; where it has not, says what to do."""
    command = [interpreter or sys.executable, "-c", "import torch, scipy"]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0:
        return True
    if interpreter:
        raise app.UsageError(f"{interpreter} has no PyTorch: install torch, numpy and scipy there")
    print(
        'no PyTorch to compare with: pip install -e ".[parity]", or give --torch=PYTHON; ours is '
        "timed alone",
        file=sys.stderr,
    )
    return False


def without_path(command: str) -> str:
    """A command for a result file: where PyTorch lies is of no use to others."""
    return re.sub(r"--torch=\S+", "--torch=PYTHON", command)
