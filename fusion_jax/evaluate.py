"""Evaluate the folder of a run: grid, metrics, intervals, report."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from fusion_jax.cells import Conditions
from fusion_jax.config import Config, read_json, to_tree
from fusion_jax.errors import FusionError, writing
from fusion_jax.evaluation.comparison import compare, paired_correct, same_conditions
from fusion_jax.evaluation.grid import (
    make_function_grid_program,
    make_grid_program,
)
from fusion_jax.evaluation.intervals import (
    P_VALUE_BLOCKS,
    bootstrap_weights,
    guarded_p_values,
    holm,
    seed_interval,
    seed_p_values,
)
from fusion_jax.evaluation.records import Records
from fusion_jax.evaluation.thresholds import (
    check_patterns,
    check_thresholds,
    read_thresholds,
)
from fusion_jax.evaluator import SCHEMA, Evaluator, write_report
from fusion_jax.runs import (
    describe_machine,
    load_config,
    restore_best,
    seed_folder,
    state_shapes,
)
from fusion_jax.sources import DataSpec, Source
from fusion_jax.suites import further_corruptions
from fusion_jax.tasks.classification import Classification
from fusion_jax.training import hosts
from fusion_jax.training.parallel import DataParallel

CORRUPTIONS = ("config", "all")


def evaluate(
    workdir: str | Path,
    *,
    split: str = "test",
    data: Any = None,
    allow: Sequence[str] = (),
    grid: str = "standard",
    corruptions: str = "config",
    severities: Sequence[float] | None = None,
    compare_with: str | Path | None = None,
    thresholds: str | Path | None = None,
    pictures: bool = False,
    silent: bool = True,
) -> dict[str, Any]:
    """Evaluate the best checkpoint of every seed of a run under noise and missing modalities.

    Writes `report.json`, `report.html` and, per seed, the folder `records_<split>` with one entry
    per cell and example (`fusion_jax.evaluation.records.Records`). An evaluation that was killed
    goes on where it was.

    Args:
        workdir: folder of a trained run.
        split: "test", or "validation" while a design is still being chosen.
        data: the data set, for runs on data that was held in memory.
        allow: top-level packages besides fusion_jax whose classes the run may name.
        grid: "standard" (each modality corrupted or missing, and all corrupted together), or
            "joint" (besides, every condition of each modality with every one of another, missing
            ones too).
        corruptions: "config" (those that the configuration names) or "all" that fit the inputs
            besides (`fusion_jax.suites`).
        severities: in (0, 1], in place of the configuration's.
        compare_with: folder of another run that was evaluated on the same split; the report then
            has the differences of each cell, paired by example and training seed.
        thresholds: file of limits (`fusion_jax.evaluation.thresholds`); what the report's
            "thresholds" holds says which of them it keeps.
        pictures: put examples of the ten worst cells into the report, as pictures of what the model
            was given; cells with inputs of other examples are left aside, where there are others.
        silent: say nothing about progress.

    Returns:
        The report as a dict, the content of `report.json`.

    Raises:
        FusionError: for a folder that is not a trained run, data that does not match it, a run to
            compare with that was not evaluated on the same examples, or limits that cannot be read.
    """
    workdir = Path(workdir)
    config, spec, run = load_config(workdir, allow=allow)
    # Before the grid: a slip in a file must not cost an evaluation.
    limits = read_thresholds(thresholds) if thresholds else []
    other = _evaluated(Path(compare_with), split) if compare_with else None
    config = _with_corruptions(config, spec, corruptions)
    if severities is not None:
        config = dataclasses.replace(config, evaluation_severities=_checked(severities))
    evaluator = _run_evaluator(config, _source(config, data, split, spec), split, grid, silent)
    check_patterns(evaluator.labels, limits)
    # There while an evaluation is under way: what a killed one finished is used again.
    under_way = workdir / f".evaluating_{split}"
    evaluator.reuse = bool(hosts.shared(under_way.exists()))
    hosts.lead_does(lambda: _touch(under_way))
    # Conformal sets are calibrated on examples that are not tested.
    held_out = _source(config, data, "validation", spec) if split == "test" else None
    seeds = _evaluate_seeds(config, spec, workdir, evaluator, held_out)
    found = [seed.records for seed in seeds.values()]
    report = evaluator.report(
        found,
        seeds=[*seeds],
        run=_run_facts(run, seeds) | {"workdir": str(workdir)},
        name=run["data"]["name"],
        calibration=[seed.nll for seed in seeds.values() if seed.nll is not None],
    )
    if other:
        write_report(workdir, report)  # whatever the comparison meets, the evaluation is kept
        here = {number: seed.records for number, seed in seeds.items()}
        report["comparison"] = _comparison(report, here, other, evaluator.identity, spec)
    if pictures:
        rates = {
            name: module.sample_rate
            for name, module in config.model.preprocess.items()
            if hasattr(module, "sample_rate")
        }
        report["examples"] = evaluator.worst_examples(found, rates)
    if limits:
        report["thresholds"] = check_thresholds(report, limits)
    write_report(workdir, report)
    hosts.lead_does(lambda: under_way.unlink(missing_ok=True))
    return report


class _Seed(NamedTuple):
    """What the evaluation of one seed's best checkpoint gave."""

    records: Records
    nll: np.ndarray | None
    step: int
    temperature: float | None


