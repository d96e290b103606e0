"""Time the frequency ratio metric against a block DCT in PyTorch on the same cores.

python benchmarks/bench_frequency_ratio.py [--repeats=15] [--rounds=3] [--out=benchmarks/results]

The metric of 64 x 224 x 224 x 3 float32 images, modes "robust" and "official". The PyTorch side is
written for this purpose: 8x8 blocks, `torch_dct.dct_2d`, their corners, the same two formulas; it
gets channels first, its own order. It needs the extra "parity"; without it ours is timed alone.
Before anything is timed both sides must agree. Then they run by turns on the CPU, and printed are
medians in milliseconds and PyTorch / ours.

On a GPU or TPU (JAX's default backend, or `--device=gpu`) ours is timed alone: printed is also the
share of the bandwidth of a large copy that it reaches, counting the bytes of its input once. A
folder in `--out` receives frequency_ratio_<platform>.json.
"""

import functools
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from fusion_jax.config import write_json
from fusion_jax.frequency import AMPLITUDE_FLOOR, OFFICIAL_EPSILON, frequency_ratio
from fusion_jax.runs import describe_machine

try:
    import torch
    import torch_dct
except ImportError:
    torch = None

REPEATS = flags.DEFINE_integer("repeats", 15, "timed calls of each form in a round", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "times that everything is measured", lower_bound=1)
DEVICE = flags.DEFINE_string("device", None, "JAX platform: cpu, gpu, tpu (default: JAX's choice)")
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")

SHAPE = (64, 224, 224, 3)
MODES = ("robust", "official")
# A library's threads spin for a moment after their work, on the cores that the other one needs.
PAUSE_SECONDS = 0.05
# Calls in flight on an accelerator: the time to start one is no part of its own.
CALLS_IN_FLIGHT = 50
COPY_BYTES = 2**30


def torch_ratio(x: Any, mode: str) -> Any:
    """The metric of a tensor [B, C, H, W], by PyTorch."""
    rows, channels, height, width = x.shape
    cut = x.reshape(rows, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = torch_dct.dct_2d(cut, norm="ortho")
    low, high = coefficients[..., :2, :2], coefficients[..., 6:, 6:]
    if mode == "official":
        return (low / (high.flip((4, 5)) + OFFICIAL_EPSILON)).abs().sum((1, 2, 3, 4, 5))
    low, high = (band.abs().mean((2, 3, 4, 5)) for band in (low, high))
    return (low / (high + AMPLITUDE_FLOOR)).mean(1)


def check_agreement(images: np.ndarray) -> None:
    """Compare both sides in float64, and the robust mode in float32.

    Raises:
        AssertionError: where they differ.
    """
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for mode in MODES:
        with jax.enable_x64():
            ours = np.asarray(frequency_ratio(images.astype(np.float64), mode=mode))
        theirs = torch_ratio(channels_first.double(), mode).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, err_msg=mode)
    # Not the official mode: in float32 it is rounding where a high coefficient is near -1e-6.
    ours, theirs = np.asarray(frequency_ratio(images)), torch_ratio(channels_first, "robust")
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def median_times(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each form, called by turns after one warm-up call."""
    for form in forms.values():
        form()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            form()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def jax_form(function: Callable, x: jax.Array, calls: int = 1) -> Callable[[], object]:
    """A call that starts a compiled program so many times, then waits for all results."""
    program = jax.jit(function)
    return lambda: jax.block_until_ready([program(x) for _ in range(calls)])


def measure_cpu(images: np.ndarray, repeats: int) -> dict[str, Any]:
    """Medians of both sides, or of ours where there is no PyTorch."""
    x = jnp.asarray(images)
    forms = {
        f"{mode}, ours": jax_form(functools.partial(frequency_ratio, mode=mode), x)
        for mode in MODES
    }
    if torch is None:
        return {"milliseconds": median_times(forms, repeats)}
    check_agreement(images[:4])
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for mode in MODES:
        forms[f"{mode}, PyTorch"] = functools.partial(torch_ratio, tensor, mode)
    with torch.inference_mode():
        found = median_times(forms, repeats)
    ratios = {mode: found[f"{mode}, PyTorch"] / found[f"{mode}, ours"] for mode in MODES}
    return {"milliseconds": found, "pytorch_over_ours": ratios}


def measure_accelerator(images: np.ndarray, repeats: int) -> dict[str, Any]:
    """Medians of ours, the bandwidth of a copy (read and write) and the share that ours reaches."""
    x = jnp.asarray(images)
    forms = {
        f"{mode}, ours": jax_form(
            functools.partial(frequency_ratio, mode=mode), x, calls=CALLS_IN_FLIGHT
        )
        for mode in MODES
    }
    ours = {name: value / CALLS_IN_FLIGHT for name, value in median_times(forms, repeats).items()}
    large = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    copy = median_times({"copy": jax_form(lambda y: y + 1, large)}, repeats)
    bandwidth = 2 * large.nbytes / (1e6 * copy["copy"])
    shares = {mode: x.nbytes / (1e6 * ours[f"{mode}, ours"]) / bandwidth for mode in MODES}
    return {
        "milliseconds": ours,
        "copy_gigabytes_per_second": bandwidth,
        "share_of_copy_bandwidth": shares,
    }


def _rounded(value: Any) -> Any:
    """A tree of numbers to three decimals."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3)


def processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def main(_: list[str]) -> None:
    """Check, measure, print and write, as the flags say."""
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
    if DEVICE.value:
        jax.config.update("jax_default_device", jax.devices(DEVICE.value)[0])
    device = next(iter(jnp.zeros(1).devices()))
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    run = describe_machine()
    if torch is None:
        print('no PyTorch to compare with: pip install -e ".[parity]"', file=sys.stderr)
    else:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        run["torch_threads"] = torch.get_num_threads()
        run["versions"] |= {name: metadata.version(name) for name in ("torch", "torch-dct")}
    measure = measure_cpu if device.platform == "cpu" else measure_accelerator
    rounds = []
    for _ in range(ROUNDS.value):
        load = round(os.getloadavg()[0], 2)
        found = {"load_average": load, **measure(images, REPEATS.value)}
        rounds.append(found)
        print(f"load average over a minute before: {load}")
        for name, value in found["milliseconds"].items():
            print(f"{name:>20} {value:10.2f} ms")
        for mode, value in found.get("pytorch_over_ours", {}).items():
            print(f"{mode:>20} {value:10.1f} PyTorch / ours")
        for mode, value in found.get("share_of_copy_bandwidth", {}).items():
            print(f"{mode:>20} {value:10.1%} of a copy's bandwidth", flush=True)
    if OUT.value:
        path = Path(OUT.value) / f"frequency_ratio_{device.platform}.json"
        machine = {"processor": processor(), "device": device.device_kind}
        shape = {"shape": list(SHAPE), "dtype": "float32", "repeats": REPEATS.value}
        write_json(path, {"run": run, **machine, **shape, "rounds": _rounded(rounds)})


if __name__ == "__main__":
    app.run(main)
