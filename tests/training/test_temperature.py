"""Temperature scaling: what it changes, what it leaves alone, and that it is kept."""

import numpy as np
import pytest

from fusion_jax.calibration import fit_temperature
from fusion_jax.evaluate import evaluate
from fusion_jax.models import FusionModel
from fusion_jax.predictor import Predictor
from fusion_jax.runs import load_config
from fusion_jax.training.checkpoints import digest
from fusion_jax.training.loop import train
from tests.training.conftest import log_lines, restored
from tests.training.small import make_config, make_data

pytestmark = pytest.mark.slow  # Two runs with several validations each.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of two runs that differ in temperature scaling alone."""
    folders = {}
    for scaling in (False, True):
        folders[scaling] = tmp_path_factory.mktemp("temperature") / "run"
        train(make_config(scaling=scaling, data=make_data()), folders[scaling])
    return folders


def kept(state):
    return float(state.collections["calibration"]["temperature"])


def predicted(workdir, split):
    """Logarithms of the probabilities of the best checkpoint, and targets, of a split."""
    config, spec, _ = load_config(workdir)
    state = restored(workdir, best=True)
    predict = Predictor(config.model, {"params": state.params, **state.collections}, spec)
    source = make_data().source(split)
    record = source[np.arange(len(source))]
    return np.log(np.float64(predict(record["inputs"]).probabilities)), record["target"]


def test_it_is_off_by_default(runs):
    config, _, _ = load_config(runs[False])
    plain = FusionModel(
        config.model.encoders, config.model.scheduler, config.model.fusion, config.model.head
    )
    assert not plain.temperature_scaling
    assert "calibration" not in restored(runs[False]).collections


def test_training_is_the_same_with_it(runs):
    without, with_it = restored(runs[False]), restored(runs[True])
    assert int(digest(without.params)) == int(digest(with_it.params))
    assert int(digest(without.opt_state)) == int(digest(with_it.opt_state))


def test_the_temperature_is_the_best_one_for_validation(runs):
    temperature = kept(restored(runs[True], best=True))
    logits, target = predicted(runs[False], "validation")
    assert temperature == pytest.approx(fit_temperature(logits, target), rel=1e-3)
    assert temperature != 1
    # Fitted on what it is applied to, it cannot be worse; here it is better.
    ours, theirs = (log_lines(runs[which])[-1] for which in (True, False))
    assert ours["validation/nll"] < theirs["validation/nll"]
    assert ours["validation/accuracy"] == theirs["validation/accuracy"]
    assert ours["validation/temperature"] == pytest.approx(kept(restored(runs[True])))


def test_predictions_are_divided_by_it_and_answers_stay(runs):
    plain, _ = predicted(runs[False], "test")
    scaled, _ = predicted(runs[True], "test")
    expected = plain / kept(restored(runs[True], best=True))
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(scaled, expected, atol=1e-4)
    np.testing.assert_array_equal(scaled.argmax(axis=1), plain.argmax(axis=1))


@pytest.mark.slow
def test_the_report_states_it(runs):
    reports = {which: evaluate(runs[which], data=make_data()) for which in (False, True)}
    temperature = kept(restored(runs[True], best=True))
    assert reports[True]["run"]["temperatures"] == {"0": pytest.approx(temperature)}
    assert not reports[False]["run"]["temperatures"]
    page = (runs[True] / "report.html").read_text()
    assert f"seed 0: {temperature:.3f}" in page and "temperature of the logits" in page
    assert "temperature of the logits" not in (runs[False] / "report.html").read_text()
    for ours, theirs in zip(reports[True]["cells"], reports[False]["cells"], strict=True):
        assert ours["accuracy"] == theirs["accuracy"] and ours["nll"] != theirs["nll"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "pmap"])
def test_every_strategy_keeps_it(runs, tmp_path, strategy):
    train(make_config(scaling=True, data=make_data(), strategy=strategy), tmp_path / "run")
    assert kept(restored(tmp_path / "run")) == pytest.approx(kept(restored(runs[True])), rel=1e-3)


@pytest.mark.slow
def test_where_none_is_best_it_is_one_and_said(tmp_path, capsys):
    config = make_config(scaling=True, data=make_data(separable=True), num_steps=30)
    train(config, tmp_path / "run")
    assert kept(restored(tmp_path / "run")) == 1
    assert log_lines(tmp_path / "run")[-1]["validation/temperature"] == 1
    assert "the temperature is 1: no temperature from 0.001 is best" in capsys.readouterr().err
