"""Run the experiments of this project, and make their tables.

python -m fusion_jax.experiments run experiments/av_mnist.toml
python -m fusion_jax.experiments list experiments/av_mnist.toml
python -m fusion_jax.experiments collect experiments/av_mnist.toml
python -m fusion_jax.experiments table experiments/av_mnist.toml
python -m fusion_jax.experiments primary experiments/a.toml experiments/b.toml

`run` trains and evaluates every run with every seed (and fold) that has no result yet and writes
one file for each, docs/results/<name>/<run>_seed<s>.json, with folds <run>_seed<s>_fold<k>.json;
started again after a kill it goes on, and several processes share the work. `list` says how far it
is. `collect` writes docs/results/<name>.json from these files, `table` docs/results/<name>.md from
that file alone. `primary` writes docs/results/primary_<run>.md: the comparison that the definitions
name as theirs, corrected over the data sets.
"""

import json
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

from fusion_jax import cli
from fusion_jax.config import Config, read_json, to_tree, write_json
from fusion_jax.errors import FusionError, Stopped, first_line, writing
from fusion_jax.evaluate import evaluate
from fusion_jax.evaluation.tables import render_tables
from fusion_jax.experiment_collect import collect
from fusion_jax.experiment_definition import Experiment, read_experiment
from fusion_jax.experiment_primary import render_primary
from fusion_jax.experiment_results import (
    SCHEMA,
    Job,
    changed_field,
    changed_kinds,
    keep_records,
    make_jobs,
)
from fusion_jax.runs import held, seed_folder
from fusion_jax.training.loop import train

# What result files keep of a log.
CURVES = ("unimodal_accuracy/", "update_scale/", "balancer/", "validation/")
TRACEBACK = "traceback.txt"  # in the folder of a run
ACTIONS = ("run", "list", "collect", "table", "primary")


def run_jobs(jobs: Sequence[Job], *, allow: Sequence[str] = ()) -> dict[Job, str]:
    """Train and evaluate what has no result yet; one that fails does not stop the others.

    Args:
        jobs: in this order.
        allow: top-level packages besides fusion_jax whose classes the configurations may name.

    Returns:
        The error of each that failed; its result file holds it too, and it is tried again next
        time. Of an error that is no FusionError the folder of the run keeps the traceback.

    Raises:
        FusionError: before anything is done, where a configuration is wrong or another one than
            what a result or a folder was made with.
        Stopped: by SIGTERM or Ctrl-C.
    """
    failed, configs = {}, _checked_configs(jobs)
    _refuse_other_conditions(configs)
    for job, config in configs.items():
        with held(_lock(job)) as (_, free):
            if not free:
                print(f"{job}: another process is at it", flush=True)
            elif job.finished():
                print(f"{job}: has its result", flush=True)
            else:
                result = _run_job(job, config, allow)
                with writing(f"cannot make the folder {job.result.parent}"):
                    job.result.parent.mkdir(parents=True, exist_ok=True)
                write_json(job.result, result)
                if result["status"] == "failed":
                    failed[job] = result["error"]
    return failed


def _checked_configs(jobs: Sequence[Job]) -> dict[Job, Config]:
    """All configurations, refused where one differs from what was run."""
    configs = {job: job.build() for job in jobs}
    for job, config in configs.items():
        changed = changed_field(job, config)
        if changed:
            raise FusionError(changed)
    return configs


def _refuse_other_conditions(configs: Mapping[Job, Config]) -> None:
    """Refuse to go on with a run of which finished seeds were evaluated under fewer conditions.

    A kind of corruption that `unseen` gained since leaves finished results valid, but seeds under
    other conditions cannot be collected together.
    """
    evaluated: dict[str, tuple[Job, Any]] = {}
    for job in configs:
        result = job.finished()
        if result:
            evaluated[job.run.label] = (job, result["resolved"].get("unseen", {}))
    for job, config in configs.items():
        other, before = evaluated.get(job.run.label, (job, None))
        kinds = None if before is None else changed_kinds(before, to_tree(config.unseen))
        if kinds and not job.finished():
            raise FusionError(
                f"{other} was evaluated with config.unseen = {kinds[0]}, the definition now says "
                f"{kinds[1]}: undo that, or remove {other.result} and its like to run all seeds "
                "anew"
            )


