"""From the per-example records of an experiment to one file of accuracies with intervals.

Intervals are 95 % percentile intervals of a bootstrap over training seeds and every cluster that
the data set names (recordings x images); both sides of a difference are resampled together, by
example and by seed. The examples of the folds of a seed are put behind each other, and a seed
without all of its folds does not count; folds are too few to be resampled.
"""

import dataclasses
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fusion_jax.errors import FusionError
from fusion_jax.evaluation.intervals import (
    P_VALUE_BLOCKS,
    RESAMPLES,
    bootstrap_weights,
    guarded_p_values,
    holm,
    seed_drop_interval,
    seed_interval,
)
from fusion_jax.experiment_definition import Experiment, Run
from fusion_jax.experiment_results import SCHEMA, Examples, Job, read_examples, unpack

_MADE = ("command", "commit", "hardware", "versions", "seconds", "step")


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """What is known of one run with one seed, of all folds where there are any.

    Attributes:
        result: its result file (of the first fold); the order of its "cells" is that of `labels`.
        labels: names of the conditions.
        correct: 1 where the prediction was right, per condition and example.
        sizes: how many of the examples are of each fold, in their order.
    """

    result: dict[str, Any]
    labels: list[str]
    correct: Float[np.ndarray, "c n"]
    sizes: tuple[int, ...]

    def row(self, *labels: str) -> Float[np.ndarray, " n"]:
        """Correctness under one condition, or its mean over several."""
        return self.correct[[self.labels.index(label) for label in labels]].mean(axis=0)

    def without(self, modalities: set[str]) -> str | None:
        """Label of the condition without noise and without these modalities."""
        for label, row in zip(self.labels, self.result["cells"], strict=True):
            if row["corruption"] == "none" and set(row["missing"]) == modalities:
                return label
        return None


Seeds = Mapping[int, _Evaluated]


def collect(experiment: Experiment, jobs: Sequence[Job]) -> dict[str, Any]:
    """All that the table of an experiment says.

    Args:
        experiment: the definition.
        jobs: its runs and seeds; those that have no result yet are named without numbers.

    Returns:
        JSON-ready: the definition, how each run was made, and as [mean, low, high] the accuracies
        ("cells", in [0, 1]), the methods' differences from the reference ("differences"), the part
        of the clean accuracy that a missing modality takes ("drops", the field's PCR) and how far a
        model trained without some modalities is ahead of a method that misses them ("alone"). Where
        the definition names endpoints and a method was run: these numbers of each ("endpoints").
        Where it names a primary comparison: the method's differences from each of the others, with
        p-values that are not adjusted ("primary"; `fusion_jax.experiment_primary` adjusts over data
        sets). How well each run's signals tell a condition from clean inputs ("separation"). Where
        it has folds: "folds", how many of them a seed that does not count has
        ("incomplete"), and for each fold the methods' mean accuracies ("by_fold").

    Raises:
        FusionError: where nothing was run (or no seed with all folds), records are missing or
            damaged, runs were evaluated on other examples or conditions, or an endpoint has a
            pattern that matches no condition.
    """
    results = {job: job.read_result() for job in jobs}
    finished = {job: made for job, made in results.items() if made and made["status"] == "done"}
    if not finished:
        raise FusionError(
            f"{experiment.name} has no result yet: "
            f"python -m fusion_jax.experiments run {experiment.path} makes some"
        )
    whole = _whole_seeds(experiment, finished)
    parts = [read_examples(job) for job in whole[0]]
    examples, num = _join_examples(parts), sum(len(part.example_id) for part in parts)
    done = _read_seeds(whole, finished, [len(part.example_id) for part in parts])
    counted = {job for folds in whole for job in folds}
    first = next(iter(done.values()))
    weights = bootstrap_weights(examples.clusters, num=num)
    found: dict[str, Seeds] = {
        run.label: {job.seed: done[job] for job in done if job.run == run}
        for run in experiment.runs
    }
    methods = {run.label: found[run.label] for run in experiment.runs if run.role == "method"}
    alone = {run.label: found[run.label] for run in experiment.runs if run.role == "alone"}
    endpoints = _endpoints(experiment, found, examples.clusters, weights)
    return {
        "schema": SCHEMA,
        "name": experiment.name,
        "title": experiment.title,
        "definition": experiment.path,
        "seeds": list(experiment.seeds),
        "data": {key: first.result["data"][key] for key in ("name", "split")}
        | {"num_examples": num},
        "clusters": sorted(examples.clusters),
        "runs": {run.label: _describe(run, results, counted) for run in experiment.runs},
        "strengths": _strengths(done.values()),
        "cells": {
            label: {cell: _summary(_values(seeds, [cell]), weights) for cell in _labels(seeds)}
            for label, seeds in found.items()
        },
        "differences": {
            f"{label} - {experiment.reference}": _differences(
                seeds, methods[experiment.reference], weights
            )
            for label, seeds in methods.items()
            if label != experiment.reference
        },
        "separation": _separations(experiment, finished),
        "drops": {label: _drops(seeds, weights) for label, seeds in methods.items()},
        "alone": {label: _ahead(alone, seeds, weights) for label, seeds in methods.items()},
        **({"endpoints": endpoints} if endpoints else {}),
        **_primary(experiment, found, examples.clusters, weights, endpoints),
        **_folds(experiment, methods, finished, endpoints),
    }