def _evaluate_seeds(
    config: Config, spec: DataSpec, workdir: Path, evaluator: Evaluator, held_out: Source | None
) -> dict[int, _Seed]:
    """Seed -> its records, and what it says of held-out examples."""
    template = evaluator.parallel.template(state_shapes(config, spec))
    clean = None if held_out is None else evaluator.on_clean(held_out, "validation")
    seeds = {}
    for index in range(config.num_seeds):
        state = restore_best(template, workdir, index)
        step, variables = int(state.step), {"params": state.params, **state.collections}
        records = evaluator.records(
            variables,
            seed_folder(workdir, index) / f"records_{evaluator.split}",
            progress=step / config.num_steps,
            facts={"config": to_tree(config), "step": step},
        )
        nll = None if clean is None else clean.nll(variables, step / config.num_steps)
        scaled = config.model.temperature_scaling
        temperature = float(state.collections["calibration"]["temperature"]) if scaled else None
        seeds[config.seed + index] = _Seed(records, nll, step, temperature)
    return seeds


def _with_corruptions(config: Config, spec: DataSpec, corruptions: str) -> Config:
    """The configuration, with every corruption that fits its inputs where that is asked for."""
    if corruptions not in CORRUPTIONS:
        raise FusionError(f"corruptions is {corruptions!r}: choose one of {list(CORRUPTIONS)}")
    if corruptions == "config":
        return config
    known = config.evaluation_corruptions()
    unseen = {
        name: (
            *config.unseen.get(name, ()),
            *further_corruptions(
                spec.modalities[name],
                known.get(name, ()),
                sample_rate=getattr(config.model.preprocess.get(name), "sample_rate", None),
            ),
        )
        for name in spec.names
    }
    return dataclasses.replace(config, unseen=unseen)


def _run_evaluator(
    config: Config, source: Source, split: str, grid: str, silent: bool
) -> Evaluator:
    """The grid of a run's configuration."""
    conditions = config.conditions()
    parallel = DataParallel()
    return Evaluator(
        source=source,
        conditions=conditions,
        cells=conditions.cells(source.spec.names, grid),
        task=config.task,
        batch_size=config.eval_batch_size,
        split=split,
        parallel=parallel,
        program=make_grid_program(
            config.model, config.task, conditions.corruptions, compiled=parallel.evaluation
        ),
        silent=silent,
    )


def describe_report(report: Mapping[str, Any]) -> list[str]:
    """What a terminal shows of a report: clean accuracy, and the limits that are not kept."""
    clean = [row["accuracy"] for row in report["cells"] if row["cell"] == "clean"]
    data = report["data"]
    lines = [
        f"clean accuracy {np.mean(clean):.4f} on {data['num_examples']} {data['split']} examples"
    ]
    failed = [check for check in report.get("thresholds", []) if not check["passed"]]
    return lines + [
        f"FAILED {check['cell']}: {check['metric']} is {check['value']}, limit: {check['limit']}"
        for check in failed
    ]