def _run_job(job: Job, config: Config, allow: Sequence[str]) -> dict[str, Any]:
    """Train, evaluate, and the content of the result file, of a failure too."""
    result = {
        "schema": SCHEMA,
        "run": job.run.label,
        "definition": job.definition(),
        "resolved": to_tree(config),
        "command": _command(job),
    }
    resumed = (job.folder / "config.json").exists()
    print(f"{job}: {'goes on' if resumed else 'starts'}", flush=True)
    (job.folder / TRACEBACK).unlink(missing_ok=True)
    cli.use_compilation_cache(config.compilation_cache)
    try:
        return result | {"status": "done"} | _outcome(job, config, allow, resumed=resumed)
    except FusionError as error:
        line = " ".join(str(error).split())
    # Whatever a library or a configuration's own class raises: the other runs can still be done.
    except Exception as error:
        line = _keep_traceback(job, error)
    print(f"{job}: failed: {line}", flush=True)
    return result | {"status": "failed", "error": line}


def _outcome(job: Job, config: Config, allow: Sequence[str], *, resumed: bool) -> dict[str, Any]:
    """Train, evaluate, and what a result file says of both."""
    start = time.monotonic()
    train(config, job.folder)
    report = evaluate(job.folder, data=config.data, allow=allow)
    correct = keep_records(job, report["data"]["split"])
    seconds = time.monotonic() - start
    since = " since it was resumed" if resumed else ""
    print(f"{job}: done in {seconds / 60:.1f} min{since}", flush=True)
    return {
        **{key: report["run"][key] for key in ("commit", "hardware", "versions")},
        # What an interrupted run took before is not known.
        "seconds": None if resumed else round(seconds, 1),
        "step": report["run"]["trained_steps"][str(job.seed)],
        "curves": learning_curves(job.folder),
        "correct": correct,
        **{key: report[key] for key in ("data", "training_severity")},
        "cells": report["cells"] + report["joint"],
    }


def _keep_traceback(job: Job, error: Exception) -> str:
    """Write the traceback of an error that is not ours into the job's folder; the error's line."""
    path = job.folder / TRACEBACK
    with writing(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)))
    line = " ".join(first_line(error).split())
    return f"{type(error).__name__}: {line}; the traceback is in {path}"


def learning_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of what a run's log tells by modality, and of its validations."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (seed_folder(folder, 0) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name.startswith(CURVES):
                curves.setdefault(name, []).append((row["step"], float(f"{value:.5g}")))
    return curves


def _command(job: Job) -> str:
    """What makes the same run by hand."""
    overrides = [f"--config.{override}" for override in (*job.overrides, f"seed={job.seed}")]
    words = ["train.py", f"--config={job.run.config}", *overrides, f"--workdir={job.folder}"]
    return shlex.join(words)


def _lock(job: Job) -> Path:
    """The file that a process holds while it is at a job."""
    return job.folder.with_name(f"{job.folder.name}.lock")


def list_jobs(jobs: Sequence[Job]) -> str:
    """A line for each run, seed and fold, how many are done, and the hours that are left."""
    lines, left, seconds = [], [], {}
    for job in jobs:
        state, words = _state(job)
        fold = "" if job.fold is None else f"fold {job.fold} ({job.fold_override})  "
        lines.append(f"{job.run.label}  seed {job.seed}  {fold}{state}  {words}".rstrip())
        finished = job.finished() if state == "done" else None
        if finished is None:
            left.append(job)
        elif finished["seconds"] is not None:
            seconds[job] = finished["seconds"]
    ending = f"; {_time_left(left, seconds)}" if left else ""
    return "\n".join([*lines, f"{len(jobs) - len(left)} of {len(jobs)} done{ending}"])


def _state(job: Job) -> tuple[str, str]:
    """What became of a job, and what there is to say about it."""
    changed = changed_field(job, job.build())
    if changed:
        return "changed", changed
    result = job.read_result()
    if result and result["status"] == "done":
        minutes = "" if result["seconds"] is None else f"{result['seconds'] / 60:.1f} min"
        return "done", minutes
    if _lock(job).exists():  # Else there is nothing to look at, and listing writes nothing.
        with held(_lock(job)) as (_, free):
            if not free:
                return "running", ""
    if result:
        return "failed", result["error"]
    return ("begun" if (job.folder / "config.json").exists() else "missing"), ""


