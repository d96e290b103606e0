"""Where the time of a training run goes: a trace to look at, and a breakdown to read."""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.config import write_json
from fusion_jax.errors import writing

# Steps of a process that are traced: after what the first ones compile and fill.
TRACED = range(10, 20)
MATRIX_SIDE = {"cpu": 2048}
LARGE_SIDE = 8192


class Watch:
    """Takes the time of the parts of a training loop; this one takes none.

    Parts: "input" (waiting for a batch on the devices), "step", "evaluation", "checkpoint".
    """

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside to a part."""
        del name
        yield

    def settle(self, values: Any) -> None:
        """Wait until values are computed, so that their time counts where it belongs."""
        del values

    def finish(self, flops: Callable[[], float]) -> None:
        """End the account; `flops` gives the floating-point operations of a step."""
        del flops


class Profiler(Watch):
    """Takes times, and writes a trace of a few steps.

    Every step is waited for, so a step takes as long as the device needs and what overlaps is
    not counted twice; reading ahead goes on meanwhile.

    Attributes:
        folder: of the trace and of breakdown.json.
    """

    def __init__(self, folder: Path, *, lead: bool = True):
        """Begin to take time; only a leading process writes and says what it found."""
        self.folder, self._lead = folder, lead
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._steps: list[float] = []
        self._tracing = False

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside to a part."""
        if name == "step":
            self._trace(len(self._steps))
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation(name):
            yield
        taken = time.perf_counter() - start
        if name == "step":
            self._steps.append(taken)
            # The first one compiles.
            name = "first step" if len(self._steps) == 1 else "step"
        self._seconds[name] = self._seconds.get(name, 0.0) + taken

    def settle(self, values: Any) -> None:
        """Wait until values are computed."""
        jax.block_until_ready(values)

    def _trace(self, number: int) -> None:
        """Start or stop the trace before a step."""
        if not self._lead:
            return
        if number == TRACED.start:
            with writing(f"cannot write {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self._tracing = True
        elif number == TRACED.stop:
            self._stop_trace()

    def _stop_trace(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False

    def finish(self, flops: Callable[[], float]) -> None:
        """Write breakdown.json and print it; nothing where there was no step.

        Args:
            flops: gives the floating-point operations of one step, over all devices.
        """
        self._stop_trace()
        total = time.perf_counter() - self._start
        if not self._lead or not self._steps:
            return
        found = self._account(total, flops())
        with writing(f"cannot write {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "breakdown.json", found)
        print("\n".join(describe(found, self.folder)), file=sys.stderr, flush=True)

    def _account(self, total: float, flops: float) -> dict[str, Any]:
        """Seconds by part, the median step, and what it computes a second on a device."""
        parts = self._seconds | {"other": total - sum(self._seconds.values())}
        later = self._steps[1:] or self._steps
        step = statistics.median(later)
        rate = flops / step / jax.device_count()
        return {
            "steps": len(self._steps),
            "seconds": total,
            "parts": parts,
            "step_milliseconds": 1e3 * step,
            "flops_per_step": flops,
            "flops_per_second_per_device": rate,
            "matrix_product_flops_per_second": {
                dtype: matrix_product_rate(dtype) for dtype in ("float32", "bfloat16")
            },
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        }


def matrix_product_rate(dtype: str, *, repeats: int = 5) -> float:
    """Floating-point operations a second of a large square matrix product on one device.

    The best of a few, in the platform's default precision for the type: what a model could reach if
    it were nothing else.
    """
    device = jax.local_devices()[0]
    side = MATRIX_SIDE.get(device.platform, LARGE_SIDE)
    x = jax.device_put(jnp.ones((side, side), dtype), device)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def describe(found: dict[str, Any], folder: Path) -> list[str]:
    """The breakdown in lines for a terminal."""
    lines = [f"profile of {found['steps']} steps, {found['seconds']:.1f} s:"]
    for name, seconds in sorted(found["parts"].items(), key=lambda item: -item[1]):
        share = 100 * seconds / found["seconds"]
        lines.append(f"  {name:<12} {seconds:9.2f} s  {share:5.1f} %")
    rate = found["flops_per_second_per_device"]
    shares = ", ".join(
        f"{100 * rate / most:.0f} % of a {dtype} matrix product ({most / 1e9:,.0f} GFLOP/s)"
        for dtype, most in found["matrix_product_flops_per_second"].items()
    )
    lines.append(
        f"  a step: median {found['step_milliseconds']:.1f} ms, "
        f"{found['flops_per_step'] / 1e9:,.2f} GFLOP by XLA's count: {rate / 1e9:,.0f} GFLOP/s on "
        f"each {found['device']}; model FLOPs utilisation: {shares}"
    )
    lines.append(
        f"  trace: {folder} (TensorBoard's profile plugin; or open its perfetto_trace.json.gz in "
        "ui.perfetto.dev)"
    )
    return lines
