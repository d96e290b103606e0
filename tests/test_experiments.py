"""Experiments: definitions, result files, what is collected from them, and the tables."""

import dataclasses
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fusion_jax.config import to_tree
from fusion_jax.corruptions.coloured_noise import ColouredNoise
from fusion_jax.corruptions.misalignment import Misalignment
from fusion_jax.errors import FusionError, Stopped
from fusion_jax.evaluation.intervals import bootstrap_weights, seed_interval, seed_p_values
from fusion_jax.evaluation.records import RecordWriter
from fusion_jax.evaluation.tables import render_tables
from fusion_jax.experiment_collect import collect
from fusion_jax.experiment_definition import Endpoint, Primary, Run, read_experiment
from fusion_jax.experiment_primary import render_primary
from fusion_jax.experiment_results import (
    changed_field,
    examples_path,
    keep_records,
    make_jobs,
    pack,
)
from fusion_jax.experiments import _refuse_other_conditions, list_jobs, run_jobs
from fusion_jax.runs import seed_folder
from tests.conftest import ROOT

DEFINITIONS = sorted((ROOT / "experiments").glob("*.toml"))
RESULTS = ROOT / "docs" / "results"
# Of experiments, and one made from several of them (tests/test_dominance.py).
COLLECTED = sorted(path for path in RESULTS.glob("*.json") if path.stem != "dominance")

# The project's own definitions and results


def test_there_are_results_and_definitions():
    assert COLLECTED and {path.stem for path in COLLECTED} <= {path.stem for path in DEFINITIONS}


@pytest.mark.parametrize("path", COLLECTED, ids=lambda path: path.stem)
def test_table_is_generated_from_its_result_file(path):
    assert render_tables(json.loads(path.read_text())) == path.with_suffix(".md").read_text()


@pytest.mark.parametrize("path", COLLECTED, ids=lambda path: path.stem)
def test_results_are_those_of_the_definition(path):
    result = json.loads(path.read_text())
    experiment = read_experiment(ROOT / result["definition"])
    assert (result["name"], result["title"]) == (experiment.name, experiment.title)
    assert result["seeds"] == list(experiment.seeds)
    wanted = [(run.label, run.config, list(run.overrides), run.role) for run in experiment.runs]
    assert wanted == [
        (label, run["config"], run["overrides"], run["role"])
        for label, run in result["runs"].items()
    ]
    named = {one.label: list(one.patterns) for one in experiment.endpoints}
    assert result.get("endpoints", {}).get("patterns", {}) == named


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_every_run_of_a_definition_builds(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = read_experiment(path.relative_to(ROOT))
    assert experiment.name == path.stem
    for job in make_jobs(experiment, workdir=path.parent, results=path.parent):
        if job.seed == experiment.seeds[-1]:
            config = job.build()
            assert (config.seed, config.num_seeds) == (job.seed, 1)


# Definitions

GOOD = """
name = "tiny"
title = "Tiny"
seeds = [0, 1, 4]
reference = "static"

[runs.udml]
config = "configs/av_digits.py"
overrides = ["num_steps=7", "model.encoders.image.hidden=(8,)"]

[runs.static]
config = "configs/av_digits.py:static"

[runs.image]
config = "configs/av_digits.py:static"
role = "alone"
"""


@pytest.fixture
def define(tmp_path, monkeypatch):
    """Reads a definition given as text; configurations count from the project's root."""
    monkeypatch.chdir(ROOT)

    def write(text=GOOD):
        path = tmp_path / "tiny.toml"
        path.write_text(text)
        return read_experiment(path)

    return write


def jobs_of(experiment, tmp_path):
    return make_jobs(experiment, workdir=tmp_path / "runs", results=tmp_path / "results")


def test_definition_is_read(define, tmp_path):
    experiment = define()
    assert experiment.seeds == (0, 1, 4)
    assert [run.role for run in experiment.runs] == ["method", "method", "alone"]
    jobs = jobs_of(experiment, tmp_path)
    assert [str(job) for job in jobs][:4] == [
        "udml seed 0",
        "static seed 0",
        "image seed 0",
        "udml seed 1",
    ]
    assert jobs[-1].folder == tmp_path / "runs/tiny/image/seed_4"
    assert jobs[-1].result == tmp_path / "results/tiny/image_seed4.json"


def test_overrides_reach_their_own_run_alone(define):
    udml, static, _ = define().runs
    config = udml.build(4)
    assert (config.num_steps, config.seed, config.num_seeds) == (7, 4, 1)
    assert config.model.encoders["image"].hidden == (8,)
    assert static.build(0).num_steps != 7
    assert udml.build(0).seed == 0


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('title = "Tiny"', "", "has no title: add it"),
        ('title = "Tiny"', "title = 3", "title is 3: it must be a string"),
        ('title = "Tiny"', 'titel = "T"', "has a field 'titel': there are name, title, seeds"),
        ("[0, 1, 4]", "[0, 1, 0]", "one of them stands there twice"),
        ('title = "Tiny"', 'title = "Tiny"\nfolds = ["a=1"]', "list two or more, or leave it out"),
        ('title = "Tiny"', 'title = "Tiny"\nfolds = ["a=1", "a=1"]', "one of them stands there tw"),
        ('title = "Tiny"', 'title = "Tiny"\nfolds = ["a=1", "a"]', "'a' must read 'field=value'"),
        ("[0, 1, 4]", "[]", "it must list integers from 0 upwards"),
        ("[0, 1, 4]", "[true]", "it must list integers from 0 upwards"),
        ('name = "tiny"', 'name = "../tiny"', "'../tiny': it names files"),
        ("[runs.udml]", '[runs."a b"]', "'a b': it names files"),
        ('reference = "static"', 'reference = "image"', "one of ['udml', 'static']"),
        ('role = "alone"', 'role = "single"', "choose one of ['method', 'alone']"),
        ('"num_steps=7"', '"num_steps"', "'num_steps' must read 'field=value'"),
        ('"num_steps=7"', '"--config.num_steps=7"', "must read 'field=value'"),
        ('"num_steps=7"', '"seed=7"', "overrides seed: seeds are listed once"),
        ("[runs.udml]", "[runs.udml", "cannot be read"),
        ("[runs.udml]", '[endpoints]\n"a|b" = ["clean"]\n[runs.udml]', "it names a row of tables"),
        ("[runs.udml]", "[endpoints]\nall = []\n[runs.udml]", "list patterns of conditions"),
        ("[runs.udml]", '[endpoints]\nall = "*"\n[runs.udml]', "endpoints.all is '*': list"),
        ("[runs.udml]", "[endpoints]\nall = [0.4]\n[runs.udml]", "list patterns of conditions"),
        ('title = "Tiny"', 'title = "Tiny"\nendpoints = ["*"]', "it must be a table"),
    ],
    ids=lambda value: value[-20:],
)
def test_wrong_definitions_are_refused_in_one_line(old, new, expected, define):
    assert GOOD.count(old) == 1
    with pytest.raises(FusionError) as caught:
        define(GOOD.replace(old, new))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "override", "expected"),
    [
        ("configs/av_digits.py", "stepz=3", "--config.stepz=3: there is no field 'stepz' here"),
        ("configs/av_digits.py", "num_steps=x", "--config.num_steps=x"),
        ("configs/av_digits.py", "num_steps=0", "config.num_steps is 0: it must be at least 1"),
        ("configs/av_digits.py:fast", "num_steps=3", "unknown variant 'fast'"),
        ("configs/absent.py", "num_steps=3", "configs/absent.py is missing"),
    ],
    ids=["field", "type", "value", "variant", "file"],
)
def test_configurations_that_cannot_work_are_refused_before_anything_runs(
    config, override, expected, define, tmp_path
):
    experiment = define()
    wrong = dataclasses.replace(experiment.runs[1], config=config, overrides=(override,))
    experiment = dataclasses.replace(experiment, runs=(experiment.runs[0], wrong))
    with pytest.raises(FusionError) as caught:
        run_jobs(jobs_of(experiment, tmp_path))
    assert str(caught.value).startswith("run 'static': ")
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


