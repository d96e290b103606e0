"""The grid's machinery: parts that fit the memory, records on disk, resuming, and any function."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.cells import Cell, Condition, Conditions, cell_label, cross_cells
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.impulse_noise import ImpulseNoise
from fusion_jax.data.loader import eval_batches
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.evaluate import evaluate_function
from fusion_jax.evaluation.grid import (
    evaluate_grid,
    grid_chunks,
    make_function_grid_program,
    make_grid_program,
)
from fusion_jax.evaluation.records import Records, RecordWriter
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.sources import ArraySource
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.parallel import DataParallel

NAMES = ("left", "right")
CORRUPTIONS = {name: (GaussianNoise(deviation=1.0), ImpulseNoise()) for name in NAMES}
CONDITIONS = Conditions(
    {name: kinds[0] for name, kinds in CORRUPTIONS.items()},
    {name: kinds[1:] for name, kinds in CORRUPTIONS.items()},
    (0.2, 0.6, 1.0),
    0.2,
)


@functools.cache
def source(num=20):
    generator = np.random.default_rng(0)
    target = generator.integers(0, 3, num)
    inputs = {
        name: (2 * np.eye(3)[target] + generator.normal(size=(num, 3))).astype(np.float32)
        for name in NAMES
    }
    present = np.ones((num, 2), bool)
    present[::7, 1] = False
    return ArraySource(inputs, target, num_classes=3, present=present, first_id=50)


MODEL = FusionModel(
    encoders={name: MLPEncoder(hidden=(4,), features=4) for name in NAMES},
    scheduler=StaticScheduler(),
    fusion=SumFusion(),
    head=ClassificationHead(3),
)


@functools.cache
def variables():
    record = source()[np.arange(2)]
    return MODEL.init(jax.random.key(0), record["inputs"], record["present"], train=False)


@functools.cache
def program():
    compiled = DataParallel(jax.devices()[:1]).evaluation
    return make_grid_program(MODEL, Classification(), CORRUPTIONS, compiled=compiled)


def run(cells, chosen=None, **options):
    batches = eval_batches(source(), batch_size=8)
    arguments = dict(cells=cells, key=jax.random.key(1), **options)
    return evaluate_grid(chosen or program(), variables(), batches, **arguments)


def test_the_joint_grid_meets_every_condition_of_one_modality_with_every_one_of_the_other():
    kinds = {name: ["GaussianNoise", "ImpulseNoise"] for name in NAMES}
    cells = cross_cells(NAMES, corruptions=kinds, severities=(0.5, 1.0))
    # Clean, 2 x 2 corrupted or missing: 6 states each, but not both missing.
    assert len(cells) == len(set(cells)) == 6 * 6 - 1
    assert cells[0] == Cell()
    labels = [cell_label(cell, {"left": "GaussianNoise"}) for cell in cells]
    assert len(set(labels)) == len(labels)
    assert {"missing/right", "noise/left/0.5", "ImpulseNoise/left/1"} <= set(labels)
    assert {"joint/left/0.5+ImpulseNoise/right/1", "joint/left/1+missing/right"} <= set(labels)
    # Of three modalities, every pair with the third clean.
    three = cross_cells("abc", corruptions={n: ["N"] for n in "abc"}, severities=(1.0,))
    assert len(three) == 1 + 3 * 2 + 3 * 4
    assert all(len(cell.noise) + len(cell.missing) <= 2 for cell in three)
    assert cross_cells("a", corruptions={"a": ["N"]}, severities=(1.0,)) == [
        Cell(),
        Cell((("a", Condition("N", 1.0)),)),
    ]


def test_the_standard_grid_comes_first_in_the_joint_one():
    standard, joint = CONDITIONS.cells(NAMES), CONDITIONS.cells(NAMES, "joint")
    assert joint[: len(standard)] == standard and len(set(joint)) == len(joint)
    # 1 + 2 kinds x 3 severities + missing: 8 states each, but not both missing; two mixed cells
    # and two correlated ones.
    assert len(joint) == 8 * 8 - 1 + 4
    with pytest.raises(FusionError, match="no grid 'full': choose one of"):
        CONDITIONS.cells(NAMES, "full")


@pytest.mark.parametrize("memory", [1, 3 * 3 * 8 * 5 * 4 * 2])
@pytest.mark.slow
def test_results_do_not_depend_on_how_many_conditions_are_held_at_once(memory):
    cells = CONDITIONS.cells(NAMES, "joint")
    for whole, parts in zip(run(cells), run(cells, memory=memory), strict=True):
        np.testing.assert_array_equal(whole.records["correct"], parts.records["correct"])
        np.testing.assert_allclose(whole.records["nll"], parts.records["nll"], atol=1e-6)
        np.testing.assert_array_equal(whole.noise_level, parts.noise_level)
        np.testing.assert_array_equal(whole.present, parts.present)


def test_programs_are_traced_once_whatever_the_number_of_cells():
    traced = []

    def compiled(function, keep_rows=False):
        def counted(*args):
            traced.append(function)
            return function(*args)

        return DataParallel(jax.devices()[:1]).evaluation(counted, keep_rows=keep_rows)

    counting = make_grid_program(MODEL, Classification(), CORRUPTIONS, compiled=compiled)
    run(CONDITIONS.cells(NAMES, "joint"), counting)
    # Encoding each modality, and deciding.
    assert len(traced) == 3
    # In parts too: all of them have one shape.
    traced.clear()
    again = make_grid_program(MODEL, Classification(), CORRUPTIONS, compiled=compiled)
    run(CONDITIONS.cells(NAMES, "joint"), again, memory=3 * 3 * 8 * 5 * 4 * 2)
    assert len(traced) == 3


def test_a_function_is_evaluated_as_the_model_it_is():
    def predict(inputs, present):
        return MODEL.apply(variables(), inputs, present, train=False).prediction

    cells = CONDITIONS.cells(NAMES, "joint")
    chosen = make_function_grid_program(
        predict,
        NAMES,
        Classification(),
        CORRUPTIONS,
        compiled=DataParallel(jax.devices()[:1]).evaluation,
    )
    for direct, model in zip(run(cells, chosen), run(cells), strict=True):
        np.testing.assert_allclose(direct.records["nll"], model.records["nll"], atol=1e-6)
        np.testing.assert_allclose(direct.weights, model.weights, atol=1e-7)
        assert direct.signals == {}


def test_a_function_sees_zeros_where_a_modality_is_absent():
    def predict(inputs, present):
        seen = jnp.stack([jnp.abs(inputs[name]).sum(axis=-1) for name in NAMES], axis=-1)
        hidden = jnp.any((seen > 0) & ~present, axis=-1)
        return jnp.where(hidden[:, None], jnp.nan, jnp.zeros((len(hidden), 3)))

    chosen = make_function_grid_program(
        predict,
        NAMES,
        Classification(),
        CORRUPTIONS,
        compiled=lambda f, keep_rows=False: jax.jit(f),
    )
    for cell in run(CONDITIONS.cells(NAMES, "joint"), chosen):
        assert np.isfinite(cell.records["nll"]).all()


def test_evaluating_a_function_writes_a_report(tmp_path):
    def predict(inputs, present):
        return inputs["left"] + inputs["right"]

    report = evaluate_function(
        predict,
        source(),
        tmp_path / "made" / "here",
        corruptions=CONDITIONS.trained,
        unseen=CONDITIONS.unseen,
        severities=(0.5, 1.0),
        batch_size=8,
        name="toy",
    )
    folder = tmp_path / "made" / "here"
    assert json.loads((folder / "report.json").read_text()) == report
    assert "toy" in (folder / "report.html").read_text()
    record = source()[np.arange(20)]
    clean = (record["inputs"]["left"] + record["inputs"]["right"]).argmax(axis=-1)
    here = record["present"].all(axis=-1)
    records = Records(folder / "seed_0" / "records_test")
    np.testing.assert_array_equal(
        records["correct"][records.cell("clean")][here], (clean == record["target"])[here]
    )
    with pytest.raises(FusionError, match="corruptions name 'middle'; the source's modalities"):
        evaluate_function(
            predict, source(), folder, corruptions={"middle": GaussianNoise()}, batch_size=8
        )


def chunks(first=0):
    return grid_chunks(
        program(),
        variables(),
        eval_batches(source(), batch_size=8, first=first),
        cells=CONDITIONS.cells(NAMES),
        key=jax.random.key(1),
    )


def writer(folder, **facts):
    labels = [cell_label(cell, CONDITIONS.names) for cell in CONDITIONS.cells(NAMES)]
    identity = {"example_id": np.arange(50, 70), "target": source()[np.arange(20)]["target"]}
    return RecordWriter(folder, facts=facts, cells=labels, identity=identity)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_records_of_a_resumed_grid_have_the_bytes_of_an_uninterrupted_one(tmp_path):
    whole = writer(tmp_path / "whole", step=3)
    for chunk in chunks():
        whole.write(chunk)
    whole.finish()
    stopped = writer(tmp_path / "parts", step=3)
    stopped.write(next(chunks()))
    with pytest.raises(FusionError, match="no finished records"):
        Records(tmp_path / "parts")
    again = writer(tmp_path / "parts", step=3)
    assert again.rows == 8
    for chunk in chunks(first=again.rows):
        again.write(chunk)
    again.finish()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    records = Records(tmp_path / "parts")
    assert records["correct"].shape == (len(records.cells), 20)
    assert set(records.of_cells()) == set(records) - {"example_id", "target"}
    direct = run(CONDITIONS.cells(NAMES))
    number = records.cell("noise/left/0.6")
    np.testing.assert_array_equal(records["nll"][number], direct[number].records["nll"])
    with pytest.raises(FusionError, match="no cell 'noise/middle/1'"):
        records.cell("noise/middle/1")


def test_records_of_anything_else_are_not_gone_on_with(tmp_path):
    stopped = writer(tmp_path, step=3)
    stopped.write(next(chunks()))
    assert writer(tmp_path, step=4).rows == 0
    # And what was there is gone: nothing of the old step may be read as the new one's.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example_id.npy", "target.npy"]
    done = writer(tmp_path, step=4)
    for chunk in chunks():
        done.write(chunk)
    done.finish()
    # Finished records are evaluated anew.
    assert writer(tmp_path, step=4).rows == 0


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from tests.evaluation.test_grid import chunks, writer
    found = writer({folder!r}, step=3)
    for number, chunk in enumerate(chunks(first=found.rows)):
        if number == {kill}:
            os.kill(os.getpid(), signal.SIGKILL)
        found.write(chunk)
    found.finish()
"""