def evaluate_function(
    predict: Callable[[dict[str, Array], Bool[Array, "b m"]], Float[Array, "b k"]],
    source: Source,
    workdir: str | Path,
    *,
    corruptions: Mapping[str, Any],
    unseen: Mapping[str, Sequence[Any]] | None = None,
    severities: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    training_severity: float = 0.0,
    grid: str = "standard",
    batch_size: int = 512,
    name: str = "data",
    silent: bool = True,
) -> dict[str, Any]:
    """Evaluate any classifier that JAX can trace, such as a model that is not a `FusionModel`.

    Writes what `evaluate` writes, with everything but fusion weights and signals.

    Args:
        predict: (modality -> inputs [B, ...] as the source gives them, corrupted; present Bool[B,
            M], in the order of sorted names) -> logits [B, K], each row by itself, in evaluation
            mode. Inputs of an absent modality are 0.
        source: the examples.
        workdir: folder for the report and the records; made where it is not there.
        corruptions: modality -> the corruption it was trained under, or simply the first.
        unseen: modality -> further corruptions, of other classes.
        severities: in (0, 1].
        training_severity: the largest severity that the model was trained under.
        grid: as in `evaluate`.
        batch_size: examples of an evaluation step.
        name: of the data, for the report.
        silent: say nothing about progress.

    Returns:
        The report as a dict, the content of `report.json`.

    Raises:
        FusionError: for corruptions of modalities that the source lacks.
    """
    workdir, task, parallel = Path(workdir), Classification(), DataParallel()
    conditions = Conditions(corruptions, unseen or {}, _checked(severities), training_severity)
    unknown = set(conditions.corruptions) - set(source.spec.names)
    if unknown:
        raise FusionError(
            f"corruptions name {sorted(unknown)[0]!r}; the source's modalities are "
            f"{list(source.spec.names)}"
        )
    evaluator = Evaluator(
        source=source,
        conditions=conditions,
        cells=conditions.cells(source.spec.names, grid),
        task=task,
        batch_size=batch_size,
        split="test",
        parallel=parallel,
        program=make_function_grid_program(
            predict,
            source.spec.names,
            task,
            conditions.corruptions,
            compiled=parallel.evaluation,
        ),
        silent=silent,
    )
    with writing(f"cannot write {workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
    # What a function computes is not known beforehand: unfinished records are never gone on with.
    facts = {"function": secrets.token_hex(8)}
    records = evaluator.records({}, seed_folder(workdir, 0) / "records_test", facts=facts)
    run = {"config": None, "overrides": []} | describe_machine()
    return write_report(workdir, evaluator.report([records], seeds=[0], run=run, name=name))


def _checked(severities: Sequence[float]) -> tuple[float, ...]:
    """Severities in rising order, refused where they are none."""
    if not severities or not all(0 < severity <= 1 for severity in severities):
        raise FusionError(f"severities is {tuple(severities)}: each must lie in (0, 1]")
    different = sorted({float(severity) for severity in severities})
    if len({f"{severity:g}" for severity in different}) < len(different):
        raise FusionError(
            f"severities is {tuple(different)}: two of them are the same to six digits, by which "
            "conditions are named"
        )
    return tuple(different)


def _touch(path: Path) -> None:
    """Make an empty file."""
    with writing(f"cannot write {path}"):
        path.touch()


def _evaluated(workdir: Path, split: str) -> dict[str, Any]:
    """The report of a run that was evaluated."""
    report = read_json(workdir / "report.json")
    if report.get("schema") != SCHEMA or report["data"]["split"] != split:
        raise FusionError(
            f"{workdir} was not evaluated on the {split} split by this version: run eval.py on it"
        )
    return {"workdir": workdir, "report": report}


def _comparison(
    report: Mapping[str, Any],
    here: Mapping[int, Records],
    other: Mapping[str, Any],
    identity: Mapping[str, np.ndarray],
    spec: DataSpec,
) -> dict[str, Any]:
    """This run against another one, cell by cell."""
    # Opened now: the other run may be this one, evaluated before.
    there = {
        seed: Records(seed_folder(other["workdir"], index) / f"records_{report['data']['split']}")
        for index, seed in enumerate(other["report"]["seeds"])
    }
    same, left_out = same_conditions(report, other["report"])
    cells, ours, theirs = paired_correct(here, there, same)
    differences = ours.astype(np.float32) - theirs
    clusters = {name: identity[name] for name in spec.clusters}
    weights = bootstrap_weights(clusters, num=ours.shape[2])
    # Holm's correction multiplies by the number of cells: p must be fine enough to survive it.
    blocks = max(P_VALUE_BLOCKS, len(cells) // 20)
    # Of one seed the trainings cannot be told from chance: then p is over the examples alone.
    tests = guarded_p_values if ours.shape[1] > 1 else seed_p_values
    p_values = tests(list(differences), clusters, num=ours.shape[2], blocks=blocks)
    families: dict[str, list[str]] = {}
    known = set(cells)
    for row in sorted(report["cells"], key=lambda row: row["severity"]):
        name = f"{row['corruption']} on {row['modality']}"
        if row["severity"] and row["cell"] in known and row["cell"] not in families.get(name, []):
            families.setdefault(name, []).append(row["cell"])
    return {
        "workdir": str(other["workdir"]),
        "not_compared": left_out,
        "config": other["report"]["run"]["config"],
        "seeds": [seed for seed in here if seed in there],
        **compare(
            cells,
            ours,
            theirs,
            intervals=[seed_interval(each, weights) for each in differences],
            p_values=holm(p_values),
            families=families,
        ),
    }


def _source(config: Config, data: Any, split: str, spec: DataSpec) -> Source:
    """The split to evaluate on, checked against what the run was trained on."""
    data = config.data if data is None else data
    if data is None:
        raise FusionError(
            "the run was trained on data held in memory: pass it again, evaluate(workdir, data=...)"
        )
    source = data.source(split)
    if source.spec != spec:
        raise FusionError(
            f"the data has the specification {source.spec}, the run was trained on {spec}"
        )
    return source


def _run_facts(run: dict[str, Any], seeds: Mapping[int, _Seed]) -> dict[str, Any]:
    """What the report says about how the run was made."""
    facts = {key: run[key] for key in ("command", "commit", "versions", "hardware")}
    words = run["command"].split()
    config = next((w.partition("=")[2] for w in words if w.startswith("--config=")), None)
    return facts | {
        "config": config,
        "overrides": [w for w in words if w.startswith("--config.")],
        "evaluated_with": describe_machine()["command"],
        "trained_steps": {str(number): seed.step for number, seed in seeds.items()},
        "temperatures": {
            str(number): seed.temperature
            for number, seed in seeds.items()
            if seed.temperature is not None
        },
    }