def _whole_seeds(experiment: Experiment, finished: Iterable[Job]) -> list[list[Job]]:
    """The jobs of each run and seed that has all of its folds, by fold."""
    by_seed: dict[tuple[str, int], list[Job]] = {}
    for job in finished:
        by_seed.setdefault((job.run.label, job.seed), []).append(job)
    wanted = len(experiment.folds) or 1
    whole = [
        sorted(jobs, key=lambda job: job.fold or 0)
        for jobs in by_seed.values()
        if len(jobs) == wanted
    ]
    if not whole:
        raise FusionError(
            f"{experiment.name} has no run with all {wanted} folds of a seed yet: "
            f"python -m fusion_jax.experiments run {experiment.path} makes some"
        )
    return whole


def _read_seeds(
    whole: Sequence[Sequence[Job]], finished: Mapping[Job, dict[str, Any]], sizes: Sequence[int]
) -> dict[Job, _Evaluated]:
    """Each run and seed, named by its first fold; `sizes` are the numbers of examples by fold."""
    read = {
        job: _read_records(job, finished[job], num)
        for folds in whole
        for job, num in zip(folds, sizes, strict=True)
    }
    read = _under_same_conditions(read)
    return {folds[0]: _join_folds([read[job] for job in folds]) for folds in whole}


def _join_examples(parts: Sequence[Examples]) -> Examples:
    """The examples of the folds behind each other; one id is one cluster in all folds."""
    names = parts[0].clusters
    for part in parts:
        if set(part.clusters) != set(names):
            raise FusionError(
                f"the folds have other clusters, {sorted(names)} and {sorted(part.clusters)}: "
                "list folds of one data set"
            )
    return Examples(
        np.concatenate([part.example_id for part in parts]),
        {name: np.concatenate([part.clusters[name] for part in parts]) for name in names},
    )


def _join_folds(parts: Sequence[_Evaluated]) -> _Evaluated:
    """The folds of one seed behind each other."""
    return dataclasses.replace(
        parts[0],
        correct=np.concatenate([part.correct for part in parts], axis=1),
        sizes=tuple(size for part in parts for size in part.sizes),
    )


def _folds(
    experiment: Experiment,
    methods: Mapping[str, Seeds],
    finished: Iterable[Job],
    endpoints: Mapping[str, Any],
) -> dict[str, Any]:
    """What an experiment says of its folds, where it has any."""
    if not experiment.folds:
        return {}
    count = Counter((job.run.label, job.seed) for job in finished)
    incomplete = {
        f"{run.label} seed {seed}": count[run.label, seed]
        for run in experiment.runs
        for seed in experiment.seeds
        if 0 < count[run.label, seed] < len(experiment.folds)
    }
    chosen = endpoints.get("conditions", {})
    return {
        "folds": list(experiment.folds),
        "incomplete": incomplete,
        "by_fold": {
            fold: {label: _fold_means(seeds, index, chosen) for label, seeds in methods.items()}
            for index, fold in enumerate(experiment.folds)
        },
    }


