"""Several seeds at once: the numbers of one after the other, whatever came in between."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from fusion_jax.data.arrays import ArrayData
from fusion_jax.errors import FusionError, Stopped
from fusion_jax.training.loop import train
from tests.training.conftest import restored
from tests.training.small import make_config, make_data
from tests.training.test_stop import StoppedWhileRead

pytestmark = pytest.mark.slow  # Programs for eight devices, several times.


def logged(folder):
    """Lines of the log by step and kind: training metrics and validations."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(line.pop("step"), "validation/accuracy" in line): line for line in lines}


def assert_same_logs(found, wanted, *, rtol=2e-4):
    assert found.keys() == wanted.keys()
    for place, line in wanted.items():
        assert found[place].keys() == line.keys()
        for name, value in line.items():
            assert found[place][name] == pytest.approx(value, rel=rtol, abs=1e-5), (place, name)


def config_of(num_seeds, *, at_once, strategy="jit", scaling=False, data=None):
    config = make_config(data=data or make_data(), strategy=strategy, scaling=scaling)
    config.num_seeds = num_seeds
    config.parallel = dataclasses.replace(config.parallel, seeds_at_once=at_once)
    return config


@pytest.fixture(scope="module")
def one_after_the_other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequential") / "run"
    state = train(config_of(3, at_once=False), folder)
    return folder, state


@pytest.mark.parametrize("strategy", ["jit", "fsdp", "pmap"])
def test_seeds_at_once_are_those_of_one_after_the_other(tmp_path, one_after_the_other, strategy):
    folder, state = one_after_the_other
    found = train(config_of(3, at_once=True, strategy=strategy), tmp_path / "run")
    logs = [logged(folder / f"seed_{seed}") for seed in range(3)]
    for seed in range(3):
        assert_same_logs(logged(tmp_path / "run" / f"seed_{seed}"), logs[seed])
    # The seeds are different ones, and the state is that of the last.
    last = (60, False)
    assert len({log[last]["loss"] for log in logs}) == 3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found.params,
        state.params,
    )


def test_a_run_goes_on_with_its_seeds_at_once(tmp_path, one_after_the_other):
    """More seeds of a finished run, one of which a kill left at an earlier step."""
    whole, _ = one_after_the_other
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "seed_2")
    shutil.rmtree(folder / "seed_1" / "checkpoints" / "60")
    before = logged(folder / "seed_0")
    train(config_of(4, at_once=True), folder)
    for seed in (1, 2):
        assert_same_logs(logged(folder / f"seed_{seed}"), logged(whole / f"seed_{seed}"))
    assert logged(folder / "seed_0") == before
    assert logged(folder / "seed_3").keys() == before.keys()


def test_sigterm_saves_all_seeds_at_one_step(tmp_path, one_after_the_other):
    whole, _ = one_after_the_other
    config = config_of(3, at_once=True)
    usual = config.data
    splits = {split: usual.source(split) for split in ("train", "validation", "test")}
    splits["validation"] = StoppedWhileRead(splits["validation"])
    config.data = ArrayData(**splits)
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 31: saved"):
        train(config, tmp_path / "run")
    for seed in range(3):
        assert int(restored(tmp_path / "run", index=seed).step) == 31
    config.data = usual
    train(config, tmp_path / "run")
    for seed in range(3):
        found, wanted = (logged(folder / f"seed_{seed}") for folder in (tmp_path / "run", whole))
        last = {(60, True), (60, False)}
        assert_same_logs({k: found[k] for k in last}, {k: wanted[k] for k in last})


def test_each_seed_has_its_own_temperature(tmp_path):
    train(config_of(2, at_once=False, scaling=True), tmp_path / "apart")
    train(config_of(2, at_once=True, scaling=True), tmp_path / "together")
    found = []
    for seed in range(2):
        apart, together = (
            logged(tmp_path / name / f"seed_{seed}") for name in ("apart", "together")
        )
        assert_same_logs(together, apart, rtol=1e-3)
        found.append(apart[60, True]["validation/temperature"])
    assert found[0] != pytest.approx(found[1], rel=1e-3) and min(found) > 1.1


def test_a_seed_that_diverges_is_named(tmp_path):
    config = config_of(2, at_once=True)
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=1e38, clip_norm=0.0)
    with pytest.raises(FusionError, match=r"became (nan|inf).*seed_[01]"):
        train(config, tmp_path / "run")
