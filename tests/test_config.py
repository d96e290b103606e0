"""Configurations: every file builds, survives its JSON form, and is refused where it is wrong."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import fusion_jax
from fusion_jax.blocks.attention import TransformerPooling
from fusion_jax.config import Config, Recipe, first_difference, from_tree, to_tree
from fusion_jax.data.arrays import ArrayData
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.errors import FusionError
from fusion_jax.experiment_definition import Run
from fusion_jax.runs import build_optimizer, load_config, record_run
from fusion_jax.sources import ArraySource
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step
from fusion_jax.types import Batch
from tests.conftest import ROOT

WORD = {"audio": ((3200,), np.int16), "video": ((8, 24, 36, 1), np.uint8)}
SHAPES = {
    "av_digits": {"audio": ((4000,), np.int16), "image": ((8, 8, 1), np.uint8)},
    "av_mnist": {"audio": ((8000,), np.int16), "image": ((28, 28, 1), np.uint8)},
    "grid_digits": WORD,
    "grid_letters": WORD,
    "handwritten": {
        view: ((width,), np.float32)
        for view, width in zip(
            ("fac", "fou", "kar", "mor", "pix", "zer"), (216, 76, 64, 6, 240, 47), strict=True
        )
    },
    "uea": {"accelerometer": ((30, 3), np.float32), "gyroscope": ((30, 3), np.float32)},
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants():
    found = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = load(path.stem)
        names = getattr(module, "VARIANTS", None) or module.SCHEDULERS
        found += [(path.stem, variant) for variant in names]
    return found


def test_every_config_file_is_covered():
    assert {name for name, _ in variants()} == set(SHAPES)
    assert len(variants()) == 90


@pytest.mark.parametrize(("name", "variant"), variants())
def test_config_survives_its_json_form(name, variant):
    config = load(name).get_config(variant)
    config.check()
    tree = json.loads(json.dumps(to_tree(config)))
    again = from_tree(tree)
    assert isinstance(again, Config) and to_tree(again) == tree
    assert again.model == config.model and again.recipe == config.recipe


@pytest.mark.parametrize(("name", "variant"), variants())
def test_config_builds_a_training_step(name, variant):
    config = load(name).get_config(variant)
    rows, names = 4, config.model.modalities
    inputs = {m: np.zeros((rows, *SHAPES[name][m][0]), SHAPES[name][m][1]) for m in names}
    batch = Batch(
        inputs=inputs,
        present=np.ones((rows, len(names)), bool),
        target=np.zeros(rows, np.int32),
        mask=np.ones(rows, bool),
        example_id=np.arange(rows, dtype=np.int32),
    )
    parts = {key: getattr(config, key) for key in ("model", "objective", "balancer")}
    tx = build_optimizer(config)

    def train_once(key):
        state = create_state(**parts, tx=tx, example=batch, key=key)
        step = make_train_step(
            **parts, task=config.task, recipe=config.recipe, tx=tx, num_steps=config.num_steps
        )
        return step(state, batch)

    state, metrics = jax.eval_shape(train_once, jax.random.key(0))
    assert metrics["loss"].shape == () and metrics["weight"].shape == (len(names),)
    assert state.step.shape == ()


def test_run_folder_takes_more_seeds_but_no_other_configuration(tmp_path):
    split = ArraySource({"audio": np.ones((2, 3))}, np.zeros(2, int), num_classes=2)
    config = load("av_digits").get_config()
    record_run(config, tmp_path, split.spec)
    config.num_seeds = 3
    record_run(config, tmp_path, split.spec)
    assert load_config(tmp_path)[0].num_seeds == 3
    config.optimizer.learning_rate = 0.5
    with pytest.raises(FusionError, match=r"config.optimizer.learning_rate = 0.001, not 0.5"):
        record_run(config, tmp_path, split.spec)


def test_a_run_of_before_goes_on_with_fields_that_came_since_at_their_defaults(tmp_path):
    split = ArraySource({"audio": np.ones((2, 3))}, np.zeros(2, int), num_classes=2)
    config = load("av_digits").get_config()
    record_run(config, tmp_path, split.spec)
    path = tmp_path / "config.json"
    tree = json.loads(path.read_text())
    del tree["model"]["temperature_scaling"], tree["num_workers"]
    path.write_text(json.dumps(tree))
    record_run(config, tmp_path, split.spec)
    assert json.loads(path.read_text())["model"]["temperature_scaling"] is False
    path.write_text(json.dumps(tree))
    config.model.temperature_scaling = True
    with pytest.raises(FusionError, match=r"model.temperature_scaling = \(absent\), not True"):
        record_run(config, tmp_path, split.spec)


def test_classes_outside_the_allowed_packages_are_refused_with_the_cure():
    with pytest.raises(FusionError, match=r"not part of fusion_jax.*allow=\('subprocess',\)"):
        from_tree({"$class": "subprocess.Popen", "args": "true"})
    # Allowed by name, but still only configuration classes are built.
    with pytest.raises(FusionError, match="not a configuration class"):
        from_tree({"$class": "subprocess.Popen", "args": "true"}, allow=("subprocess",))
    with pytest.raises(FusionError, match="cannot be imported"):
        from_tree({"$class": "fusion_jax.config.Nothing"})
    with pytest.raises(FusionError, match="has no field 'speed'"):
        from_tree({"$class": "fusion_jax.config.Recipe", "speed": 1})


@pytest.mark.parametrize(
    "value", [len, np.zeros(3), {1: 2}, object()], ids=["function", "array", "keys", "object"]
)
def test_what_is_not_data_is_refused(value):
    with pytest.raises(FusionError, match="cannot be saved as data"):
        to_tree(Recipe(corruptions={"a": value}))


def test_data_in_memory_is_remembered_by_name_only():
    split = ArraySource({"a": np.ones((2, 3))}, np.zeros(2, int), num_classes=2)
    tree = to_tree(ArrayData(train=split, validation=split, test=split))
    assert tree == {"$in_memory": "fusion_jax.data.arrays.ArrayData"}
    assert from_tree(tree) is None


def test_first_difference_names_the_path_and_both_values():
    a = {"model": {"widths": [1, 2], "rate": 0.1}}
    assert first_difference(a, {"model": {"widths": [1, 2], "rate": 0.1}}) is None
    changed = first_difference(a, {"model": {"widths": [1, 3], "rate": 0.1}})
    assert changed == ("model.widths[1]", 2, 3)
    assert first_difference(a, {"model": {"widths": [1, 2]}}) == ("model.rate", 0.1, "(absent)")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("num_steps", 0, "config.num_steps is 0: it must be at least 1"),
        ("batch_size", -1, "config.batch_size is -1"),
        ("recipe.modality_dropout", 1.5, "config.recipe.modality_dropout is 1.5"),
        ("recipe.max_severity", -0.1, "config.recipe.max_severity is -0.1"),
        ("recipe.severities", (0.2, 0.5), "severities is (0.2, 0.5): each must lie in (0, 0.4]"),
        ("recipe.severities", (0.0, 0.2), "severities is (0.0, 0.2): each must lie in (0, 0.4]"),
        ("evaluation_severities", (0.5, 2.0), "config.evaluation_severities must lie in"),
        ("recipe.corruptions", {"video": None}, "names 'video'"),
    ],
)
def test_bad_values_are_refused_by_field(path, value, message):
    config = load("av_digits").get_config()
    holder = config.recipe if path.startswith("recipe.") else config
    setattr(holder, path.rpartition(".")[2], value)
    with pytest.raises(FusionError, match=re.escape(message)):
        config.check()


def test_no_pickle_and_no_evaluated_strings_in_the_library():
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in Path(fusion_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not banned & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile"), path
                assert "allow_pickle=True" not in ast.unparse(node), path


def test_sgd_and_balancers_are_set_by_overrides(tmp_path):
    path = tmp_path / "sgd.py"
    path.write_text(
        "from fusion_jax.balancing.mwam import MWAM\n"
        "from fusion_jax.optimizers import SGD\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('base', {str(ROOT / 'configs/uea.py')!r})\n"
        "base = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(base)\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.optimizer, config.balancer = SGD(), MWAM()\n"
        "    return config\n"
    )
    overrides = {
        "optimizer.momentum": "0.5",
        "optimizer.clip_norm": "1.5",
        "balancer.intervention": "gradient",
        "balancer.constants": "(1.5,1.0,4.0,1.0)",
        "balancer.permuted": "True",
    }
    given = tuple(f"{name}={value}" for name, value in overrides.items())
    config = Run("run", str(path), given).build(0)
    assert (config.optimizer.momentum, config.optimizer.clip_norm) == (0.5, 1.5)
    assert config.balancer.constants == (1.5, 1.0, 4.0, 1.0) and config.balancer.permuted
    assert config.balancer.site == "gradient"
    again = from_tree(json.loads(json.dumps(to_tree(config))))
    assert again.optimizer == config.optimizer and again.balancer == config.balancer
    with pytest.raises(FusionError, match=r"no field 'nesterov' here; there are clip_norm"):
        Run("run", str(path), ("optimizer.nesterov=True",)).build(0)


def test_one_module_object_in_two_places_is_refused():
    config = load("av_digits").get_config()
    pooling = TransformerPooling()
    for name in config.model.modalities:
        config.model.encoders[name] = CNNEncoder(pooling=pooling)
    message = r"encoders.audio.pooling and config.model.encoders.image.pooling are one Transformer"
    with pytest.raises(FusionError, match=message):
        config.check()
    config.model.encoders["image"] = CNNEncoder(pooling=TransformerPooling())
    config.check()
