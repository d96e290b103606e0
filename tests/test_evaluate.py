"""Evaluation of a trained run: exact counts, paired noise, files that say what was measured."""

import base64
import dataclasses
import json

import jax
import numpy as np
import pytest

from fusion_jax.cells import Cell, Condition, Conditions, cell_label, joint_cells, robustness_cells
from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.batch import corrupt_batch
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.impulse_noise import ImpulseNoise
from fusion_jax.corruptions.legacy_noise import LegacyNoise
from fusion_jax.corruptions.misalignment import Misalignment
from fusion_jax.data.arrays import ArrayData
from fusion_jax.data.donors import donor_indices
from fusion_jax.data.loader import eval_batches
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.evaluate import describe_report, evaluate
from fusion_jax.evaluation.grid import evaluate_grid, make_grid_program
from fusion_jax.evaluation.records import Records
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.rng import example_keys, stream
from fusion_jax.runs import held, load_config, restore_best, state_shapes
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.shown_examples import given_input, worst_examples
from fusion_jax.sources import ArraySource
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.loop import train
from fusion_jax.training.parallel import DataParallel

NUM_TEST = 45  # not a multiple of the evaluation batch: the tail must count exactly


def make_split(num, first_id, seed):
    generator = np.random.default_rng(seed)
    target = generator.integers(0, 3, num)
    inputs = {
        name: (2 * np.eye(3)[target] + generator.normal(size=(num, 3))).astype(np.float32)
        for name in ("left", "right")
    }
    present = np.ones((num, 2), bool)
    present[::7, 1] = False
    return ArraySource(
        inputs,
        target,
        num_classes=3,
        first_id=first_id,
        present=present,
        clusters={"session": np.arange(num) // 3},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = ArrayData(
        train=make_split(200, 0, 0),
        validation=make_split(40, 200, 1),
        test=make_split(NUM_TEST, 240, 2),
    )
    config = Config(
        model=FusionModel(
            encoders={name: MLPEncoder(hidden=(16,), features=8) for name in ("left", "right")},
            scheduler=UDMLScheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(3),
        ),
        data=data,
        recipe=Recipe(corruptions={"left": GaussianNoise(deviation=1.0)}),
        unseen={"right": (Misalignment(),)},
        num_steps=60,
        batch_size=32,
        eval_batch_size=16,
        eval_every=30,
        evaluation_severities=(0.5, 1.0),
        num_seeds=2,
        compilation_cache="",
    )
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    train(config, workdir)
    return workdir, data, config, evaluate(workdir, data=data)


def test_report_has_one_row_per_cell_and_seed(run):
    workdir, _, _, report = run
    assert json.loads((workdir / "report.json").read_text()) == report
    assert report["seeds"] == [0, 1] and report["data"]["num_examples"] == NUM_TEST
    # clean, left at two severities, without left, without right, right of others at two severities
    assert len(report["cells"]) == 2 * 7
    for row in report["cells"]:
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        total = sum(row["weights"].values())
        assert total == pytest.approx(
            1 if not row["missing"] == ["left"] else 1 - 7 / NUM_TEST, abs=1e-4
        )
        for name in row["missing"]:
            assert row["weights"][name] == 0
    page = (workdir / "report.html").read_text()
    assert f"{report['data']['num_examples']}" in page and page.lstrip().lower().startswith(
        "<!doctype"
    )


def test_rows_equal_a_direct_computation(run):
    workdir, data, config, report = run
    config_again, spec, _ = load_config(workdir)
    assert config_again.data is None  # data held in memory is not saved
    source = data.source("test")
    record = source[np.arange(NUM_TEST)]
    for index, seed in enumerate(report["seeds"]):
        state = restore_best(state_shapes(config, spec), workdir, index)
        variables = {"params": state.params, **state.collections}
        for missing in ((), ("right",)):
            keep = np.array([name not in missing for name in spec.names])
            output = config.model.apply(
                variables, record["inputs"], record["present"] & keep, train=False
            )
            correct = np.asarray(output.prediction).argmax(axis=-1) == record["target"]
            row = next(
                r
                for r in report["cells"]
                if r["seed"] == seed and not r["modality"] and tuple(r["missing"]) == missing
            )
            assert row["accuracy"] == pytest.approx(correct.mean(), abs=1e-9)


def test_records_hold_each_example_once_in_order(run):
    workdir, _, _, report = run
    records = Records(workdir / "seed_0" / "records_test")
    np.testing.assert_array_equal(records["example_id"], 240 + np.arange(NUM_TEST))
    np.testing.assert_array_equal(records["session"], np.arange(NUM_TEST) // 3)
    assert records["correct"].shape == (7, NUM_TEST)
    assert records["weights"].shape == (7, NUM_TEST, 2)
    accuracy = dict(zip(records.cells, records["correct"].mean(axis=1), strict=True))
    row = next(r for r in report["cells"] if r["seed"] == 0 and r["severity"] == 1.0)
    assert row["modality"] == "left"
    assert accuracy["noise/left/1"] == pytest.approx(row["accuracy"])


def test_misaligned_inputs_are_those_of_other_examples(run):
    workdir, data, config, report = run
    _, spec, _ = load_config(workdir)
    state = restore_best(state_shapes(config, spec), workdir, 0)
    record = data.source("test")[np.arange(NUM_TEST)]
    donors = donor_indices(
        record["example_id"], record["target"], record["present"][:, 1], name="right"
    )
    inputs = record["inputs"] | {"right": record["inputs"]["right"][donors]}
    variables = {"params": state.params, **state.collections}
    output = config.model.apply(variables, inputs, record["present"], train=False)
    correct = np.asarray(output.prediction).argmax(axis=-1) == record["target"]
    arrays = Records(workdir / "seed_0" / "records_test")
    number = arrays.cell("Misalignment/right/1")
    np.testing.assert_array_equal(arrays["correct"][number], correct)
    assert not arrays["noise_level"][number].any()
    rows = [r for r in report["cells"] if r["corruption"] == "Misalignment"]
    assert {row["strength"] for row in rows} == {
        "50 % replaced by another's",
        "100 % replaced by another's",
    }
    assert correct.mean() < report["cells"][0]["accuracy"] - 0.1


def test_separation_tells_how_well_a_signal_knows_a_condition(run):
    workdir, data, config, report = run
    _, spec, _ = load_config(workdir)
    state = restore_best(state_shapes(config, spec), workdir, 0)
    clean, noisy = evaluate_grid(
        compiled_grid(dataclasses.replace(config, unseen={})),
        {"params": state.params, **state.collections},
        eval_batches(data.source("test"), batch_size=16),
        cells=[Cell(), one("left", 1.0)],
        key=stream(jax.random.key(0), "evaluation", "test"),
        progress=int(state.step) / config.num_steps,
    )
    pairs = np.subtract.outer(
        clean.signals["PredictedNoise"][:, 0], noisy.signals["PredictedNoise"][:, 0]
    )
    rows = {
        (r["corruption"], r["severity"], *r["missing"]): r["separation"]["PredictedNoise"]
        for r in report["cells"]
        if r["seed"] == 0
    }
    assert rows["none", 0.0] == {"left": 0.5, "right": 0.5}
    found = rows["GaussianNoise", 1.0]
    # The other modality is what it was.
    assert found["right"] == 0.5 and found["left"] != 0.5
    assert found["left"] == pytest.approx(np.mean((np.sign(pairs) + 1) / 2), abs=1e-3)
    assert rows["none", 0.0, "left"]["left"] is None


def test_evaluating_twice_gives_the_same_report(run):
    workdir, data, _, report = run
    assert evaluate(workdir, data=data) == report


def test_validation_scores_are_those_of_the_log(run):
    # The best checkpoint's saved selection is the mean of what an evaluation of that state gives.
    workdir, data, config, _ = run
    from fusion_jax.training.loop import Trainer

    _, spec, _ = load_config(workdir)
    state = restore_best(state_shapes(config, spec), workdir, 0)
    trainer = Trainer(config, spec)
    scores = trainer.validate(trainer.parallel.place_state(state), data.source("validation"))
    lines = [
        json.loads(line) for line in (workdir / "seed_0" / "metrics.jsonl").read_text().splitlines()
    ]
    logged = [
        line for line in lines if line["step"] == int(state.step) and "validation/selection" in line
    ]
    assert logged[0]["validation/selection"] == pytest.approx(scores["selection"], abs=1e-9)
    parts = ["accuracy", "noisy_left", "without_left", "without_right"]
    assert scores["selection"] == pytest.approx(np.mean([scores[name] for name in parts]))


def test_grid_does_not_depend_on_the_batch_size(run):
    workdir, data, config, _ = run
    _, spec, _ = load_config(workdir)
    state = restore_best(state_shapes(config, spec), workdir, 0)
    program = compiled_grid(config)
    cells = [
        Cell(),
        one("left", 0.5),
        Cell((("left", Condition("GaussianNoise", 1.0, True)),)),
        one("right", 0.5, "Misalignment"),
    ]
    donors = {"right": np.roll(np.arange(NUM_TEST), 5)}
    results = [
        evaluate_grid(
            program,
            {"params": state.params, **state.collections},
            eval_batches(data.source("test"), batch_size=size, donors=donors),
            cells=cells,
            key=jax.random.key(0),
        )
        for size in (7, 16, 64)
    ]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a.records["correct"], b.records["correct"])
            np.testing.assert_allclose(a.records["nll"], b.records["nll"], atol=1e-6)
            np.testing.assert_allclose(a.weights, b.weights, atol=1e-6)


def test_data_in_memory_must_be_given_again_and_match(run):
    workdir, _, _, _ = run
    with pytest.raises(FusionError, match="pass it again"):
        evaluate(workdir)
    other = ArraySource(
        {"left": np.ones((4, 3)), "right": np.ones((4, 3))}, np.zeros(4, int), num_classes=3
    )
    wrong = ArrayData(train=other, validation=other, test=other)
    with pytest.raises(FusionError, match="specification"):
        evaluate(workdir, data=wrong)


def compiled_grid(config):
    # On one device: the 7 rows of a batch do not split over the 8 that tests have.
    return make_grid_program(
        config.model,
        Classification(),
        config.evaluation_corruptions(),
        compiled=DataParallel(jax.devices()[:1]).evaluation,
    )


def one(modality, severity, corruption="GaussianNoise"):
    return Cell(((modality, Condition(corruption, severity)),))


@pytest.mark.slow
def test_cells_equal_a_direct_evaluation(run):
    # Factorised (each condition encoded once) against the whole model on corrupted inputs.
    workdir, data, config, _ = run
    _, spec, _ = load_config(workdir)
    config = dataclasses.replace(
        config,
        recipe=Recipe(corruptions={name: GaussianNoise(deviation=1.0) for name in spec.names}),
        unseen={"left": (LegacyNoise(),)},
    )
    state = restore_best(state_shapes(config, spec), workdir, 0)
    variables = {"params": state.params, **state.collections}
    cells = [
        Cell(missing=("right",)),
        one("left", 0.5),
        one("left", 0.5, "LegacyNoise"),
        *joint_cells(
            dict.fromkeys(spec.names, "GaussianNoise"), severities=(0.3, 1.0), mixed=(0.8,)
        ),
    ]
    assert len(cells) == 3 + 4 + 2
    key = jax.random.key(3)
    found = evaluate_grid(
        compiled_grid(config),
        variables,
        eval_batches(data.source("test"), batch_size=16),
        cells=cells,
        key=key,
    )
    record = data.source("test")[np.arange(NUM_TEST)]
    corruptions = config.evaluation_corruptions()
    for cell, got in zip(cells, found, strict=True):
        inputs = dict(record["inputs"])
        for name, condition in cell.noise:
            corruption = next(
                c for c in corruptions[name] if type(c).__name__ == condition.corruption
            )
            severity = np.full(NUM_TEST, condition.severity, np.float32)
            whose = "all modalities" if condition.shared else name
            if condition.drawn:
                keys = example_keys(stream(key, "severity", whose), record["example_id"])
                severity = severity * jax.vmap(jax.random.uniform)(keys)
            noise = stream(key, condition.corruption, name)
            keys = example_keys(noise, record["example_id"])
            inputs[name] = corrupt_batch(corruption, inputs[name], keys=keys, severity=severity)
            m = spec.names.index(name)
            level, here = got.noise_level[:, m], record["present"][:, m]
            expected = np.where(here, corruption.noise_level(severity), 0)
            np.testing.assert_allclose(level, expected, rtol=1e-6)
            level = level[here]
            assert (len(np.unique(level)) > 1) == condition.drawn
        keep = np.array([name not in cell.missing for name in spec.names])
        output = config.model.apply(variables, inputs, record["present"] & keep, train=False)
        loss = Classification().loss(output.prediction, record["target"])
        np.testing.assert_allclose(got.records["nll"], loss, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got.weights, output.fusion.weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell((("lefft", Condition("GaussianNoise", 1.0)),)), "names the modality 'lefft'"),
        (Cell(missing=("rihgt",)), "names the modality 'rihgt'"),
        (Cell((("left", Condition("Rain", 1.0)),)), r"corruption 'Rain' of 'left': there are \["),
        (Cell((("left", Condition()), ("left", Condition()))), "corrupts one modality twice"),
    ],
    ids=["modality", "missing", "corruption", "twice"],
)
def test_cells_of_unknown_names_are_refused(run, cell, message):
    _, _, config, _ = run
    with pytest.raises(FusionError, match=message):
        evaluate_grid(compiled_grid(config), {}, [], cells=[cell], key=jax.random.key(0))