def _time_left(left: Sequence[Job], seconds: Mapping[Job, float]) -> str:
    """Estimate from the wall times of the same run with other seeds, or else of all runs."""
    if not seconds:
        return "the time left is unknown before the first is done"
    total = 0.0
    for job in left:
        same = [value for other, value in seconds.items() if other.run == job.run]
        known = same or list(seconds.values())
        total += sum(known) / len(known)
    return f"about {total / 3600:.2f} h left in one process"


def main() -> None:
    """Do what the command line says; it ends with the exit status of `cli.run`, or 1 (see run)."""
    flags.DEFINE_string("workdir", "runs/experiments", "folder for checkpoints and records")
    flags.DEFINE_string("results", "docs/results", "folder for results and tables")
    flags.DEFINE_list("only", [], "labels of runs: no others (for run and list)")
    flags.DEFINE_list("seeds", [], "seeds: no others (for run and list)")
    flags.DEFINE_list("allow", [], "packages besides fusion_jax whose classes a config may name")
    # Options are --name=value everywhere, so what does not begin with a dash is the action and
    # the definition.
    words = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    cli.run(lambda: _act(words))


def _act(words: Sequence[str]) -> None:
    """One action on one definition."""
    if words[:1] == ["primary"] and len(words) > 1:
        _write_primary(words[1:], Path(flags.FLAGS.results))
        return
    if len(words) != 2 or words[0] not in ACTIONS:
        raise FusionError(
            f"say what to do ({', '.join(ACTIONS)}) and name one definition, such as: "
            "run experiments/av_mnist.toml"
        )
    action, values = words[0], flags.FLAGS
    experiment, results = read_experiment(words[1]), Path(values.results)
    jobs = make_jobs(experiment, workdir=Path(values.workdir), results=results)
    collected = results / f"{experiment.name}.json"
    if action == "run":
        _run(experiment, _selected(jobs, values.only, values.seeds), values.allow)
    elif action == "list":
        print(list_jobs(_selected(jobs, values.only, values.seeds)))
    elif action == "collect":
        _checked_configs(jobs)
        write_json(collected, collect(experiment, jobs))
        print(f"collected: {collected}")
    else:
        _write_page(collected.with_suffix(".md"), render_tables(_read_collected(collected)))


def _write_primary(paths: Sequence[str], results: Path) -> None:
    """The page of the primary comparison of several definitions."""
    names = [read_experiment(path).name for path in paths]
    collected = [_read_collected(results / f"{name}.json") for name in names]
    page, text = render_primary(collected)
    _write_page(results / f"{page}.md", text)


def _read_collected(path: Path) -> Any:
    """What `collect` wrote."""
    if not path.exists():
        raise FusionError(f"{path} is missing: collect it first")
    return read_json(path)


def _write_page(page: Path, text: str) -> None:
    """Write a page and say so."""
    with writing(f"cannot write {page}"):
        page.write_text(text)
    print(f"written: {page}")


def _run(experiment: Experiment, jobs: Sequence[Job], allow: Sequence[str]) -> None:
    """Run; Ctrl-C and SIGTERM end it cleanly, and failures give exit status 1."""
    signal.signal(signal.SIGTERM, _stop)
    # Training notes SIGTERM, saves and stops: Ctrl-C does the same.
    signal.signal(signal.SIGINT, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    failed = run_jobs(jobs, allow=allow)
    for job, error in failed.items():
        print(f"failed: {job}: {error}", file=sys.stderr)
    if failed:
        sys.exit(1)
    print(f"next: python -m fusion_jax.experiments collect {experiment.path}")


def _stop(number: int, frame: Any) -> NoReturn:
    """Outside training there is nothing to save."""
    raise Stopped("stopped: what is finished is kept; the same command goes on")


def _selected(jobs: Sequence[Job], labels: Sequence[str], seeds: Sequence[str]) -> list[Job]:
    """The jobs that --only and --seeds name; names that are none are refused."""
    for flag, given, known in (
        ("only", labels, {job.run.label for job in jobs}),
        ("seeds", seeds, {str(job.seed) for job in jobs}),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise FusionError(
                f"--{flag} names {unknown[0]!r}: there are {', '.join(sorted(known))}"
            )
    return [
        job
        for job in jobs
        if (not labels or job.run.label in labels) and (not seeds or str(job.seed) in seeds)
    ]


if __name__ == "__main__":
    main()
