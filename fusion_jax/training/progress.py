"""What a run tells while it goes: JSON lines, TensorBoard events, a progress bar or plain lines."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array
from tensorboardX import SummaryWriter
from tqdm import tqdm


class RunLog:
    """The log of one run (one seed).

    `metrics.jsonl` holds one object per line with "step" and plain numbers. On resume the lines
    after the restored step are cut, so the file is what an uninterrupted run would have written.
    """

    def __init__(
        self, folder: Path, *, first_step: int, num_steps: int, batch_size: int, title: str
    ):
        """Open the log at the step that a run starts from."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        _cut_after(self.path, first_step)
        self._file = self.path.open("a")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._title, self._num_steps, self._batch_size = title, num_steps, batch_size
        self._first, self._step, self._start = first_step, first_step, time.monotonic()
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc=title,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def advance(self) -> None:
        """Count one finished step."""
        self._step += 1
        self._bar.update()

    def rate(self) -> float:
        """Examples per second in this process so far, compilation and validation included."""
        done = (self._step - self._first) * self._batch_size
        return done / max(time.monotonic() - self._start, 1e-9)

    def write(self, step: int, metrics: Mapping[str, float], *, say: Sequence[str]) -> None:
        """Write metrics of a step; those named in `say` are shown too."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        shown = {name: f"{metrics[name]:.4g}" for name in say if name in metrics}
        if not self._bar.disable:
            self._bar.set_postfix(shown | {"examples/s": f"{self.rate():.0f}"})
            return
        seconds = (self._num_steps - step) * self._batch_size / max(self.rate(), 1e-9)
        words = "  ".join(f"{name} {value}" for name, value in shown.items())
        left = f"{self.rate():.0f} examples/s  {tqdm.format_interval(seconds)} left"
        print(
            f"{self._title}  step {step}/{self._num_steps}  {words}  {left}",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Flush and close."""
        self._bar.close()
        self._file.close()
        self._events.close()


def flatten_metrics(
    metrics: Mapping[str, Array | np.ndarray], modalities: Sequence[str]
) -> dict[str, float]:
    """Plain numbers from step metrics; a vector [M] becomes entries "name/modality"."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        values = np.asarray(value)
        if values.ndim == 0:
            flat[name] = float(values)
        else:
            flat |= {f"{name}/{m}": float(v) for m, v in zip(modalities, values, strict=True)}
    return flat


def _cut_after(path: Path, step: int) -> None:
    """Keep only whole lines of a log up to a step."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # the line that a kill cut short
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
