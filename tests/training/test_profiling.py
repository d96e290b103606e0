"""The profile of a training run: what it counts, and that it changes nothing."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from fusion_jax.training.checkpoints import digest
from fusion_jax.training.loop import Trainer, train
from fusion_jax.training.profiling import matrix_product_rate
from tests.training.conftest import restored
from tests.training.small import make_config, make_data

pytestmark = pytest.mark.slow


def test_a_profile_accounts_for_the_time_and_changes_nothing(tmp_path, capsys):
    config = make_config(data=make_data())
    for folder, profile in (("plain", False), ("profiled", True)):
        train(config, tmp_path / folder, profile=profile)
    plain, profiled = (restored(tmp_path / folder) for folder in ("plain", "profiled"))
    assert int(digest(plain)) == int(digest(profiled))
    assert not (tmp_path / "plain" / "seed_0" / "profile").exists()
    folder = tmp_path / "profiled" / "seed_0" / "profile"
    found = json.loads((folder / "breakdown.json").read_text())
    assert found["steps"] == config.num_steps
    assert set(found["parts"]) == {
        *("input", "first step", "step", "evaluation", "checkpoint", "other")
    }
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"])
    assert min(found["parts"].values()) > 0
    # The first step compiles: it alone takes longer than all others.
    assert found["parts"]["first step"] > found["parts"]["step"]
    said = capsys.readouterr().err
    assert "profile of 60 steps" in said and "model FLOPs utilisation" in said
    [trace] = folder.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"input", "step"} <= names
    assert list(folder.rglob("*.xplane.pb"))


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_operations_are_those_of_the_whole_batch(strategy):
    config = make_config(data=make_data(), strategy=strategy)
    found = Trainer(config, config.data.source("train").spec).flops_per_step()
    # Two encoders 3 -> 32 -> 8, forward and twice that backward, less the inputs' gradient; sums
    # and norms come on top.
    products = 2 * 64 * 2 * (2 * 3 * 32 + 3 * 32 * 8)
    assert products < found < 3 * products


def test_operations_of_accumulated_parts_are_those_of_the_batch():
    config = make_config(data=make_data())
    spec = config.data.source("train").spec
    whole = Trainer(config, spec).flops_per_step()
    config.accumulation = 4
    assert Trainer(config, spec).flops_per_step() == pytest.approx(whole, rel=0.5)


def test_the_rate_of_a_matrix_product_is_that_of_its_operations():
    rate = matrix_product_rate("float32", repeats=1)
    assert 1e8 < rate < 1e16
    # Against XLA's own count of the same product.
    x = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
    counted = jax.jit(jnp.matmul).lower(x, x).cost_analysis()["flops"]
    assert counted == pytest.approx(2 * 2048**3, rel=0.01)