def _fold_means(
    seeds: Seeds, fold: int, conditions: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Mean accuracy over the seeds on one fold: clean, and of each endpoint."""
    if not seeds:
        return {}
    first = next(iter(seeds.values()))
    start = sum(first.sizes[:fold])
    clean = first.without(set())
    rows = ({"clean": [clean]} if clean else {}) | dict(conditions)
    values = {name: _values(seeds, labels) for name, labels in rows.items()}
    part = slice(start, start + first.sizes[fold])
    return {
        name: float(value[:, part].mean(dtype=np.float64))
        for name, value in values.items()
        if value is not None
    }


def _read_records(job: Job, result: dict[str, Any], num: int) -> _Evaluated:
    """Which of the experiment's `num` examples were right, as a result file says."""
    cure = f"bring it back, or remove it to run {job} again"
    if "correct" not in result:
        raise FusionError(f"{job.result} holds no per-example records: {cure}")
    if num != result["data"]["num_examples"]:
        raise FusionError(
            f"{job} was evaluated on {result['data']['num_examples']} examples, the other runs "
            f"on {num}: {cure}"
        )
    try:
        correct = np.stack([unpack(text, num) for text in result["correct"].values()])
    except FusionError as error:
        raise FusionError(f"{job.result}: {error}: {cure}") from error
    for row, values in zip(result["cells"], correct, strict=True):
        if abs(row["accuracy"] - values.mean()) > 0.5 / num:
            raise FusionError(f"{job.result} holds records that are not its accuracies: {cure}")
    return _Evaluated(
        result=result,
        labels=list(result["correct"]),
        correct=correct.astype(np.float32),
        sizes=(num,),
    )


def _under_same_conditions(done: Mapping[Job, _Evaluated]) -> dict[Job, _Evaluated]:
    """The seeds and folds of a run under the conditions that all of them have.

    A later version may evaluate under more of them: these are left out until all seeds have them.

    Raises:
        FusionError: where two were evaluated under conditions that the other lacks.
    """
    least: dict[str, tuple[Job, list[str]]] = {}
    for job, evaluated in done.items():
        other, labels = least.setdefault(job.run.label, (job, evaluated.labels))
        if not (set(labels) <= set(evaluated.labels) or set(evaluated.labels) <= set(labels)):
            raise FusionError(
                f"{job} was evaluated under other conditions than {other}: remove {job.result} and "
                f"{other.result} and run again, which evaluates what is trained already"
            )
        if len(evaluated.labels) < len(labels):
            least[job.run.label] = (job, evaluated.labels)
    return {job: _only(evaluated, least[job.run.label][1]) for job, evaluated in done.items()}


def _only(evaluated: _Evaluated, labels: Sequence[str]) -> _Evaluated:
    """What is known under some of the conditions, in their order."""
    places = [evaluated.labels.index(label) for label in labels]
    rows = [evaluated.result["cells"][place] for place in places]
    return dataclasses.replace(
        evaluated,
        result=evaluated.result | {"cells": rows},
        labels=list(labels),
        correct=evaluated.correct[places],
    )


def _describe(
    run: Run, results: Mapping[Job, dict[str, Any] | None], read: Container[Job]
) -> dict[str, Any]:
    """How a run was made, with one entry for each seed that was run, "seed/fold" with folds.

    `read` are the jobs that count: of seeds with all folds.
    """
    mine = {_entry(job): result for job, result in results.items() if job.run == run and result}
    done = {entry: result for entry, result in mine.items() if result["status"] == "done"}
    counted = [
        result for job, result in results.items() if job.run == run and job in read and result
    ]
    return {
        "role": run.role,
        "config": run.config,
        "overrides": list(run.overrides),
        "training_severity": sorted({result["training_severity"] for result in done.values()}),
        "made": {
            entry: {key: done[entry][key] for key in _MADE} for entry in sorted(done, key=_place)
        },
        "update_scale": _mean_scale(result["curves"] for result in counted),
        "failed": {entry: result["error"] for entry, result in mine.items() if entry not in done},
    }


def _entry(job: Job) -> str:
    """Name of a job among those of its run."""
    return str(job.seed) if job.fold is None else f"{job.seed}/{job.fold}"


def _place(entry: str) -> list[int]:
    """Seed, and fold, of an entry."""
    return [int(number) for number in entry.split("/")]


def _mean_scale(curves: Iterable[Mapping[str, Sequence[Sequence[float]]]]) -> dict[str, float]:
    """Modality -> mean over steps and seeds of the scale of its encoder's updates."""
    prefix, found = "update_scale/", dict[str, list[float]]()
    for one in curves:
        for name in filter(lambda name: name.startswith(prefix), one):
            values = found.setdefault(name.removeprefix(prefix), [])
            values.append(float(np.mean([value for _, value in one[name]])))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _strengths(evaluated: Iterable[_Evaluated]) -> dict[str, str]:
    """Physical strength of each condition that has one."""
    return {
        label: row["strength"]
        for one in evaluated
        for label, row in zip(one.labels, one.result["cells"], strict=True)
        if row["strength"]
    }


def _separations(
    experiment: Experiment, finished: Mapping[Job, Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Run -> condition of one modality at full severity -> signal -> how well it tells it.

    Mean over seeds and folds of the "separation" of the modality that the condition is about.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for job, result in finished.items():
        for label, row in zip(result["correct"], result["cells"], strict=True):
            if not row.get("modality") or row["severity"] != 1:
                continue
            for signal, told in row.get("separation", {}).items():
                if told[row["modality"]] is not None:
                    by_label = found.setdefault(job.run.label, {}).setdefault(label, {})
                    by_label.setdefault(signal, []).append(told[row["modality"]])
    return {
        run.label: {
            label: {signal: float(np.mean(values)) for signal, values in signals.items()}
            for label, signals in found[run.label].items()
        }
        for run in experiment.runs
        if run.label in found
    }


def _labels(seeds: Seeds) -> list[str]:
    """The conditions of a run, none where it has no result."""
    return next(iter(seeds.values())).labels if seeds else []


def _values(
    seeds: Seeds, labels: Sequence[str], *, minus: tuple[Seeds, Sequence[str]] | None = None
) -> Float[np.ndarray, "s n"] | None:
    """Correctness by seed and example, a mean over conditions, or its difference from another.

    None where no seed has both, or a run was not evaluated under all of its conditions.
    """
    others, others_labels = minus or (seeds, labels)
    common = sorted(seeds.keys() & others.keys())
    if not common or {*labels} - {*_labels(seeds)} or {*others_labels} - {*_labels(others)}:
        return None
    return np.stack(
        [
            seeds[seed].row(*labels) - (others[seed].row(*others_labels) if minus else 0)
            for seed in common
        ]
    )


def _summary(
    values: Float[np.ndarray, "s n"] | None, weights: Float[np.ndarray, "r n"]
) -> list[float] | None:
    """Mean and interval of values by seed and example."""
    if values is None:
        return None
    return [float(values.mean(dtype=np.float64)), *seed_interval(values, weights)]


def _differences(ours: Seeds, theirs: Seeds, weights: np.ndarray) -> dict[str, Any]:
    """One method minus another under the conditions that both met."""
    shared = [label for label in _labels(ours) if label in _labels(theirs)]
    return {
        label: _summary(_values(ours, [label], minus=(theirs, [label])), weights)
        for label in shared
    }


def _drops(seeds: Seeds, weights: np.ndarray) -> dict[str, list[float]]:
    """(clean - missing) / clean for each condition without noise that lacks a modality.

    References:
        PCR of Lu et al., MWAM, arXiv 2602.22644, section 5.
    """
    if not seeds:
        return {}
    first = next(iter(seeds.values()))
    clean = first.without(set())
    missing = [
        label
        for label, row in zip(first.labels, first.result["cells"], strict=True)
        if row["corruption"] == "none" and row["missing"]
    ]
    if clean is None:
        return {}
    full = np.stack([one.row(clean) for one in seeds.values()])
    drops = {}
    for label in missing:
        part = np.stack([one.row(label) for one in seeds.values()])
        value = 1 - float(part.mean(dtype=np.float64) / full.mean(dtype=np.float64))
        drops[label] = [value, *seed_drop_interval(part, full, weights)]
    return drops


def _ahead(alone: Mapping[str, Seeds], method: Seeds, weights: np.ndarray) -> dict[str, Any]:
    """Models trained on some modalities alone, minus a method that misses all the others."""
    ahead: dict[str, Any] = {}
    for label, seeds in alone.items():
        if not seeds or not method:
            continue
        trained, given = next(iter(seeds.values())), next(iter(method.values()))
        absent = set(given.result["data"]["modalities"]) - set(trained.result["data"]["modalities"])
        clean, missing = trained.without(set()), given.without(absent)
        if clean and missing:
            values = _values(seeds, [clean], minus=(method, [missing]))
            ahead[f"{missing} ({label})"] = _summary(values, weights)
    return ahead


def _endpoints(
    experiment: Experiment,
    found: Mapping[str, Seeds],
    clusters: Mapping[str, np.ndarray],
    weights: Float[np.ndarray, "r n"],
) -> dict[str, Any]:
    """Accuracies, differences and p-values of the endpoints; nothing before a method was run."""
    methods = [run.label for run in experiment.runs if run.role == "method"]
    labels = list(dict.fromkeys(label for name in methods for label in _labels(found[name])))
    if not experiment.endpoints or not labels:
        return {}
    conditions = {one.label: one.conditions(labels) for one in experiment.endpoints}
    reference = found[experiment.reference]
    differences = {
        f"{name} - {experiment.reference}": {
            endpoint: _values(found[name], chosen, minus=(reference, chosen))
            for endpoint, chosen in conditions.items()
        }
        for name in methods
        if name != experiment.reference
    }
    return {
        "patterns": {one.label: list(one.patterns) for one in experiment.endpoints},
        "conditions": conditions,
        "accuracies": {
            name: {
                endpoint: _summary(_values(seeds, chosen), weights)
                for endpoint, chosen in conditions.items()
            }
            for name, seeds in found.items()
        },
        "differences": {
            name: {endpoint: _summary(values, weights) for endpoint, values in row.items()}
            for name, row in differences.items()
        },
        "by_seed": {
            name: {
                endpoint: None if values is None else values.mean(axis=1, dtype=float).tolist()
                for endpoint, values in row.items()
            }
            for name, row in differences.items()
        },
        "p_values": _p_values(differences, clusters),
        "resamples": RESAMPLES * P_VALUE_BLOCKS,
    }


def _primary(
    experiment: Experiment,
    found: Mapping[str, Seeds],
    clusters: Mapping[str, np.ndarray],
    weights: Float[np.ndarray, "r n"],
    endpoints: Mapping[str, Any],
) -> dict[str, Any]:
    """The primary comparison, where one is named; None for what was not run."""
    primary = experiment.primary
    if not primary or not endpoints:
        return {}
    chosen = endpoints["conditions"][primary.endpoint]
    values = {
        other: {primary.endpoint: _values(found[primary.run], chosen, minus=(found[other], chosen))}
        for other in primary.against
    }
    p_values = _p_values(values, clusters)
    against = {}
    for other, row in values.items():
        raw = p_values[other][primary.endpoint]
        difference = _summary(row[primary.endpoint], weights)
        against[other] = {"difference": difference, "p_value": raw and raw[0]}
    return {"primary": {"endpoint": primary.endpoint, "run": primary.run, "against": against}}


def _p_values(
    differences: Mapping[str, Mapping[str, Float[np.ndarray, "s n"] | None]],
    clusters: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """[p, p adjusted over all comparisons] of each; one that was not run counts as p = 1."""
    known = {
        (name, endpoint): values
        for name, row in differences.items()
        for endpoint, values in row.items()
        if values is not None
    }
    if not known:
        return {name: dict.fromkeys(row) for name, row in differences.items()}
    num = next(iter(known.values())).shape[1]
    raw = dict(zip(known, guarded_p_values([*known.values()], clusters, num=num), strict=True))
    unknown = sum(len(row) for row in differences.values()) - len(raw)
    adjusted = dict(zip(raw, holm([*raw.values(), *[1.0] * unknown])[: len(raw)], strict=True))
    return {
        name: {
            endpoint: [raw[name, endpoint], adjusted[name, endpoint]]
            if values is not None
            else None
            for endpoint, values in row.items()
        }
        for name, row in differences.items()
    }