def test_nothing_to_evaluate_is_refused(run):
    _, _, config, _ = run
    with pytest.raises(FusionError, match="there is nothing to evaluate"):
        evaluate_grid(compiled_grid(config), {}, [], cells=[Cell()], key=jax.random.key(0))


def test_two_corruptions_of_one_class_are_refused(run):
    _, _, config, _ = run
    noise = GaussianNoise(deviation=1.0)
    with pytest.raises(FusionError, match="'left' has the corruptions"):
        compiled_grid(dataclasses.replace(config, unseen={"left": (noise,)}))


def test_two_corruptions_of_one_class_are_refused_before_training(run, tmp_path):
    _, _, config, _ = run
    unseen = {"left": (GaussianNoise(deviation=2.0),)}  # the recipe has one too
    with pytest.raises(FusionError, match=r"config.unseen\['left'\] has another GaussianNoise"):
        train(dataclasses.replace(config, unseen=unseen), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_corruptions_that_do_not_fit_are_refused_before_anything_is_written(run, tmp_path):
    _, _, config, _ = run
    unseen = {"left": (ImpulseNoise(deviations=(1.0, 2.0)),)}  # left has 3 entries
    workdir = tmp_path / "run"
    with pytest.raises(FusionError, match="ImpulseNoise cannot be applied to modality 'left'"):
        train(dataclasses.replace(config, unseen=unseen), workdir)
    assert not workdir.exists()


def test_a_head_of_other_classes_is_refused_before_anything_is_written(run, tmp_path):
    _, _, config, _ = run
    model = config.model.clone(head=ClassificationHead(2))
    with pytest.raises(FusionError, match="predicts 2 classes, the data have 3: give its head"):
        train(dataclasses.replace(config, model=model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_correlated_cells_draw_once_for_all_modalities_of_an_example(run):
    workdir, data, config, _ = run
    _, spec, _ = load_config(workdir)
    noise = GaussianNoise(deviation=1.0)
    recipe = Recipe(corruptions=dict.fromkeys(spec.names, noise))
    config = dataclasses.replace(config, recipe=recipe, unseen={})
    state = restore_best(state_shapes(config, spec), workdir, 0)
    mixed, correlated = evaluate_grid(
        compiled_grid(config),
        {"params": state.params, **state.collections},
        eval_batches(data.source("test"), batch_size=16),
        cells=joint_cells(dict.fromkeys(spec.names, "GaussianNoise"), severities=(), mixed=(1.0,)),
        key=jax.random.key(3),
    )
    whole = mixed.present.all(axis=1)
    assert whole.sum() > 20
    apart, together = mixed.noise_level[whole], correlated.noise_level[whole]
    assert np.abs(np.corrcoef(apart.T)[0, 1]) < 0.5
    np.testing.assert_array_equal(together[:, 0], together[:, 1])
    # Each modality by itself is as bad in both.
    np.testing.assert_allclose(together.mean(axis=0), apart.mean(axis=0), atol=0.2 * apart.max())
    assert len(np.unique(together[:, 0])) == whole.sum()


def test_joint_cells():
    pairs = joint_cells({"a": "A", "b": "B"}, severities=(0.2, 0.4), mixed=(0.4, 1.0))
    labels = [cell_label(cell, {"a": "A", "b": "B"}) for cell in pairs]
    assert labels == [
        *(f"joint/a/{a}+b/{b}" for a in (0.2, 0.4) for b in (0.2, 0.4)),
        "mixed/0.4",
        "mixed/1",
        "correlated/0.4",
        "correlated/1",
    ]
    # Of more than two modalities all have the same severity: pairs would be powers.
    many = joint_cells(dict.fromkeys("abc", "A"), severities=(0.2, 0.4), mixed=())
    assert [cell_label(cell, dict.fromkeys("abc", "A")) for cell in many] == [
        "joint/a/0.2+b/0.2+c/0.2",
        "joint/a/0.4+b/0.4+c/0.4",
    ]
    assert joint_cells({"a": "A"}, severities=(0.2,), mixed=(1.0,)) == []


def test_robustness_cells_cover_every_missing_pattern_once():
    cells = robustness_cells(("a", "b", "c"), corrupted={"b": "B"}, severities=(0.5, 1.0))
    assert cells[0] == Cell()
    assert [cell_label(cell, {"b": "B"}) for cell in cells[1:3]] == ["noise/b/0.5", "noise/b/1"]
    missing = {cell.missing for cell in cells[3:]}
    # Of 2^3 subsets, neither the empty one nor all three.
    assert missing == {("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")}
    assert len(cells) == 9


def test_examples_of_the_worst_cells_show_what_the_model_was_given(run):
    workdir, data, config, _ = run
    _, spec, _ = load_config(workdir)
    records = [Records(workdir / f"seed_{index}" / "records_test") for index in (0, 1)]
    conditions = Conditions(config.recipe.corruptions, config.unseen, (0.5, 1.0), 0.4)
    cells, source = conditions.cells(spec.names), data.source("test")
    whole = source[np.arange(NUM_TEST)]
    donors = donor_indices(
        whole["example_id"], whole["target"], whole["present"][:, 1], name="right"
    )
    key = stream(jax.random.key(0), "evaluation", "test")
    shown = worst_examples(
        cells,
        records,
        source,
        conditions,
        donors={"right": donors},
        key=key,
        sample_rates={},
        count=4,
    )
    means = np.mean([each["correct"].mean(axis=1) for each in records], axis=0)
    ranked = [cells[number] for number in np.argsort(means, kind="stable")]
    assert any(cell.misaligned for cell in ranked)
    matched = [cell for cell in ranked if not cell.misaligned]
    assert [cells[records[0].cell(each["cell"])] for each in shown] == matched[:4]
    state = restore_best(state_shapes(config, spec), workdir, 0)
    variables = {"params": state.params, **state.collections}
    for each in shown:
        index = int(np.flatnonzero(whole["example_id"] == each["example_id"])[0])
        cell = cells[records[0].cell(each["cell"])]
        assert each["predicted"] != each["target"] == whole["target"][index]
        record = source[np.array([index])]
        inputs = {
            name: given_input(
                record["inputs"][name],
                cell.condition(name),
                conditions.corruptions[name],
                name=name,
                example_id=record["example_id"],
                donor=source[donors[[index]]]["inputs"][name],
                key=key,
            )
            for name in spec.names
        }
        keep = np.array([name not in cell.missing for name in spec.names])
        output = config.model.apply(variables, inputs, record["present"] & keep, train=False)
        assert int(np.argmax(output.prediction[0])) == each["predicted"]
        here = {name for m, name in enumerate(spec.names) if (record["present"][0] & keep)[m]}
        assert set(each["pictures"]) == here
        for address in each["pictures"].values():
            assert base64.b64decode(address.removeprefix("data:image/png;base64,"))[1:4] == b"PNG"


def test_a_report_has_summaries_and_can_have_limits_and_a_comparison(run, tmp_path):
    workdir, data, _, report = run
    limits = tmp_path / "limits.toml"
    limits.write_text('[[threshold]]\ncells = ["clean"]\nmetric = "accuracy"\nmin = 0.999')
    again = evaluate(workdir, data=data, compare_with=workdir, thresholds=limits, pictures=True)
    assert again["cells"] == report["cells"] and again["summary"] == report["summary"]
    assert [check["passed"] for check in again["thresholds"]] == [False]
    assert any(line.startswith("FAILED clean: accuracy is") for line in describe_report(again))
    # A run against itself: nothing differs, and nothing is real.
    rows = again["comparison"]["cells"].values()
    assert {(row["difference"], row["real"]) for row in rows} == {(0.0, False)}
    assert again["comparison"]["mean_corruption_error"] == pytest.approx(100)
    labels = {row["cell"] for row in [*report["cells"], *report["joint"]]}
    shown = [label for label in labels if "Misalignment" not in label]
    assert len(again["examples"]) == min(10, len(shown)) < len(labels)
    summary = report["summary"]["0"]
    rows = [row for row in report["cells"] if row["seed"] == 0]
    clean = next(row for row in rows if row["cell"] == "clean")
    assert sum(summary["shapley"].values()) == pytest.approx(clean["accuracy"] - 1 / 3)
    every = [*rows, *(row for row in report["joint"] if row["seed"] == 0)]
    # Inputs of another example cannot be told by confidence: they are left aside.
    worst = min(
        (row for row in every if row["corruption"] != "Misalignment"),
        key=lambda row: row["accuracy"],
    )
    assert summary["worst_accuracy"] == worst["accuracy"]
    without = next(row for row in rows if row["cell"] == "missing/left")
    rate = 1 - without["accuracy"] / clean["accuracy"]
    assert summary["change_rate"]["left"] == pytest.approx(rate)
    assert sum(summary["reliability"]["clean"]["examples"]) == NUM_TEST
    assert 0 <= summary["conformal"]["worst"] <= summary["conformal"]["clean"] <= 1


@pytest.mark.slow
def test_all_corruptions_that_fit_can_be_asked_for(run):
    workdir, data, _, report = run
    wide = evaluate(workdir, data=data, corruptions="all", severities=(1.0, 0.3))
    assert {row["severity"] for row in wide["cells"]} == {0.0, 0.3, 1.0}
    kinds = {row["corruption"] for row in wide["cells"]}
    assert kinds > {row["corruption"] for row in report["cells"]}
    assert {"Scaling", "MissingColumns", "ImpulseNoise"} <= kinds
    with pytest.raises(FusionError, match="corruptions is 'some': choose one of"):
        evaluate(workdir, data=data, corruptions="some")
    with pytest.raises(FusionError, match=r"severities is \(2\.0,\): each must lie in"):
        evaluate(workdir, data=data, severities=(2.0,))
    with pytest.raises(FusionError, match="two of them are the same to six digits"):
        evaluate(workdir, data=data, severities=(0.1234567, 0.1234568))
    # The module's other tests read the records of the plain evaluation.
    assert evaluate(workdir, data=data) == report


def test_a_run_that_was_not_evaluated_cannot_be_compared_with(run, tmp_path):
    workdir, data, _, report = run
    with pytest.raises(FusionError, match=r"report\.json is missing"):
        evaluate(workdir, data=data, compare_with=tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report | {"schema": 1}))
    with pytest.raises(FusionError, match="was not evaluated on the test split by this version"):
        evaluate(workdir, data=data, compare_with=tmp_path)


def test_a_slip_in_the_limits_is_found_before_the_grid(run, tmp_path):
    workdir, data, _, _ = run
    limits = tmp_path / "limits.toml"
    limits.write_text('[[threshold]]\ncells = ["mising/*"]\nmetric = "accuracy"\nmin = 0.9')
    before = (workdir / "report.json").stat().st_mtime_ns
    with pytest.raises(FusionError, match=r"matches 'mising/\*': there are clean"):
        evaluate(workdir, data=data, thresholds=limits)
    assert (workdir / "report.json").stat().st_mtime_ns == before


def test_two_evaluations_of_one_run_do_not_mix(run):
    workdir, data, _, _ = run
    with held(workdir / "seed_0" / ".records_test.lock") as (_, free):
        assert free
        with pytest.raises(FusionError, match="another process evaluates into"):
            evaluate(workdir, data=data)


@pytest.mark.slow
def test_what_a_killed_evaluation_finished_is_used_again_and_nothing_else(run):
    workdir, data, _, report = run
    correct = np.load(workdir / "seed_0" / "records_test" / "correct.npy", mmap_mode="r+")
    correct[:] = 0
    correct.flush()
    # As after a kill in a later seed.
    (workdir / ".evaluating_test").touch()
    reused = evaluate(workdir, data=data)
    assert {row["accuracy"] for row in reused["cells"] if row["seed"] == 0} == {0.0}
    later = [row for row in reused["cells"] if row["seed"] == 1]
    assert later == [row for row in report["cells"] if row["seed"] == 1]
    # That one ended: the next is made anew.
    assert not (workdir / ".evaluating_test").exists()
    assert evaluate(workdir, data=data) == report
