"""Does a frequency ratio tell which modality dominates? Metrics against what was measured.

python benchmarks/dominance.py [--results=docs/results] [--limit=2000]

Reads the result files of the experiments named in EXPERIMENTS (run them first, see experiments/),
takes the metrics of the training inputs, and writes dominance.json and dominance.md beside them.
Measured, in joint training without balancing ("none") and of each modality alone:

* learning speed: mean training accuracy over the steps of a model of that modality alone;
* OGM ratio: mean over steps of the log of the ratio of the scores (mean probability of the true
  class from one modality alone) in joint training;
* Shapley: share of the validation accuracy above chance, at the last validation.

A modality is predicted to dominate where its metric is the larger one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from fusion_jax.config import Config, write_json
from fusion_jax.experiment_definition import read_experiment
from fusion_jax.experiment_results import Job, make_jobs
from fusion_jax.frequency import frequency_ratio
from fusion_jax.runs import describe_machine

RESULTS = flags.DEFINE_string("results", "docs/results", "folder of results, and of the table")
LIMIT = flags.DEFINE_integer("limit", 2000, "training examples that the metrics are taken of")

EXPERIMENTS = ("mwam_av_mnist", "mwam_grid_letters", "dominance_grid_digits", "dominance_uea")
JOINT = "none"
METRICS = {
    "robust": {},
    "robust, FFT": {"transform": "fft"},
    "official": {"mode": "official"},
    "low only": {"mode": "low_only"},
    "direct sum": {"mode": "direct_sum"},
    "weighted sum": {"mode": "weighted_sum"},
}
TIE = "tie"
MEASURES = ("learning speed", "OGM ratio", "Shapley")


def metric_values(config: Config, limit: int) -> dict[str, dict[str, float]]:
    """Metric -> modality -> mean over the first training examples, clean and preprocessed."""
    source = config.data.source("train")
    inputs = source[np.arange(min(limit, len(source)))]["inputs"]
    found: dict[str, dict[str, float]] = {name: {} for name in METRICS}
    for modality in config.model.modalities:
        layer = config.model.preprocess[modality]

        def prepare(x: jax.Array, layer: Any = layer) -> jax.Array:
            return layer.apply({}, x, train=False)

        x = jax.jit(prepare)(jnp.asarray(inputs[modality]))
        for name, options in METRICS.items():
            values = frequency_ratio(x, padding="edge", **options)
            found[name][modality] = float(jnp.mean(values))
    return found


def mean_of(curve: list[list[float]]) -> float:
    """Mean of the values of a learning curve."""
    return float(np.mean([value for _, value in curve]))


def measure(joint: Mapping[str, Any], alone: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Measure -> modality -> value, of one seed. Larger is more dominant.

    Args:
        joint: result file of the joint training.
        alone: modality -> result file of the model of it alone.
    """
    first, second = joint["data"]["modalities"]
    curves = joint["curves"]
    scores = {
        name: np.array([value for _, value in curves[f"balancer/score/{name}"]])
        for name in (first, second)
    }
    ratio = float(np.mean(np.log(scores[first] / scores[second])))
    chance = 1 / joint["data"]["num_classes"]
    both = curves["validation/accuracy"][-1][1] - chance
    # What is left without the other one.
    only = {
        first: curves[f"validation/without_{second}"][-1][1] - chance,
        second: curves[f"validation/without_{first}"][-1][1] - chance,
    }
    shapley = {
        first: (only[first] + both - only[second]) / (2 * both),
        second: (only[second] + both - only[first]) / (2 * both),
    }
    speed = {name: mean_of(alone[name]["curves"][f"unimodal_accuracy/{name}"]) for name in alone}
    return {
        "learning speed": speed,
        "OGM ratio": {first: ratio, second: -ratio},
        "Shapley": shapley,
    }


