"""The controls of an adaptive scheduler: constant, permuted and true-severity weights, averages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax.blocks.presence import permuted_weights, uniform_weights
from fusion_jax.cells import Cell, Condition
from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.data.arrays import ArrayData
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.evaluate import evaluate
from fusion_jax.evaluation.grid import evaluate_grid, make_grid_program
from fusion_jax.fusion.mean import MeanFusion
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.predictor import Predictor, load
from fusion_jax.runs import load_config, restore_best, state_shapes
from fusion_jax.schedulers.constant import ConstantScheduler
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.true_severity import TrueSeverityScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.signals.predicted_noise import PredictedNoise
from fusion_jax.sources import ArraySource
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.loop import train
from fusion_jax.training.parallel import DataParallel
from tests.conftest import make_batch, make_present, make_scheduler_input
from tests.training import small

NAMES = ("left", "right")


def make_model(scheduler, fusion=None):
    """A small model of the batches of `make_batch`."""
    return FusionModel(
        encoders={name: MLPEncoder(hidden=(8,), features=6) for name in NAMES},
        scheduler=scheduler,
        fusion=fusion or SumFusion(),
        head=ClassificationHead(num_classes=3),
    )


# Constant weights


def test_constant_shares_are_kept_over_the_present_modalities():
    inputs = make_scheduler_input(rows=20, num=3)
    present = np.asarray(inputs.present)
    found = ConstantScheduler(shares=(1.0, 2.0, 5.0)).apply({}, inputs, train=False).weights
    mass = np.float64([1, 2, 5]) * present
    expected = mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.asarray(found)[~present].any()
    equal = ConstantScheduler().apply({}, inputs, train=False).weights
    np.testing.assert_array_equal(equal, uniform_weights(inputs.present))


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 2.0, 3.0), (1.0, 0.0), (1.0, -2.0)])
def test_constant_shares_that_do_not_fit_are_refused_by_the_modalities(shares):
    inputs = make_scheduler_input(num=2)
    with pytest.raises(FusionError, match="one positive number for each of") as error:
        ConstantScheduler(shares=shares).apply({}, inputs, train=False)
    assert "'acoustic', 'depth'" in str(error.value)


# Permuted weights


def permutation_case(rows=40, num=3):
    """Weights that differ from row to row, over rows whose neighbours lack other modalities."""
    generator = np.random.default_rng(0)
    present = make_present(rows, num)
    weights = generator.uniform(0.1, 1, (rows, num)) * present
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    return jnp.float32(weights), jnp.asarray(present)


def test_permuted_weights_are_those_of_the_next_row_with_the_same_mean():
    weights, _ = permutation_case()
    everything = jnp.ones(weights.shape, bool)
    weights = (weights + 0.1) / (weights + 0.1).sum(axis=1, keepdims=True)
    found = jax.jit(permuted_weights)(weights, everything)
    np.testing.assert_allclose(found, np.roll(weights, -1, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.mean(axis=0), weights.mean(axis=0), rtol=1e-5)


def test_permuted_weights_sum_to_one_where_neighbours_lack_modalities():
    weights, present = permutation_case()
    found = np.asarray(jax.jit(permuted_weights)(weights, present))
    here = np.asarray(present)
    assert (found >= 0).all() and not found[~here].any()
    np.testing.assert_allclose(found.sum(axis=1), here.any(axis=1), atol=1e-6)
    # Where the next row has nothing for this one, shares are equal.
    apart = here.any(axis=1) & ~(here & np.roll(here, -1, axis=0)).any(axis=1)
    assert apart.any()
    np.testing.assert_allclose(found[apart], uniform_weights(present)[apart], atol=1e-6)


def test_permuted_weights_are_the_same_on_eight_devices():
    weights, present = permutation_case()
    expected = np.asarray(jax.jit(permuted_weights)(weights, present))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    split = jax.jit(permuted_weights)(*jax.device_put((weights, present), rows))
    np.testing.assert_array_equal(split, expected)
    mapped = jax.pmap(permuted_weights, axis_name="data")(
        weights.reshape(8, 5, 3), present.reshape(8, 5, 3)
    )
    np.testing.assert_array_equal(np.asarray(mapped).reshape(40, 3), expected)


def test_permuted_scheduler_gives_the_weights_of_the_next_example():
    inputs = make_scheduler_input(rows=20, num=2)
    inputs = inputs.replace(present=jnp.ones((20, 2), bool))
    fields = {"signals": (PredictedNoise(hidden=4),), "exponents": (0.5,)}
    variables = UDMLScheduler(**fields).init(jax.random.key(0), inputs, train=False)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.float32(generator.normal(size=x.shape)), variables)
    own, other = (
        np.asarray(
            UDMLScheduler(**fields, permuted=p).apply(variables, inputs, train=False).weights
        )
        for p in (False, True)
    )
    assert np.ptp(own[:, 0]) > 0.05
    np.testing.assert_allclose(other, np.roll(own, -1, axis=0), rtol=1e-6)


# True severity


def test_true_severity_learns_to_prefer_the_cleaner_modality():
    inputs = make_scheduler_input(rows=64, num=2)
    level = jnp.float32(np.random.default_rng(0).uniform(0, 4, (64, 2)))
    inputs = inputs.replace(noise_level=level, present=jnp.ones((64, 2), bool))
    scheduler, tx = TrueSeverityScheduler(hidden=8), optax.adam(3e-2)
    start = scheduler.init(jax.random.key(0), inputs, train=False)

    def error(variables):
        # Two measurements of one number with these variances: least expected squared error.
        weights = scheduler.apply(variables, inputs, train=True).weights
        return jnp.mean(jnp.sum(weights**2 * (0.1 + level**2), axis=1))

    @jax.jit
    def fit(variables):
        def step(carry, _):
            variables, state = carry
            updates, state = tx.update(jax.grad(error)(variables), state)
            return (optax.apply_updates(variables, updates), state), None

        return jax.lax.scan(step, (variables, tx.init(variables)), None, length=300)[0][0]

    learned = fit(start)
    assert error(learned) < 0.7 * error(start)
    weights = scheduler.apply(learned, inputs, train=False).weights
    cleaner, apart = np.argmin(level, axis=1), np.abs(level[:, 0] - level[:, 1]) > 1
    assert (np.asarray(weights)[np.arange(64), cleaner][apart] > 0.5).all()


def test_true_severity_does_not_predict():
    batch = make_batch(8, missing=False)
    model = make_model(TrueSeverityScheduler(hidden=4))
    variables = model.init(jax.random.key(0), batch.inputs, batch.present, train=False)
    message = "needs the true noise levels, which a prediction does not know"
    with pytest.raises(FusionError, match=message):
        model.apply(variables, batch.inputs, batch.present, train=False)
    source = ArraySource(batch.inputs, batch.target, num_classes=3)
    predictor = Predictor(model, variables, source.spec)
    with pytest.raises(FusionError, match=message):
        predictor(batch.inputs)


@pytest.mark.slow
def test_grid_tells_the_true_noise_to_the_control_alone():
    batch = make_batch(16, missing=False)
    corruptions = {name: (GaussianNoise(deviation=1.0),) for name in NAMES}
    noisy = Cell((("left", Condition("GaussianNoise", 1.0)),))
    weights = {}
    for scheduler in (TrueSeverityScheduler(hidden=4), ConstantScheduler(shares=(1.0, 3.0))):
        model = make_model(scheduler)
        variables = model.init(jax.random.key(0), batch.inputs, batch.present, train=False)
        generator = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x, draw=generator.normal: x + 0.5 * jnp.float32(draw(size=x.shape)),
            variables["params"],
        )
        program = make_grid_program(
            model, Classification(), corruptions, compiled=DataParallel().evaluation
        )
        clean, other = evaluate_grid(
            program, {"params": params}, [batch], cells=[Cell(), noisy], key=jax.random.key(1)
        )
        assert (other.noise_level[:, 0] > 0).all() and not clean.noise_level.any()
        weights[type(scheduler)] = np.abs(clean.weights - other.weights).max()
    assert weights[TrueSeverityScheduler] > 1e-2
    assert weights[ConstantScheduler] == 0


# Averages of unimodal predictions


def test_mean_fusion_with_a_linear_head_is_the_average_of_unimodal_logits():
    batch = make_batch(16)
    model = make_model(ConstantScheduler(), MeanFusion())
    variables = model.init(jax.random.key(0), batch.inputs, batch.present, train=False)
    output = model.apply(variables, batch.inputs, batch.present, train=False)
    here = batch.present[..., None]
    expected = (np.asarray(output.unimodal) * here).sum(axis=1) / here.sum(axis=1)
    np.testing.assert_allclose(output.prediction, expected, atol=1e-5)


@pytest.mark.parametrize(("weight", "learns"), [(0.0, False), (1.0, True)])
def test_without_fused_weight_what_only_fuses_has_no_gradient(weight, learns):
    batch = make_batch(16, missing=False)
    scheduler = TrueSeverityScheduler(hidden=4)  # enters the fused prediction alone
    model = make_model(scheduler, MeanFusion())
    level = jnp.float32(np.random.default_rng(0).uniform(0, 2, (16, 2)))
    arguments = (batch.inputs, batch.present)
    start = model.init(jax.random.key(0), *arguments, train=False)["params"]
    objective = Supervised(fused_weight=weight, unimodal_weight=1.0)

    @jax.jit
    @jax.grad
    def gradient(params):
        output = model.apply({"params": params}, *arguments, train=True, noise_level=level)
        loss, _, _ = objective(
            {"corrupted": output},
            {"corrupted": batch},
            objective.init(2),
            task=Classification(),
            loss_weights=jnp.ones(2),
        )
        return loss.mean()

    found = gradient(start)
    sizes = {
        name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part))
        for name, part in found.items()
    }
    assert (sizes.pop("scheduler") > 0) == learns
    assert min(sizes.values()) > 1e-4  # encoders and head learn from each modality alone


# A predictor of a checkpoint from before the start


def make_split(num, first_id, *, shift):
    """One modality tells the class; targets are moved on by `shift` classes."""
    generator = np.random.default_rng(first_id)
    classes = generator.integers(0, 3, num)
    inputs = {
        "left": (2 * np.eye(3)[classes] + generator.normal(size=(num, 3))).astype(np.float32),
        "right": generator.normal(size=(num, 3)).astype(np.float32),
    }
    return ArraySource(inputs, (classes + shift) % 3, num_classes=3, first_id=first_id)


@pytest.mark.slow
def test_predictor_of_a_checkpoint_from_before_the_start_has_equal_weights(tmp_path):
    # What is learned in training is wrong in validation, so the first checkpoint is the best one.
    data = ArrayData(
        train=make_split(240, 0, shift=0),
        validation=make_split(64, 240, shift=1),
        test=make_split(64, 304, shift=0),
    )
    scheduler = UDMLScheduler(signals=(PredictedNoise(hidden=4),), exponents=(0.5,), start=0.6)
    config = Config(
        model=make_model(scheduler), data=data, num_steps=30, batch_size=32, eval_batch_size=32
    )
    config.eval_every = 5
    config.recipe.corruptions = {"left": GaussianNoise(deviation=1.0)}
    config.optimizer.learning_rate = 1e-2
    train(config, tmp_path / "run")
    saved, spec, _ = load_config(tmp_path / "run")
    state = restore_best(state_shapes(saved, spec), tmp_path / "run", 0)
    assert int(state.step) < 0.6 * 30
    inputs = data.source("test")[np.arange(64)]["inputs"]
    np.testing.assert_array_equal(load(tmp_path / "run")(inputs).weights, 0.5)
    # The same variables, as if they were of the end of training.
    variables = {"params": state.params, **state.collections}
    late = Predictor(saved.model, variables, spec, progress=1.0)(inputs).weights
    assert np.abs(late - 0.5).max() > 1e-4


def test_signals_of_one_class_are_refused():
    inputs = make_scheduler_input()
    scheduler = StaticScheduler(signals=(PredictedNoise(hidden=4), PredictedNoise(hidden=8)))
    with pytest.raises(FusionError, match="has PredictedNoise more than once"):
        scheduler.init(jax.random.key(0), inputs, train=False)


@pytest.mark.parametrize("scaling", [False, True], ids=["plain", "temperature scaling"])
@pytest.mark.slow
def test_the_control_that_is_told_the_noise_is_trained_and_evaluated(scaling, tmp_path):
    config = small.make_config(data=small.make_data(), scaling=scaling, num_steps=2)
    model = config.model.clone(scheduler=TrueSeverityScheduler(hidden=4))
    recipe = Recipe({name: GaussianNoise(deviation=1.0) for name in NAMES})
    told = dataclasses.replace(config, model=model, recipe=recipe, eval_every=2)
    train(told, tmp_path / "run")
    cells = evaluate(tmp_path / "run", data=config.data)["cells"]
    assert len(cells) > 10 and all(np.isfinite(cell["accuracy"]) for cell in cells)