# Result files

LABELS = {
    ("audio", "image"): ["clean", "noise/image/1", "missing/audio", "missing/image"],
    ("image",): ["clean", "noise/image/1"],
}
NUM = 40


def finish(job, *, correct, modalities=("audio", "image"), labels=None, config=None, **facts):
    """Leave behind what training and evaluating a job leaves: records and a result file."""
    labels, num = labels or LABELS[modalities], correct.shape[1]
    start = 1000 * (job.fold or 0)  # speakers differ by fold, digits are the same
    clusters = {"speaker": start + np.arange(num) // 4, "digit": np.arange(num) % 7}
    writer = RecordWriter(
        seed_folder(job.folder, 0) / "records_test",
        facts={},
        cells=labels,
        identity={"example_id": start + np.arange(num) + 100, **clusters},
    )
    writer.write({"correct": correct})
    writer.finish()
    (job.folder / "run.json").write_text(json.dumps({"data": {"clusters": list(clusters)}}))
    rows = [
        {
            "corruption": "GaussianNoise" if label.startswith("noise") else "none",
            "missing": [label.partition("/")[2]] if label.startswith("missing") else [],
            "strength": "sigma 2" if label.startswith("noise") else None,
            "accuracy": float(values.mean()),
        }
        for label, values in zip(labels, correct, strict=True)
    ]
    result = {
        "schema": 1,
        "run": job.run.label,
        "definition": job.definition(),
        "resolved": to_tree(config or job.build()),
        "command": f"train.py --config={job.run.config}",
        "status": "done",
        "commit": "0123456789ab",
        "hardware": "1 x cpu",
        "versions": {"jax": "0.10.2"},
        "seconds": 90.0,
        "curves": {
            "update_scale/audio": [[1, 1.0], [2, 2.0 - 0.2 * job.seed]],
            "update_scale/image": [[1, 0.5], [2, 0.5]],
            "validation/accuracy": [[2, 0.9]],
        },
        "step": 7,
        "correct": keep_records(job, "test"),
        "data": {"name": "toy", "split": "test", "num_examples": num, "modalities": [*modalities]},
        "training_severity": 0.4,
        "cells": rows,
    }
    job.result.write_text(json.dumps(result | facts))


def drawn(job, num_cells):
    """Correctness that differs by run, seed, condition and example."""
    generator = np.random.default_rng([job.seed, len(job.run.label)])
    rate = np.linspace(0.9, 0.3, num_cells)[:, None]
    return (generator.uniform(size=(num_cells, NUM)) < rate).astype(np.float32)


@pytest.fixture
def evaluated(define, tmp_path):
    """udml ran with seeds 0 and 1, static with 0 and 4, image with 0; udml failed with seed 4."""
    experiment = define()
    jobs = {(job.run.label, job.seed): job for job in jobs_of(experiment, tmp_path)}
    arrays = {}
    for key in [("udml", 0), ("udml", 1), ("static", 0), ("static", 4), ("image", 0)]:
        modalities = ("image",) if key[0] == "image" else ("audio", "image")
        arrays[key] = drawn(jobs[key], len(LABELS[modalities]))
        finish(jobs[key], correct=arrays[key], modalities=modalities)
    failed = {"schema": 1, "status": "failed", "error": "the loss became nan"}
    jobs["udml", 4].result.write_text(json.dumps(failed))
    return experiment, jobs, arrays


def test_collected_numbers_are_those_of_the_records(evaluated):
    experiment, jobs, arrays = evaluated
    result = collect(experiment, list(jobs.values()))
    clusters = {"speaker": np.arange(NUM) // 4, "digit": np.arange(NUM) % 7}
    weights = bootstrap_weights(clusters, num=NUM)

    def check(found, values):
        assert found[0] == pytest.approx(values.mean(), abs=1e-9)
        assert found[1:] == pytest.approx(seed_interval(values, weights), abs=1e-9)

    for i, label in enumerate(LABELS["audio", "image"]):
        both = [arrays["udml", 0][i], arrays["udml", 1][i]]
        check(result["cells"]["udml"][label], np.stack(both))
        # Seed 0 alone was run with both methods.
        paired = arrays["udml", 0][i] - arrays["static", 0][i]
        check(result["differences"]["udml - static"][label], paired[None])
    # Trained on images alone, against the third condition of the methods: audio missing.
    for label in ("udml", "static"):
        assert list(result["alone"][label]) == ["missing/audio (image)"]
        ahead = arrays["image", 0][0] - arrays[label, 0][2]
        check(result["alone"][label]["missing/audio (image)"], ahead[None])
    assert list(result["cells"]["image"]) == LABELS["image",]
    # PCR: the part of the clean accuracy that goes with a modality.
    clean, missing = (np.stack([arrays["udml", s][i] for s in (0, 1)]) for i in (0, 2))
    drop, low, high = result["drops"]["udml"]["missing/audio"]
    assert drop == pytest.approx(1 - missing.mean() / clean.mean(), abs=1e-6)
    assert low < drop < high and set(result["drops"]) == {"udml", "static"}
    assert result["clusters"] == ["digit", "speaker"]
    assert result["runs"]["udml"]["failed"] == {"4": "the loss became nan"}
    assert list(result["runs"]["static"]["made"]) == ["0", "4"]
    json.dumps(result)


def table_cells(page, head):
    """Cells of the lines of the page that begin with these words."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {head} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]


def test_table_says_what_was_not_run(evaluated):
    experiment, jobs, arrays = evaluated
    page = render_tables(collect(experiment, list(jobs.values())))
    assert page.startswith("# Tiny\n")
    assert table_cells(page, "seeds run") == [["2 of 3", "2 of 3", "1 of 3"]]
    cells, differences, drops = table_cells(page, "missing/audio")
    assert "[" in drops[0]
    mean = 100 * np.mean([arrays["udml", 0][2], arrays["udml", 1][2]])
    assert cells[0].startswith(f"{mean:.2f} [") and cells[2] == "not run"
    mean = 100 * np.mean(arrays["udml", 0][2] - arrays["static", 0][2])
    assert differences[0].startswith(f"{mean:.2f} [")
    assert len(table_cells(page, "noise/image/1 (sigma 2)")) == 2
    assert len(table_cells(page, "missing/audio")) == 3  # accuracy, difference, PCR
    assert ["1.450", "0.500"] in table_cells(page, "udml")  # seeds 0 and 1
    made = [row for row in table_cells(page, "static") if len(row) > 2]
    assert [row[:3] for row in made] == [
        ["0", "`train.py --config=configs/av_digits.py:static`", "7"],
        ["1", "not run", "not run"],
        ["4", "`train.py --config=configs/av_digits.py:static`", "7"],
    ]
    assert made[0][3] == "1.5"  # 90 s
    rows = [row for row in table_cells(page, "udml") if len(row) > 2]
    assert rows[2][1] == "failed: the loss became nan"
    assert "Versions: jax 0.10.2." in page
    for line in page.splitlines():
        assert "| |" not in line and "||" not in line, line


def test_table_of_a_run_without_any_seed(evaluated):
    experiment, jobs, _ = evaluated
    for seed in (0, 4):
        jobs["static", seed].result.unlink()
    page = render_tables(collect(experiment, list(jobs.values())))
    assert table_cells(page, "seeds run") == [["2 of 3", "0 of 3", "1 of 3"]]
    cells, _ = table_cells(page, "missing/image")  # accuracy and PCR
    assert cells[1:] == ["not run", "not run"]
    assert "Differences" not in page  # There is nothing to compare with.


# Endpoints

ENDPOINTS = (Endpoint("inside", ("clean", "noise/*/[12]", "clean*")), Endpoint("gone", ("miss*",)))


FOLDED = (
    GOOD.replace("[0, 1, 4]", "[0, 1]").replace(
        'reference = "static"', 'reference = "static"\nfolds = ["eval_every=3", "eval_every=5"]'
    )
    + '\n[endpoints]\nmissing = ["missing/*"]\n'
)


@pytest.fixture
def folded(define, tmp_path):
    """udml and static ran with seed 0 and both folds, udml with seed 1 and the first fold."""
    experiment = define(FOLDED)
    jobs = {(job.run.label, job.seed, job.fold): job for job in jobs_of(experiment, tmp_path)}
    arrays = {}
    for place, key in enumerate(
        [*((m, 0, k) for m in ("udml", "static") for k in (0, 1)), ("udml", 1, 0)]
    ):
        num = NUM - 10 * key[2]
        arrays[key] = (np.random.default_rng(place).uniform(size=(4, num)) < 0.6).astype(np.float32)
        finish(jobs[key], correct=arrays[key])
    return experiment, jobs, arrays


def test_folds_are_jobs_of_their_own(folded, tmp_path):
    experiment, jobs, _ = folded
    assert len(jobs) == 3 * 2 * 2
    job = jobs["udml", 1, 0]
    assert job.result == tmp_path / "results/tiny/udml_seed1_fold0.json"
    assert job.folder == tmp_path / "runs/tiny/udml/seed_1_fold0"
    assert examples_path(job).name == "examples_fold0.npz" and examples_path(job).exists()
    assert [jobs["udml", 1, k].build().eval_every for k in (0, 1)] == [3, 5]
    assert job.definition()["overrides"][-1] == "eval_every=3"
    lines = list_jobs(list(jobs.values())).splitlines()
    assert "udml  seed 1  fold 0 (eval_every=3)  done  1.5 min" in lines
    assert "udml  seed 1  fold 1 (eval_every=5)  missing" in lines
    # The order of the folds names the files: another order is another definition.
    turned = dataclasses.replace(experiment, folds=experiment.folds[::-1])
    other = jobs_of(turned, tmp_path)[0]
    assert "eval_every=3, the definition now says eval_every=5" in changed_field(
        other, other.build()
    )


def test_folds_are_joined_and_a_seed_without_all_of_them_is_left_out(folded):
    experiment, jobs, arrays = folded
    result = collect(experiment, list(jobs.values()))
    joined = {m: np.hstack([arrays[m, 0, k] for k in (0, 1)]) for m in ("udml", "static")}
    speaker = np.concatenate([np.arange(NUM) // 4, 1000 + np.arange(NUM - 10) // 4])
    digit = np.concatenate([np.arange(NUM) % 7, np.arange(NUM - 10) % 7])
    clusters, num = {"speaker": speaker, "digit": digit}, 2 * NUM - 10
    weights = bootstrap_weights(clusters, num=num)
    for i, label in enumerate(LABELS["audio", "image"]):
        found, values = result["cells"]["udml"][label], joined["udml"][i][None]
        assert found == pytest.approx([values.mean(), *seed_interval(values, weights)], abs=1e-7)
    missing = {m: values[2:].mean(axis=0)[None] for m, values in joined.items()}
    difference = missing["udml"] - missing["static"]
    found = result["endpoints"]["by_seed"]["udml - static"]["missing"]
    assert found == pytest.approx([difference.mean()], abs=1e-7)
    # One seed says nothing of others, whatever its examples say.
    assert seed_p_values([difference], clusters, num=num)[0] < 1
    assert result["endpoints"]["p_values"]["udml - static"]["missing"] == [1, 1]
    assert result["data"]["num_examples"] == num
    assert result["incomplete"] == {"udml seed 1": 1}
    # Of seed 0 alone: with seed 1 the mean of audio would be lower.
    assert result["runs"]["udml"]["update_scale"] == pytest.approx({"audio": 1.5, "image": 0.5})
    second = result["by_fold"]["eval_every=5"]["static"]
    assert second["clean"] == pytest.approx(arrays["static", 0, 1][0].mean())
    assert second["missing"] == pytest.approx(arrays["static", 0, 1][2:].mean())
    assert result["by_fold"]["eval_every=5"].keys() == {"udml", "static"}


def test_table_knows_the_folds(folded):
    experiment, jobs, arrays = folded
    page = render_tables(collect(experiment, list(jobs.values())))
    assert "on the 70 examples of 2 folds (not resampled), of the test split of toy" in page
    assert table_cells(page, "seeds run") == [["1 of 2", "1 of 2", "0 of 2"]]
    assert "all folds are finished: udml seed 1: 1 of 2 folds." in page
    by_fold = page.partition("## By fold")[2]
    means = [f"{100 * arrays[m, 0, 1][0].mean():.2f}" for m in ("udml", "static")]
    assert table_cells(by_fold, "5")[0] == ["clean", *means]
    made = [row[:2] + row[3:4] for row in table_cells(by_fold, "udml")]
    assert made == [["0", "3", "7"], ["0", "5", "7"], ["1", "3", "7"], ["1", "5", "not run"]]


def test_folds_without_a_whole_seed_or_under_other_conditions_are_refused(folded):
    experiment, jobs, arrays = folded
    jobs["static", 0, 0].result.unlink()
    jobs["udml", 0, 0].result.unlink()
    with pytest.raises(FusionError, match="no run with all 2 folds of a seed yet"):
        collect(experiment, list(jobs.values()))
    finish(jobs["udml", 0, 0], correct=arrays["udml", 0, 0], labels=["clean", "a", "b", "c"])
    with pytest.raises(FusionError, match="evaluated under other conditions"):
        collect(experiment, list(jobs.values()))


def test_conditions_of_an_endpoint_match_a_pattern_and_count_once():
    labels = ["clean", "noise/audio/0.4", "noise/image/0.8", "joint/audio/0.4+image/0.8", "mixed/1"]
    for patterns, expected in [
        (("clean",), [0]),
        (("noise/*/0.[68]", "noise/*", "clean"), [0, 1, 2]),
        (("*/0.8",), [2, 3]),  # "*" is any text
        (("*0.4*",), [1, 3]),
        (("*",), [0, 1, 2, 3, 4]),
    ]:
        assert Endpoint("a", patterns).conditions(labels) == [labels[i] for i in expected]
    for pattern in ("Clean", "noise", "mixed/0.[68]"):
        with pytest.raises(FusionError) as caught:
            Endpoint("a", ("clean", pattern)).conditions(labels)
        assert str(caught.value).startswith(f"endpoints.a: {pattern!r} matches no condition: there")
        assert "\n" not in str(caught.value)


def test_endpoints_are_read_and_used(evaluated, define):
    _, jobs, _ = evaluated
    text = '[endpoints]\ninside = ["clean", "noise/*/1"]\nbeyond = ["noise/*/0.[68]"]\n[runs.udml]'
    experiment = define(GOOD.replace("[runs.udml]", text))
    assert experiment.endpoints == (
        Endpoint("inside", ("clean", "noise/*/1")),
        Endpoint("beyond", ("noise/*/0.[68]",)),
    )
    with pytest.raises(FusionError, match=r"endpoints\.beyond: 'noise/\*/0\.\[68\]' matches no"):
        collect(experiment, list(jobs.values()))


def test_endpoints_are_means_over_conditions(evaluated):
    experiment, jobs, arrays = evaluated
    without = collect(experiment, list(jobs.values()))
    experiment = dataclasses.replace(experiment, endpoints=ENDPOINTS)
    result = json.loads(json.dumps(collect(experiment, list(jobs.values()))))
    found = result.pop("endpoints")
    assert result == json.loads(json.dumps(without))
    assert found["conditions"] == {
        "inside": ["clean", "noise/image/1"],
        "gone": ["missing/audio", "missing/image"],
    }
    clusters = {"speaker": np.arange(NUM) // 4, "digit": np.arange(NUM) % 7}
    weights = bootstrap_weights(clusters, num=NUM)

    def check(found, values):
        assert found[0] == pytest.approx(values.mean(), abs=1e-7)
        assert found[1:] == pytest.approx(seed_interval(values, weights), abs=1e-6)

    for name, rows in [("inside", [0, 1]), ("gone", [2, 3])]:
        both = [arrays["udml", seed][rows].mean(axis=0) for seed in (0, 1)]
        check(found["accuracies"]["udml"][name], np.stack(both))
        # Seed 0 alone was run with both methods.
        paired = arrays["udml", 0][rows].mean(axis=0) - arrays["static", 0][rows].mean(axis=0)
        check(found["differences"]["udml - static"][name], paired[None])
    check(found["accuracies"]["image"]["inside"], arrays["image", 0][:2].mean(axis=0)[None])
    assert found["accuracies"]["image"]["gone"] is None  # It has no such condition.
    assert list(found["differences"]) == ["udml - static"] == list(found["p_values"])
    # One common seed says nothing of others.
    assert found["p_values"]["udml - static"] == {"inside": [1, 1], "gone": [1, 1]}
    assert found["resamples"] == 10_000


@pytest.fixture
def three_methods(define, tmp_path):
    """static, one that is right where static is wrong, and one that was not run."""
    runs = tuple(Run(name, "configs/av_digits.py:static") for name in ("better", "static", "later"))
    experiment = dataclasses.replace(define(), runs=runs, endpoints=ENDPOINTS, seeds=(0, 1))
    jobs = jobs_of(experiment, tmp_path)
    for job in jobs:
        values = np.zeros((4, NUM), np.float32)
        values[:2, :4] = 1
        values[2:, ::2] = 1
        if job.run.label == "better":
            values[:2, : NUM - 2] = 1
        if job.run.label != "later":
            finish(job, correct=values)
    return experiment, jobs


def test_table_of_endpoints_tells_what_is_certain(three_methods):
    experiment, jobs = three_methods
    page = render_tables(collect(experiment, jobs))
    assert page.index("## Endpoints, named") < page.index("## All conditions")
    assert "* inside: clean, noise/image/1\n* gone: missing/audio, missing/image\n" in page
    accuracies, differences, by_seed = table_cells(page, "inside")
    assert by_seed == ["+85.00, +85.00", "not run"]
    assert accuracies[0].startswith("95.00 [") and accuracies[1].startswith("10.00 [")
    assert accuracies[2] == "not run"
    # No resample is at or below 0: p = 2 / 10001, times 4, since later - static counts as well.
    assert differences[0].startswith("**85.00 [") and differences[0].endswith("]**, p = 0.0008")
    assert differences[1] == "not run"
    # The same examples are right under the other conditions.
    _, differences, _ = table_cells(page, "gone")
    assert differences == ["0.00 [0.00, 0.00], p = 1.0000", "not run"]
    assert "larger of two: from 10000 resamples of seeds x digit x speaker, and from a t" in page
    assert "Holm's method for the 4 differences of this table" in page
    for line in page.splitlines():
        assert "| |" not in line and "||" not in line, line


def test_primary_comparison_is_corrected_over_data_sets(three_methods):
    experiment, jobs = three_methods
    named = dataclasses.replace(experiment, primary=Primary("inside", "better", ("static",)))
    found = collect(named, jobs)
    against, endpoints = found["primary"]["against"]["static"], found["endpoints"]
    assert against["difference"] == endpoints["differences"]["better - static"]["inside"]
    raw, _ = endpoints["p_values"]["better - static"]["inside"]
    assert against["p_value"] == pytest.approx(raw) == pytest.approx(2 / 10001)
    # The smallest of three times 3, the next times 2.
    equal = json.loads(json.dumps(found))
    equal["primary"]["against"]["static"]["p_value"] = 0.02
    name, page = render_primary([equal, found, equal])
    assert name == "primary_better"
    assert page.count(" | +85.00 [") == 3
    assert " | 0.0002 | **0.0006** |" in page and page.count(" | 0.0200 | **0.0400** |") == 2
    # It has to be ahead of both, and of one nothing is known.
    both = Primary("inside", "better", ("static", "later"))
    unknown = collect(dataclasses.replace(experiment, primary=both), jobs)
    _, page = render_primary([unknown])
    assert page.splitlines()[-1].endswith(" | not run | not run | not run |")
    for wrong, message in (
        ([found, unknown], "different primary"),
        ([{"definition": "a.toml"}], "names no"),
    ):
        with pytest.raises(FusionError, match=message):
            render_primary(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('endpoint = "outside"\nrun = "udml"\nagainst = ["static"]', "endpoint is 'outside'"),
        ('endpoint = "inside"\nrun = "image"\nagainst = ["static"]', "names 'image'"),
        ('endpoint = "inside"\nrun = "udml"\nagainst = ["udml"]', "against must list other"),
    ],
    ids=["endpoint", "run", "itself"],
)
def test_wrong_primary_comparisons_are_refused(text, expected, define):
    with pytest.raises(FusionError, match=expected):
        define(f'{GOOD}\n[endpoints]\ninside = ["clean"]\n\n[primary]\n{text}\n')


def test_table_tells_how_well_signals_know_a_condition(evaluated):
    experiment, jobs, _ = evaluated
    for seed, value in ((0, 0.9), (1, 0.7)):
        result = json.loads(jobs["udml", seed].result.read_text())
        for row in result["cells"]:
            noisy = row["strength"] is not None
            row |= {"modality": "image" if noisy else None, "severity": float(noisy)}
            row["separation"] = {"Agreement": {"audio": 0.5, "image": value}}
        jobs["udml", seed].result.write_text(json.dumps(result))
    found = collect(experiment, list(jobs.values()))
    label = "noise/image/1"
    assert found["separation"] == {"udml": {label: {"Agreement": pytest.approx(0.8)}}}
    page = render_tables(found)
    assert "| condition | udml: Agreement |" in page and f"| {label} | 0.80 |" in page


def test_endpoints_wait_for_a_method(evaluated):
    experiment, jobs, _ = evaluated
    experiment = dataclasses.replace(experiment, endpoints=ENDPOINTS)
    # Without the reference there are accuracies, and no comparison.
    for seed in (0, 4):
        jobs["static", seed].result.unlink()
    result = collect(experiment, list(jobs.values()))
    assert result["endpoints"]["p_values"] == {"udml - static": {"inside": None, "gone": None}}
    page = render_tables(result)
    accuracies, differences, by_seed = table_cells(page, "gone")
    assert by_seed == ["not run"]
    assert "[" in accuracies[0] and accuracies[1:] == ["not run", "not run"]
    assert differences == ["not run"]
    # A model that was trained alone does not say which conditions there are.
    for seed in (0, 1):
        jobs["udml", seed].result.unlink()
    result = collect(experiment, list(jobs.values()))
    assert "endpoints" not in result and "Endpoints" not in render_tables(result)


def test_nothing_is_collected_from_nothing(define, tmp_path):
    experiment = define()
    with pytest.raises(FusionError, match="has no result yet"):
        collect(experiment, jobs_of(experiment, tmp_path))


def test_a_table_needs_no_work_folder(evaluated, tmp_path):
    experiment, jobs, _ = evaluated
    before = collect(experiment, list(jobs.values()))
    shutil.rmtree(tmp_path / "runs")
    assert collect(experiment, list(jobs.values())) == before


def test_records_must_be_those_of_the_result(evaluated):
    experiment, jobs, arrays = evaluated
    job = jobs["udml", 1]
    good = json.loads(job.result.read_text())

    def refused(**changed):
        job.result.write_text(json.dumps(good | changed))
        with pytest.raises(FusionError) as caught:
            collect(experiment, list(jobs.values()))
        assert "remove it to run udml seed 1 again" in str(caught.value)
        return str(caught.value)

    other = good["correct"] | {"clean": pack(arrays["udml", 1][0] == 0)}
    assert "records that are not its accuracies" in refused(correct=other)
    assert "damaged records" in refused(correct=good["correct"] | {"clean": "a" * 8})
    cut = good["correct"] | {"clean": pack(np.ones(8, bool))}
    assert "damaged records: 1 bytes for 40 examples" in refused(correct=cut)
    del good["correct"]
    assert "holds no per-example records" in refused()
    examples_path(job).unlink()
    with pytest.raises(FusionError, match=r"cannot read .*examples.npz: .*bring it back"):
        collect(experiment, list(jobs.values()))


def test_conditions_that_not_all_seeds_have_are_left_out(evaluated):
    experiment, jobs, arrays = evaluated
    before = collect(experiment, list(jobs.values()))
    # In another order too: rows go by their names.
    labels = ["correlated/1", *LABELS["audio", "image"][::-1]]
    whole = np.concatenate([1 - arrays["udml", 1][:1], arrays["udml", 1][::-1]])
    finish(jobs["udml", 1], correct=whole, labels=labels)
    after = collect(experiment, list(jobs.values()))
    assert after["cells"] == before["cells"] and after["differences"] == before["differences"]


def test_runs_on_other_examples_or_conditions_are_not_compared(evaluated):
    experiment, jobs, arrays = evaluated
    finish(jobs["udml", 1], correct=arrays["udml", 1], labels=["clean", "a", "b", "c"])
    with pytest.raises(FusionError, match="udml seed 1 was evaluated under other conditions"):
        collect(experiment, list(jobs.values()))
    with pytest.raises(FusionError, match="udml seed 1 was evaluated on other examples"):
        finish(jobs["udml", 1], correct=arrays["udml", 1][:, :36])


# Finished, changed, running


def test_finished_jobs_are_left_alone(define, tmp_path, capsys):
    jobs = jobs_of(define(), tmp_path)
    for job in jobs:
        finish(job, correct=drawn(job, 4))
    before = {job: job.result.read_bytes() for job in jobs}
    assert run_jobs(jobs) == {}
    assert capsys.readouterr().out.count("has its result") == 9
    assert {job: job.result.read_bytes() for job in jobs} == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"overrides": ("num_steps=8",)},
            "overrides[0] = num_steps=7, the definition now says num",
        ),
        (
            {"config": "configs/av_digits.py:static"},
            "config = configs/av_digits.py, the definition",
        ),
    ],
    ids=["override", "config"],
)
def test_a_changed_definition_is_refused(change, expected, define, tmp_path):
    run = Run("udml", "configs/av_digits.py", ("num_steps=7",))
    experiment = dataclasses.replace(define(), runs=(run,))
    job = jobs_of(experiment, tmp_path)[0]
    finish(job, correct=drawn(job, 4))
    changed = dataclasses.replace(job, run=dataclasses.replace(run, **change))
    before = job.result.read_bytes()
    with pytest.raises(FusionError) as caught:
        run_jobs([changed])
    assert expected in str(caught.value) and str(job.result) in str(caught.value)
    assert job.result.read_bytes() == before


def test_a_changed_config_file_is_a_changed_definition(define, tmp_path):
    (job, *_) = jobs_of(define(), tmp_path)
    config = job.run.build(0)
    config.optimizer.learning_rate = 0.5
    finish(job, correct=drawn(job, 4), config=config)
    found = changed_field(job, job.run.build(0))
    assert "config.optimizer.learning_rate = 0.5, the definition now says 0.001" in found
    assert "changed" in list_jobs([job])


def test_a_library_that_grows_leaves_results_valid(define, tmp_path):
    (job, *_) = jobs_of(define(), tmp_path)
    tree = to_tree(job.run.build(0))
    del tree["optimizer"]["clip_norm"]  # a field that came later
    tree["optimizer"]["momentum"] = 0.9  # a field that is gone
    tree["fusion"] = {"$class": "fusion_jax.old_place.SumFusion"}
    tree["compilation_cache"] = "elsewhere"
    finish(job, correct=drawn(job, 4), resolved=tree)
    assert changed_field(job, job.run.build(0)) is None
    # A new field that is set is a change, though the result cannot know it.
    config = job.run.build(0)
    config.optimizer.clip_norm = 0.5
    assert "config.optimizer.clip_norm" in changed_field(job, config)
    tree["model"]["fusion"]["$class"] = "fusion_jax.fusion.concat.ConcatFusion"
    finish(job, correct=drawn(job, 4), resolved=tree)
    assert "config.model.fusion.$class = ConcatFusion" in changed_field(job, job.run.build(0))
    del tree["model"]["encoders"]["audio"]  # a modality is no field
    tree["model"]["fusion"]["$class"] = "fusion_jax.fusion.sum.SumFusion"
    finish(job, correct=drawn(job, 4), resolved=tree)
    assert "config.model.encoders.audio" in changed_field(job, job.run.build(0))


def test_a_new_kind_of_corruption_leaves_results_valid(define, tmp_path):
    (job, *_) = jobs_of(define(), tmp_path)
    config = job.run.build(0)
    config.unseen = {"audio": (ColouredNoise(),)}
    finish(job, correct=drawn(job, 4), config=config)
    more = dataclasses.replace(config, unseen={"audio": (ColouredNoise(), Misalignment())})
    assert changed_field(job, more) is None
    more.unseen["image"] = (Misalignment(),)
    assert changed_field(job, more) is None
    # What the result has must still be there, and be the same.
    assert "unseen" in changed_field(job, dataclasses.replace(config, unseen={}))
    other = dataclasses.replace(config, unseen={"audio": (ColouredNoise(exponent=2.0),)})
    assert "exponent = 1.0, the definition now says 2.0" in changed_field(job, other)


def test_seeds_under_other_conditions_are_refused_before_they_run(define, tmp_path):
    jobs = jobs_of(define(), tmp_path)
    first, second = [job for job in jobs if job.run == jobs[0].run][:2]
    finish(first, correct=drawn(first, 4))
    config = first.run.build(0)
    _refuse_other_conditions({first: config, second: config})
    config.unseen = {"audio": (ColouredNoise(),)}
    expected = r"config\.unseen = nothing, the definition now says audio: ColouredNoise: undo"
    with pytest.raises(FusionError, match=expected):
        _refuse_other_conditions({first: config, second: config})
    _refuse_other_conditions({first: config})  # Finished: nothing would be run.


def test_a_folder_begun_with_another_configuration_is_refused(define, tmp_path):
    (job, *_) = jobs_of(define(), tmp_path)
    config = job.run.build(0)
    config.batch_size = 3
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").write_text(json.dumps(to_tree(config)))
    with pytest.raises(FusionError, match=r"config.batch_size = 3, .* says 64: .* to run it anew"):
        run_jobs([job])


def test_list_tells_states_and_the_time_left(evaluated):
    _, jobs, _ = evaluated
    order = [jobs[key] for key in jobs]
    finish(jobs["udml", 1], correct=drawn(jobs["udml", 1], 4), seconds=270.0)
    finish(jobs["image", 0], correct=drawn(jobs["image", 0], 4), seconds=None)
    (jobs["static", 1].folder).mkdir(parents=True)
    config = jobs["static", 1].run.build(1)
    (jobs["static", 1].folder / "config.json").write_text(json.dumps(to_tree(config)))
    lock = jobs["image", 1].folder.with_name("seed_1.lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lines = list_jobs(order).splitlines()
    states = {tuple(line.split("  ")[:2]): line.split("  ")[2:] for line in lines[:-1]}
    assert states["udml", "seed 0"] == ["done", "1.5 min"]
    assert states["udml", "seed 4"] == ["failed", "the loss became nan"]
    assert states["static", "seed 1"] == ["begun"]
    assert states["image", "seed 0"] == ["done"]
    assert states["image", "seed 1"] == ["running"]
    assert states["image", "seed 4"] == ["missing"]
    # udml took (90 + 270) / 2 = 180 s, static 90 s, so one udml and one static take 270 s. image is
    # not known and counts the mean of all, (90 + 270 + 90 + 90) / 4 = 135 s, twice: 540 s in all.
    assert lines[-1] == "5 of 9 done; about 0.15 h left in one process"
    assert not jobs["image", 4].folder.parent.joinpath("seed_4.lock").exists()


def test_a_job_that_another_process_is_at_is_left_to_it(define, tmp_path, capsys):
    (job, *_) = jobs_of(define(), tmp_path)
    job.folder.parent.mkdir(parents=True)
    with job.folder.with_name("seed_0.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run_jobs([job]) == {}
    assert capsys.readouterr().out == "udml seed 0: another process is at it\n"
    assert not job.result.exists() and not job.folder.exists()


def test_a_damaged_result_is_refused(define, tmp_path):
    (job, *_) = jobs_of(define(), tmp_path)
    job.result.parent.mkdir(parents=True)
    job.result.write_text('{"schema": 1')
    with pytest.raises(FusionError, match=r"udml_seed0\.json is damaged"):
        run_jobs([job])
    job.result.write_text('{"schema": 0}')
    with pytest.raises(FusionError, match="no result of this version"):
        run_jobs([job])


# Runs that fail in other ways

FAILING = """
import dataclasses
import runpy

from fusion_jax.errors import FusionError, Stopped


@dataclasses.dataclass
class Data:
    def source(self, split):
        raise KIND("no such\\nthing")


def get_config():
    config = runpy.run_path("configs/av_digits.py")["get_config"]()
    return dataclasses.replace(config, data=Data())
"""


@pytest.fixture
def failing(define, tmp_path):
    """Two runs; reading the data of the first raises what is asked for, the second is refused."""

    def make(kind):
        path = tmp_path / "failing.py"
        path.write_text(FAILING.replace("KIND", kind))
        wrong = Run("wrong", "configs/av_digits.py:static", ("data.modalities=('image',)",))
        runs = (Run("failing", str(path)), wrong)
        return jobs_of(dataclasses.replace(define(), runs=runs, seeds=(0,)), tmp_path)

    return make


def test_an_unforeseen_error_leaves_its_traceback_and_the_others_run(failing, capsys):
    jobs = failing("ZeroDivisionError")
    errors = run_jobs(jobs)
    path = jobs[0].folder / "traceback.txt"
    line = f"ZeroDivisionError: no such; the traceback is in {path}"
    assert list(errors) == jobs and errors[jobs[0]] == line
    assert f"failing seed 0: failed: {line}" in capsys.readouterr().out
    assert 'raise ZeroDivisionError("no such' in path.read_text()
    result = jobs[0].read_result()
    assert (result["status"], result["error"]) == ("failed", line)
    # What the library foresees needs no traceback, and an old one is not left behind.
    assert not (jobs[1].folder / "traceback.txt").exists()
    jobs = failing("FusionError")
    assert run_jobs(jobs)[jobs[0]] == "no such thing" and not path.exists()


@pytest.mark.parametrize("kind", [Stopped, KeyboardInterrupt])
def test_what_stops_a_run_stops_the_queue(kind, failing):
    jobs = failing(kind.__name__)
    with pytest.raises(kind):
        run_jobs(jobs)
    assert not any(job.result.exists() for job in jobs)


# Real processes, killed, stopped and failing

TINY = """
name = "tiny"
title = "Tiny"
seeds = [0, 1]
reference = "static"

[runs.udml]
config = "configs/av_digits.py:udml"
overrides = [SMALL]

[runs.broken]
config = "configs/av_digits.py:static"
overrides = ["data.modalities=('image',)", SMALL]

[runs.static]
config = "configs/av_digits.py:static"
overrides = [SMALL]
"""
SMALL = """
"num_steps=9", "batch_size=16", "eval_every=3", "log_every=1", "evaluation_severities=(1.0,)",
"model.encoders.audio.widths=(8,)", "model.encoders.image.hidden=(8,)"
"""


class Runner:
    """The program on one definition, with folders of its own."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        folder.mkdir()
        self.definition = folder / "tiny.toml"
        self.definition.write_text(TINY.replace("SMALL", SMALL.strip()))
        self.results = folder / "results" / "tiny"

    def start(self, action, *flags):
        arguments = [action, str(self.definition), *flags]
        arguments += [f"--workdir={self.folder / 'runs'}", f"--results={self.folder / 'results'}"]
        return subprocess.Popen(
            [sys.executable, "-m", "fusion_jax.experiments", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, action, *flags):
        """Exit status, standard output, and standard error without the progress lines."""
        process = self.start(action, *flags)
        out, err = process.communicate(timeout=300)
        lines = [line for line in err.splitlines() if "examples/s" not in line]
        return process.returncode, out, lines

    def steps_logged(self, label):
        """Steps in the log of a run with seed 0."""
        log = self.folder / "runs" / "tiny" / label / "seed_0" / "seed_0" / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def end_in_training(self, label, number, flags=()):
        """Start it and send a signal in the middle of training a run; its status and output."""
        process = self.start("run", "--seeds=0", *flags)
        before, deadline = self.steps_logged(label), time.monotonic() + 300
        while self.steps_logged(label) < before + 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def numbers(self):
        """What each run came to: condition by condition, and at which step."""
        found = {}
        for path in sorted(self.results.glob("*.json")):
            result = json.loads(path.read_text())
            if result["status"] == "done":
                found[path.stem] = (result["step"], result["cells"])
        return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, program_environment):
    """A runner whose first seed is done; it also fills the compilation cache."""
    folder = tmp_path_factory.mktemp("experiment") / "whole"
    runner = Runner(folder, program_environment | {"PYTHONPATH": str(ROOT)})
    runner.first = runner("run", "--seeds=0")
    return runner


@pytest.mark.slow
def test_a_failing_run_is_reported_and_the_others_finish(uninterrupted):
    status, out, errors = uninterrupted.first
    cause = "the model's modalities are ['audio', 'image'], the data's ['image']"
    assert status == 1
    (line,) = errors
    assert line.startswith(f"failed: broken seed 0: {cause}")
    assert "udml seed 0: done in" in out and "static seed 0: done in" in out
    names = sorted(path.name for path in uninterrupted.results.glob("*.json"))
    assert names == ["broken_seed0.json", "static_seed0.json", "udml_seed0.json"]
    broken = json.loads((uninterrupted.results / names[0]).read_text())
    assert broken["status"] == "failed" and broken["error"].startswith(cause)
    assert list(uninterrupted.numbers()) == ["static_seed0", "udml_seed0"]
    # What one would type to get the same run; the report of the folder says the same numbers.
    udml = json.loads((uninterrupted.results / "udml_seed0.json").read_text())
    assert udml["command"].startswith(
        "train.py --config=configs/av_digits.py:udml --config.num_steps=9 "
    )
    report = json.loads((uninterrupted.folder / "runs/tiny/udml/seed_0/report.json").read_text())
    assert udml["cells"] == report["cells"] + report["joint"] and udml["seconds"] > 0


@pytest.mark.slow
def test_an_unforeseen_error_gives_the_same_exit_status(tmp_path, program_environment):
    runner = Runner(tmp_path / "failing", program_environment | {"PYTHONPATH": str(ROOT)})
    config = runner.folder / "failing.py"
    config.write_text(FAILING.replace("KIND", "ZeroDivisionError"))
    text = runner.definition.read_text().replace("configs/av_digits.py:udml", str(config))
    runner.definition.write_text(text)
    status, out, errors = runner("run", "--seeds=0", "--only=udml,broken")
    assert status == 1 and "broken seed 0: failed: the model's modalities" in out
    assert [line.split(": ")[:3] for line in errors] == [
        ["failed", "udml seed 0", "ZeroDivisionError"],
        [
            "failed",
            "broken seed 0",
            "the model's modalities are ['audio', 'image'], the data's ['image']",
        ],
    ]


@pytest.mark.slow
def test_finished_runs_are_skipped_and_failed_ones_tried_again(uninterrupted):
    before = {path.name: path.stat().st_mtime_ns for path in uninterrupted.results.iterdir()}
    status, out, errors = uninterrupted("run", "--seeds=0")
    assert status == 1 and len(errors) == 1
    assert "udml seed 0: has its result" in out and "broken seed 0: starts" in out
    after = {path.name: path.stat().st_mtime_ns for path in uninterrupted.results.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"broken_seed0.json"}
    status, out, _ = uninterrupted("run", "--seeds=0", "--only=static,udml")
    assert status == 0 and "next: python -m fusion_jax.experiments collect" in out


@pytest.mark.slow
def test_collected_table_says_what_was_not_run(uninterrupted):
    for action in ("collect", "table"):
        status, _, errors = uninterrupted(action)
        assert (status, errors) == (0, [])
    page = uninterrupted.results.with_suffix(".md").read_text()
    assert table_cells(page, "seeds run") == [["1 of 2", "0 of 2", "1 of 2"]]
    collected = json.loads(uninterrupted.results.with_suffix(".json").read_text())
    (clean,) = [cells for cells in table_cells(page, "clean") if len(cells) == 3]
    for label, cell in zip(("udml", "broken", "static"), clean, strict=True):
        if label == "broken":
            assert cell == "not run"
            continue
        accuracy = uninterrupted.numbers()[f"{label}_seed0"][1][0]["accuracy"]
        assert collected["cells"][label]["clean"][0] == pytest.approx(accuracy, abs=1e-9)
        assert cell.startswith(f"{100 * accuracy:.2f} [")
    made = table_cells(page, "broken")
    assert made[0][1].startswith("failed: the model's modalities") and made[1][1] == "not run"
    status, out, _ = uninterrupted("list")
    assert status == 0 and "static  seed 1  missing" in out and "2 of 6 done; about 0.0" in out


@pytest.mark.slow
def test_killed_and_stopped_runs_end_as_if_nothing_had_happened(
    uninterrupted, tmp_path, program_environment
):
    runner = Runner(tmp_path / "killed", uninterrupted.environment)
    only = "--only=udml,static"
    status, out, _ = runner.end_in_training("udml", signal.SIGKILL, [only])
    assert status == -signal.SIGKILL and "udml seed 0: starts" in out
    assert not runner.results.exists()
    assert 2 <= runner.steps_logged("udml")
    # Ctrl-C in the other run, after the first one went on and finished.
    status, out, err = runner.end_in_training("static", signal.SIGINT, [only])
    assert "udml seed 0: goes on" in out and "udml seed 0: done" in out
    assert status == 143 and "Traceback" not in err
    assert "saved; the same command goes on" in err.splitlines()[-1]
    assert list(runner.numbers()) == ["udml_seed0"]

    status, out, errors = runner("run", "--seeds=0", only)
    assert (status, errors) == (0, [])
    assert "udml seed 0: has its result" in out and "static seed 0: goes on" in out
    assert runner.numbers() == uninterrupted.numbers()
    result = json.loads((runner.results / "static_seed0.json").read_text())
    assert result["seconds"] is None  # The time before the interruption is not known.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--only=udlm"], "--only names 'udlm': there are broken, static, udml"),
        (["run", "--seeds=7"], "--seeds names '7': there are 0, 1"),
        (["table"], "tiny.json is missing: collect it first"),
        (["fly"], "say what to do (run, list, collect, table, primary)"),
        (["run", "--onyl=udml"], "Unknown command line flag 'onyl'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(arguments, expected, tmp_path, program_environment):
    runner = Runner(tmp_path / "wrong", program_environment | {"PYTHONPATH": str(ROOT)})
    status, _, errors = runner(*arguments)
    assert status == 2
    (line,) = errors
    assert line.startswith("error: ") and expected in line
    assert [path.name for path in runner.folder.iterdir()] == ["tiny.toml"]
