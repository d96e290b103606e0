"""What a run tells while it goes: JSON lines, TensorBoard events, a progress bar or plain lines."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import Summary
from tqdm import tqdm

from fusion_jax.errors import writing

SECONDS_BETWEEN_LINES = 10.0


class RunLog:
    """The log of one run (one seed).

    `metrics.jsonl` holds one object per line with "step" and plain numbers. On resume the lines
    after the restored step are cut, so after a kill the file becomes what an uninterrupted run
    would have written. A stop by SIGTERM adds a line at its step, which takes the steps before it
    out of the mean of the next line. Every line is on disk when `write` returns, and so are its
    TensorBoard events.
    """

    def __init__(
        self, folder: Path | None, *, first_step: int, num_steps: int, batch_size: int, title: str
    ):
        """Open the log at the step that a run starts from; without a folder it stays silent."""
        self._folder = folder
        if folder is not None:
            with writing(f"cannot write the log in {folder}"):
                self._open(folder, first_step)
        self._title, self._num_steps, self._batch_size = title, num_steps, batch_size
        self._first, self._step, self._start = first_step, first_step, time.monotonic()
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc=title,
            unit="step",
            dynamic_ncols=True,
            disable=folder is None or not sys.stderr.isatty(),
        )

    def _open(self, folder: Path, first_step: int) -> None:
        """Cut the files of an earlier process at the step, and open them."""
        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        _cut_after(self.path, first_step)
        # Not SummaryWriter: it writes from a thread, which dies in silence on a full disk and then
        # blocks the run, and a kill takes what it wrote in the last two minutes.
        self._events = EventsWriter(str(folder / "tensorboard" / "events"))
        # Hides what an earlier process wrote after the restored step.
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=first_step + 1, session_log=start))

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
        if self._folder is None:
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        event = Event(step=step, wall_time=time.time(), summary=Summary(value=values))
        with writing(f"cannot write the log in {self.path.parent}"):
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._events.write_event(event)
            self._events.flush()
        shown = {name: f"{metrics[name]:.4g}" for name in say if name in metrics}
        if not self._bar.disable:
            self._bar.set_postfix(shown | {"examples/s": f"{self.rate():.0f}"})
            return
        seconds = (self._num_steps - step) * self._batch_size / max(self.rate(), 1e-9)
        words = "  ".join(f"{name} {value}" for name, value in shown.items())
        left = f"{self.rate():.0f} examples/s  {tqdm.format_interval(seconds)} left"
        self.say(step, f"{words}  {left}")

    def say(self, step: int, words: str) -> None:
        """Show a line, above the bar where there is one."""
        if self._folder is None:
            return
        line = f"{self._title}  step {step}/{self._num_steps}  {words}"
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Close; what was written is on disk already."""
        self._bar.close()
        if self._folder is None:
            return
        with writing(f"cannot write the log in {self.path.parent}"):
            self._events.close()


class ExampleCount:
    """How many examples are done and how long the rest will take: a bar, or a line now and then."""

    def __init__(self, title: str, *, total: int, done: int = 0, silent: bool = False):
        """Begin with `done` of `total` examples, done by an earlier process."""
        self._title, self._silent, self._last = title, silent, time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="example",
            dynamic_ncols=True,
            disable=silent or not sys.stderr.isatty(),
        )
        self._done, self._first, self._total, self._start = done, done, total, self._last

    def advance(self, examples: int) -> None:
        """Count finished examples."""
        self._done += examples
        self._bar.update(examples)
        now = time.monotonic()
        if self._silent or not self._bar.disable or now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = (self._done - self._first) / (now - self._start)
        left = tqdm.format_interval((self._total - self._done) / rate)
        line = f"{self._title}  {self._done}/{self._total} examples  {left} left"
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close."""
        self._bar.close()


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
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # the line that a kill cut short, or damage
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
