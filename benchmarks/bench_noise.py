"""Time noise on a batch of images and spectrograms against a loop over its examples in NumPy.

python benchmarks/bench_noise.py [--repeats=15] [--rounds=3] [--cores=0] [--out=benchmarks/results]

Gaussian noise on 64 images (224 x 224 x 3, 8 bits) and 64 spectrograms (257 x 188, float32), drawn
for each example by its id: ours is one compiled `corrupt_batch` for both. NumPy's side goes through
the examples one by one, as a data set does: noise of the same standard deviation, rounded and
saturated in images, each example with a generator of its own. It is timed as it is mostly written
(float64), with the float32 draws that are quickest there, and these on a thread for each core.
Before anything is timed both sides must agree on the noise's standard deviation. Then they run by
turns on the same cores, and printed are medians in milliseconds and NumPy / ours, by the clock and
in work (processor time over all threads, which other work on the machine does not lengthen). Ours
uses all cores; `--cores=1` leaves one to everything.

A folder in `--out` receives noise_<platform>.json, with `--cores` noise_<platform>_<N>_core.json.
"""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from fusion_jax.config import write_json
from fusion_jax.corruptions.batch import corrupt_batch
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.rng import example_keys, stream
from fusion_jax.runs import describe_machine

REPEATS = flags.DEFINE_integer("repeats", 15, "timed calls of each form in a round", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "times that everything is measured", lower_bound=1)
CORES = flags.DEFINE_integer("cores", 0, "cores that may be used; 0 for all", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")

ROWS = 64
SHAPES = {"image": ((224, 224, 3), "uint8"), "spectrogram": ((257, 188), "float32")}
NOISE = {"image": GaussianNoise(deviation=64.0), "spectrogram": GaussianNoise(deviation=1.0)}
SEVERITY = 0.05
# A library's threads spin for a moment after their work, on the cores that the other one needs.
PAUSE_SECONDS = 0.05

Arrays = dict[str, np.ndarray]
Times = dict[str, float]


def make_inputs() -> Arrays:
    """Images of all grey levels and standardised spectrograms."""
    generator = np.random.default_rng(0)
    shape, dtype = SHAPES["image"]
    images = generator.integers(0, 256, (ROWS, *shape), dtype)
    shape, dtype = SHAPES["spectrogram"]
    return {"image": images, "spectrogram": generator.standard_normal((ROWS, *shape), dtype)}


def ours(inputs: Any, ids: Any, severity: Any) -> Any:
    """Both modalities with noise, keyed by example id."""
    root = jax.random.key(0)
    return {
        name: corrupt_batch(
            NOISE[name], x, keys=example_keys(stream(root, name), ids), severity=severity
        )
        for name, x in inputs.items()
    }


def one_example(x: np.ndarray, sigma: float, seed: tuple[int, int], dtype: str) -> np.ndarray:
    """One example with noise, by NumPy."""
    generator = np.random.default_rng(seed)
    if dtype == "float64":
        noisy = x + generator.normal(0, sigma, x.shape)
    else:
        noisy = x + np.float32(sigma) * generator.standard_normal(x.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(x.dtype) if x.dtype == np.uint8 else noisy


def numpy_loop(inputs: Arrays, dtype: str, pool: ThreadPoolExecutor | None = None) -> Arrays:
    """Both modalities with noise, example by example, on the threads of a pool if there is one."""
    noisy = {name: np.empty_like(x) for name, x in inputs.items()}
    sigmas = {
        name: float(NOISE[name].strength(SEVERITY)) * NOISE[name].deviation for name in inputs
    }

    def one_pair(i: int) -> None:
        for number, name in enumerate(inputs):
            noisy[name][i] = one_example(inputs[name][i], sigmas[name], (number, i), dtype)

    list((pool.map if pool else map)(one_pair, range(ROWS)))
    return noisy


def check_agreement(inputs: Arrays, found: Any) -> None:
    """Compare the standard deviation of the noise of both sides.

    Raises:
        AssertionError: where they differ.
    """
    for dtype in ("float64", "float32"):
        expected = numpy_loop(inputs, dtype)
        for name, x in inputs.items():
            spreads = [np.std(np.asarray(y[name]) - x.astype(float)) for y in (found, expected)]
            np.testing.assert_allclose(*spreads, rtol=2e-3, err_msg=name)
            assert found[name].dtype == x.dtype


def median_times(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Median milliseconds of each form, called by turns after one warm-up call.

    By the clock, and of the processor over all threads: other work on the machine lengthens only
    the first.
    """
    for form in forms.values():
        form()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter(), time.process_time()
            form()
            end = time.perf_counter(), time.process_time()
            found[name].append((1e3 * (end[0] - start[0]), 1e3 * (end[1] - start[1])))
    kinds = ("milliseconds", "processor_milliseconds")
    return {
        kind: {name: round(statistics.median(t[i] for t in found[name]), 3) for name in forms}
        for i, kind in enumerate(kinds)
    }


def over_ours(times: Times) -> Times:
    """Each time over ours."""
    return {
        name: round(value / times["ours"], 3) for name, value in times.items() if name != "ours"
    }


def make_forms(inputs: Arrays, pool: ThreadPoolExecutor, threads: int) -> dict[str, Callable]:
    """What is timed, by name; both sides agree."""
    program = jax.jit(ours)
    severity = np.full(ROWS, SEVERITY, np.float32)
    arguments = jax.device_put((inputs, np.arange(ROWS), severity))
    check_agreement(inputs, program(*arguments))
    return {
        "ours": lambda: jax.block_until_ready(program(*arguments)),
        "NumPy float64": lambda: numpy_loop(inputs, "float64"),
        "NumPy float32": lambda: numpy_loop(inputs, "float32"),
        f"NumPy float32, threads: {threads}": lambda: numpy_loop(inputs, "float32", pool),
    }


def main(_: list[str]) -> None:
    """Check, measure, print and write, as the flags say."""
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
    available = sorted(os.sched_getaffinity(0))
    if CORES.value:  # before JAX makes its threads
        os.sched_setaffinity(0, available[: CORES.value])
    threads = len(os.sched_getaffinity(0))
    device = jax.devices()[0]
    rounds = []
    with ThreadPoolExecutor(threads) as pool:
        forms = make_forms(make_inputs(), pool, threads)
        for _ in range(ROUNDS.value):
            load = round(os.getloadavg()[0], 2)
            times = median_times(forms, REPEATS.value)
            ratios = {f"numpy_over_ours, {kind}": over_ours(times[kind]) for kind in times}
            rounds.append({"load_average": load, **times, **ratios})
            print(f"load average over a minute before: {load}")
            for name, value in times["milliseconds"].items():
                found = [ratio.get(name, 1.0) for ratio in ratios.values()]
                print(f"{name:>26} {value:8.1f} ms, / ours {found[0]:.2f}, of work {found[1]:.2f}")
    if OUT.value:
        suffix = f"_{threads}_core" if CORES.value else ""
        path = Path(OUT.value) / f"noise_{device.platform}{suffix}.json"
        shapes = {name: [[ROWS, *shape], dtype] for name, (shape, dtype) in SHAPES.items()}
        settings = {"cores": threads, "inputs": shapes, "repeats": REPEATS.value}
        write_json(path, {"run": describe_machine(), **settings, "rounds": rounds})


if __name__ == "__main__":
    app.run(main)