@pytest.mark.slow
def test_a_killed_grid_goes_on_to_the_same_bytes(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def start(folder, kill):
        code = textwrap.dedent(KILLED.format(root=root, folder=str(tmp_path / folder), kill=kill))
        return subprocess.run([sys.executable, "-c", code], env=environment).returncode

    assert start("whole", -1) == 0
    assert start("killed", 1) == -signal.SIGKILL
    assert (tmp_path / "killed" / "progress.json").exists()
    assert start("killed", -1) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_rows_that_are_padding_are_left_out():
    parts = list(chunks())
    assert [part["nll"].shape[1] for part in parts] == [8, 8, 4]


def test_corruptions_of_one_class_are_refused():
    twice = {"left": (GaussianNoise(), GaussianNoise(deviation=2.0))}
    with pytest.raises(FusionError, match="'left' has the corruptions"):
        make_function_grid_program(
            lambda inputs, present: inputs["left"], NAMES, Classification(), twice, compiled=jax.jit
        )


def test_conditions_name_what_they_do():
    assert CONDITIONS.names == dict.fromkeys(NAMES, "GaussianNoise")
    assert CONDITIONS.strength("left", Condition("ImpulseNoise", 0.2)) == "10 % replaced"
    bare = dataclasses.replace(CONDITIONS, trained={})
    assert list(bare.corruptions) == ["left", "right"]
    assert bare.cells(NAMES)[1:3] == [
        Cell(missing=("left",)),
        Cell(missing=("right",)),
    ]


def test_a_prediction_that_is_not_finite_is_named_by_its_cell(tmp_path):
    def predict(inputs, present):
        scaled = inputs["left"] / jnp.abs(inputs["left"]).max(axis=-1, keepdims=True)
        return scaled + inputs["right"]

    with pytest.raises(FusionError, match="not finite in the cell 'missing/left' and 0 others"):
        evaluate_function(
            predict,
            source(),
            tmp_path,
            corruptions=CONDITIONS.trained,
            severities=(0.5,),
            batch_size=8,
        )
    with pytest.raises(FusionError, match=r"severities is \(0.0,\): each must lie in \(0, 1\]"):
        evaluate_function(predict, source(), tmp_path, corruptions={}, severities=(0.0,))