def evaluate_set(name: str, results: Path, limit: int) -> dict[str, Any] | None:
    """Metrics and measures of one experiment, or None where it has no complete seed."""
    experiment = read_experiment(Path("experiments") / f"{name}.toml")
    jobs = make_jobs(experiment, workdir=Path("runs/experiments"), results=results)
    done: dict[int, dict[str, tuple[Job, dict[str, Any]]]] = {}
    for job in jobs:
        result = job.finished()
        if result and (job.run.label == JOINT or job.run.role == "alone"):
            done.setdefault(job.seed, {})[job.run.label] = (job, result)
    alone = [run.label for run in experiment.runs if run.role == "alone"]
    complete = {seed: runs for seed, runs in done.items() if set(runs) == {JOINT, *alone}}
    if not complete:
        return None
    seeds = {
        str(seed): measure(runs[JOINT][1], {label: runs[label][1] for label in alone})
        for seed, runs in sorted(complete.items())
    }
    config = next(iter(complete.values()))[JOINT][0].run.build(0)
    return {
        "modalities": list(config.model.modalities),
        "seeds_wanted": len(experiment.seeds),
        "metrics": metric_values(config, limit),
        "measured": seeds,
    }


def dominant(values: Mapping[str, float]) -> str:
    """The modality with the largest value."""
    return max(values, key=lambda name: values[name])


def measured_dominant(found: Mapping[str, Any], measure: str) -> str:
    """The modality that is ahead with every pair of seeds, or TIE."""
    seeds = list(found["measured"].values())
    ranges = {m: [one[measure][m] for one in seeds] for m in found["modalities"]}
    first, second = ranges
    if min(ranges[first]) > max(ranges[second]):
        return first
    return second if min(ranges[second]) > max(ranges[first]) else TIE


def render(result: Mapping[str, Any]) -> str:
    """The page, from the collected numbers alone."""
    lines = [
        "# Which modality dominates, and does a frequency ratio tell?",
        "",
        "Generated from [dominance.json](dominance.json), do not edit: "
        "`python benchmarks/dominance.py`. How everything is measured stands in that file.",
        "",
        "Measured dominance, mean over training seeds (smallest and largest of them in brackets), "
        "of the first modality / the second:",
        "",
        "| data set | modalities | seeds | " + " | ".join(MEASURES) + " |",
        "|---" * (3 + len(MEASURES)) + "|",
    ]
    sets = {name: found for name, found in result["sets"].items() if found}
    for name, found in result["sets"].items():
        if not found:
            lines.append(f"| {name} |" + " not run |" * (2 + len(MEASURES)))
            continue
        cells = []
        for measure_name in MEASURES:
            parts = []
            for m in found["modalities"]:
                values = [one[measure_name][m] for one in found["measured"].values()]
                parts.append(f"{np.mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
            cells.append(" / ".join(parts))
        count = f"{len(found['measured'])} of {found['seeds_wanted']}"
        lines.append(
            f"| {name} | {' / '.join(found['modalities'])} | {count} | {' | '.join(cells)} |"
        )
    lines += [
        "",
        "The metrics of the training inputs, first / second modality. In brackets: with how many "
        f"of the three measures the order agrees; where the seeds' ranges above overlap it is a "
        f"{TIE}, with which nothing agrees and which does not count. The two GRID sets are of one "
        "corpus.",
        "",
        "| data set | dominant by " + ", by ".join(MEASURES) + " | " + " | ".join(METRICS) + " |",
        "|---" * (2 + len(METRICS)) + "|",
    ]
    total, decided = dict.fromkeys(METRICS, 0), 0
    for name, found in sets.items():
        measured = [measured_dominant(found, one) for one in MEASURES]
        decided += sum(one != TIE for one in measured)
        cells = []
        for metric in METRICS:
            values = found["metrics"][metric]
            agree = sum(dominant(values) == one for one in measured)
            total[metric] += agree
            shown = " / ".join(f"{values[m]:.3g}" for m in found["modalities"])
            cells.append(f"{shown} ({agree})")
        lines.append(f"| {name} | {', '.join(measured)} | {' | '.join(cells)} |")
    lines.append("| agrees | | " + " | ".join(f"{n} of {decided}" for n in total.values()) + " |")
    return "\n".join([*lines, ""])


def main(_: list[str]) -> None:
    """Collect and write."""
    results = Path(RESULTS.value)
    sets = {name: evaluate_set(name, results, LIMIT.value) for name in EXPERIMENTS}
    path = results / "dominance.json"
    # Through JSON, so that the page is made from what the file says.
    result = {"method": __doc__, "run": describe_machine(), "limit": LIMIT.value, "sets": sets}
    write_json(path, result)
    path.with_suffix(".md").write_text(render(json.loads(path.read_text())))
    print(f"written: {path.with_suffix('.md')}")


if __name__ == "__main__":
    app.run(main)
