"""The training step: one function, the same numbers under every strategy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax.balancing.none import NoBalancer
from fusion_jax.balancing.ogm import OGM
from fusion_jax.blocks.norm import BatchNorm
from fusion_jax.config import Parallel, Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.concat import ConcatFusion
from fusion_jax.models import FusionModel, parameter_modality
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import SGD, AdamW
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.parallel import FSDP, DataParallel, Pmap, make_strategy
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step, scale_arguments
from fusion_jax.types import Features
from tests.conftest import make_batch


class NormedEncoder(nn.Module):
    """A smooth encoder with batch statistics: rows of other devices matter to it."""

    features: int = 6

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        x = BatchNorm()(nn.Dense(8, use_bias=False)(x), train=train, mask=mask)
        return Features(pooled=nn.Dense(self.features)(nn.gelu(x)))


QUIET = Recipe(noise_rate=0.0, modality_dropout=0.0)


@dataclasses.dataclass
class HalfLeft(NoBalancer):
    """Scales the updates of the first modality by `factor`."""

    factor: float = 0.5

    def observe(self, state, batch, output):
        ones, scale, state = super().observe(state, batch, output)
        return ones, scale.at[0].set(self.factor), state


def make_parts(balancer=None, recipe=None, encoder=NormedEncoder, tx=None):
    model = FusionModel(
        encoders={
            "left": encoder(),
            "right": MLPEncoder(hidden=(8,), features=6, dropout_rate=0.1),
        },
        scheduler=UDMLScheduler(),
        fusion=ConcatFusion(),
        head=ClassificationHead(3),
    )
    names = ("left", "right")
    default = Recipe(corruptions={"left": GaussianNoise(deviation=1.0)}, modality_dropout=0.3)
    tx = tx or AdamW(learning_rate=3e-3).build(
        num_steps=100,
        path_to_modality=lambda path: parameter_modality(path, names),
        modalities=names,
    )
    parts = {
        "model": model,
        "task": Classification(),
        "objective": Supervised(unimodal_weight=0.5),
        "balancer": balancer or NoBalancer(),
        "recipe": recipe or default,
        "tx": tx,
        "num_steps": 100,
    }
    state = create_state(
        model=model,
        tx=tx,
        balancer=parts["balancer"],
        objective=parts["objective"],
        example=make_batch(2, missing=False),
        key=jax.random.key(0),
    )
    return parts, state


def batches(num=5):
    # 16 rows on 8 devices, 11 of them valid: the last two devices hold padding only.
    return [make_batch(16, valid=11, seed=i) for i in range(num)]


def losses_and_params(run, state):
    losses = []
    for batch in batches():
        state, metrics = run(state, batch)
        losses.append(float(np.ravel(metrics["loss"])[0]))
    return losses, jax.device_get(state.params), jax.device_get(state.collections)


def assert_close(a, b, atol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


# Compiling a step takes seconds: tests that can share one do.
@pytest.fixture(scope="module")
def noisy_step():
    parts, state = make_parts()
    return jax.jit(make_train_step(**parts)), state


@pytest.fixture(scope="module")
def quiet_step():
    """Without noise and modality dropout: presence is what the batch says. Counts its traces."""
    parts, state = make_parts(recipe=QUIET)
    traces, step = [], make_train_step(**parts)

    def counted(state, batch):
        traces.append(1)
        return step(state, batch)

    return jax.jit(counted), state, traces


@pytest.fixture(scope="module")
def one_device(noisy_step):
    return losses_and_params(*noisy_step)


def test_step_under_jit_on_eight_devices_equals_one_device(one_device):
    parts, state = make_parts()
    parallel = DataParallel()
    assert parallel.mesh.size == 8
    step = parallel.compile(make_train_step(**parts), state)
    losses, params, collections = losses_and_params(
        lambda s, b: step(s, parallel.place_batch(b)), parallel.place_state(state)
    )
    np.testing.assert_allclose(losses, one_device[0], atol=1e-5)
    assert_close((params, collections), one_device[1:])


@pytest.mark.parametrize("strategy", [DataParallel, Pmap])
def test_placing_a_state_leaves_the_state_alone(strategy):
    # The step donates what it is given; what the caller holds must stay.
    _, state = make_parts()
    placed = strategy().place_state(state)
    jax.jit(lambda x: jax.tree.map(jnp.copy, x), donate_argnums=0)(placed)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_step_under_pmap_on_eight_devices_equals_one_device(one_device):
    parts, state = make_parts()
    parallel = Pmap()
    step = parallel.compile(make_train_step(**parts), state)
    losses, params, collections = losses_and_params(
        lambda s, b: step(s, parallel.place_batch(b)), parallel.place_state(state)
    )
    np.testing.assert_allclose(losses, one_device[0], atol=1e-5)
    # Every device holds the same state.
    for leaf in jax.tree.leaves(jax.device_get(params)):
        assert np.isfinite(leaf).all()
    assert_close((params, collections), one_device[1:])


def test_accumulated_gradients_are_those_of_the_whole_batch():
    # Without dropout, noise and running statistics, which see the parts one by one.
    parts, _ = make_parts(recipe=QUIET)
    encoders = {name: MLPEncoder(hidden=(8,), features=6) for name in ("left", "right")}
    parts["model"] = parts["model"].clone(encoders=encoders, scheduler=StaticScheduler())
    state = create_state(
        model=parts["model"],
        tx=parts["tx"],
        balancer=parts["balancer"],
        objective=parts["objective"],
        example=make_batch(2, missing=False),
        key=jax.random.key(0),
    )
    whole = jax.jit(make_train_step(**parts))
    # Parts of 4, and one with 1 valid row of 4: its rows count once each, not the part.
    in_parts = jax.jit(make_train_step(**parts, accumulation=4))
    first, second = (
        whole(state, make_batch(16, valid=11)),
        in_parts(state, make_batch(16, valid=11)),
    )
    assert_close(first[0].params, second[0].params, atol=1e-6)
    assert set(first[1]) == set(second[1])
    for name in first[1]:
        np.testing.assert_allclose(first[1][name], second[1][name], atol=1e-5, err_msg=name)
    jaxpr = str(jax.make_jaxpr(make_train_step(**parts, accumulation=4))(state, make_batch(16)))
    assert "scan[" in jaxpr and "float32[4,5]" in jaxpr.replace("f32", "float32")


@pytest.mark.slow
def test_accumulation_works_with_state_noise_and_dropout_over_devices():
    parts, state = make_parts()
    step = make_train_step(**parts, accumulation=2)
    one = losses_and_params(jax.jit(step), state)
    parallel = Pmap()
    mapped = parallel.compile(step, state)
    many = losses_and_params(
        lambda s, b: mapped(s, parallel.place_batch(b)), parallel.place_state(state)
    )
    np.testing.assert_allclose(many[0], one[0], atol=1e-5)
    assert_close(many[1:], one[1:])


@pytest.mark.slow
def test_rematerialised_encoders_give_the_same_step(noisy_step):
    step, state = noisy_step
    parts, _ = make_parts()
    parts["model"] = parts["model"].clone(rematerialise=True)
    again = make_train_step(**parts)
    batch = make_batch(16, valid=11)
    first, second = step(state, batch), jax.jit(again)(state, batch)
    assert_close(first[0].params, second[0].params, atol=1e-6)
    assert float(first[1]["loss"]) == pytest.approx(float(second[1]["loss"]), abs=1e-6)
    assert "remat" in str(jax.make_jaxpr(again)(state, batch))


def test_strategy_of_another_name_is_refused():
    with pytest.raises(FusionError, match="choose 'jit', 'fsdp' or 'pmap'"):
        make_strategy(Parallel(strategy="ddp"))


def test_batch_size_must_divide_over_devices_and_parts():
    with pytest.raises(FusionError, match=r"batch_size is 24: .*8 devices times .*= 2"):
        DataParallel().check(batch_size=24, accumulation=2)
    DataParallel().check(batch_size=32, eval_batch_size=24, accumulation=2)


def test_fsdp_splits_large_arrays_and_keeps_small_ones_whole():
    parallel = FSDP(min_size=64)
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 64), jnp.float32),
        "tall": jax.ShapeDtypeStruct((128, 16), jnp.float32),
        "odd": jax.ShapeDtypeStruct((65, 3), jnp.float32),
        "bias": jax.ShapeDtypeStruct((32,), jnp.float32),
    }
    found = {name: placed.spec for name, placed in parallel.shardings(shapes).items()}
    assert found["kernel"] == jax.sharding.PartitionSpec(None, "data")
    assert found["tall"] == jax.sharding.PartitionSpec("data", None)
    assert found["odd"] == found["bias"] == jax.sharding.PartitionSpec()
    made = parallel.create(lambda key: {"x": jax.random.normal(key, (64, 8))}, jax.random.key(0))
    assert made["x"].addressable_shards[0].data.shape == (8, 8)


def test_padding_rows_never_count(noisy_step):
    step, state = noisy_step
    batch = make_batch(16, valid=11)
    other = jax.tree.map(np.copy, batch)
    for name in other.inputs:
        other.inputs[name][11:] = 1e3
    other.target[11:] = 2
    first, second = step(state, batch), step(state, other)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.array_equal(np.asarray(raw(x)), np.asarray(raw(y)))


def raw(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_missing_inputs_reach_neither_loss_nor_gradient_even_as_nan(quiet_step):
    step, state, _ = quiet_step
    batch = make_batch(16)
    broken = jax.tree.map(np.copy, batch)
    for m, name in enumerate(sorted(broken.inputs)):
        broken.inputs[name][~broken.present[:, m]] = np.nan
    (after, metrics), (after_broken, metrics_broken) = step(state, batch), step(state, broken)
    assert float(metrics["loss"]) == float(metrics_broken["loss"])
    for x, y in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(after_broken.params), strict=True
    ):
        np.testing.assert_array_equal(x, y)


def test_step_traces_once_and_lowers_the_loss(quiet_step):
    step, state, traces = quiet_step
    batch = make_batch(16)
    losses = []
    for _ in range(80):
        state, metrics = step(state, batch)
        losses.append(float(metrics["task_loss"]))
    assert len(traces) == 1
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    assert int(state.step) == 80


@pytest.mark.slow
def test_update_scale_scales_the_step_of_one_encoder_exactly():
    # With plain SGD the step is -lr g: halving the scale halves the step of "left" alone.
    from fusion_jax.balancing import scale_by_modality

    names = ("left", "right")
    tx = optax.chain(
        scale_by_modality(lambda path: parameter_modality(path, names), names), optax.sgd(0.1)
    )
    moves = []
    for balancer in (NoBalancer(), HalfLeft()):
        parts, state = make_parts(balancer=balancer, tx=tx, recipe=QUIET)
        after, _ = jax.jit(make_train_step(**parts))(state, make_batch(16))
        moves.append(jax.tree.map(lambda a, b: np.asarray(a - b), after.params, state.params))
    plain, scaled = moves
    for name in plain:
        factor = 0.5 if name == "encoders_left" else 1.0
        assert_close(jax.tree.map(lambda x, f=factor: f * x, plain[name]), scaled[name], atol=1e-7)
    assert max(np.abs(x).max() for x in jax.tree.leaves(plain["encoders_left"])) > 1e-4


@pytest.mark.slow
def test_gradient_noise_is_the_same_on_eight_devices_and_fresh_at_every_step():
    # OGM-GE: a balancer with statistics of the batch, gradients scaled, and noise on top.
    names = ("left", "right")
    tx = SGD(learning_rate=0.1, warmup_fraction=0.0).build(
        num_steps=100,
        path_to_modality=lambda path: parameter_modality(path, names),
        modalities=names,
    )
    balancer = OGM(gradient_noise=1.0)
    parts, state = make_parts(balancer=balancer, tx=tx)
    # The step's key is what the optimiser is told, with the site that the balancer names.
    told = [
        scale_arguments(balancer, jnp.ones(2), state.replace(step=jnp.int32(number)))
        for number in (0, 0, 1)
    ]
    assert set(told[0]) == {"gradient_scale", "gradient_noise", "noise_key"}
    keys = [np.asarray(jax.random.key_data(arguments["noise_key"])) for arguments in told]
    assert (keys[0] == keys[1]).all() and (keys[0] != keys[2]).any()
    assert set(scale_arguments(NoBalancer(), jnp.ones(2), state)) == {"update_scale"}
    step = make_train_step(**parts)
    one = losses_and_params(jax.jit(step), state)
    parallel = Pmap()
    mapped = parallel.compile(step, state)
    many = losses_and_params(
        lambda s, b: mapped(s, parallel.place_batch(b)), parallel.place_state(state)
    )
    np.testing.assert_allclose(many[0], one[0], atol=1e-5)
    assert_close(many[1:], one[1:])


def test_unknown_view_is_refused_by_name():
    parts, state = make_parts()
    parts["objective"] = Supervised(views=("twisted",))
    with pytest.raises(Exception, match="unknown view 'twisted'"):
        make_train_step(**parts)(state, make_batch(4))


def test_noise_is_fresh_at_every_step_and_the_same_after_a_restart():
    from fusion_jax.training.step import make_view

    parts, state = make_parts()
    batch, recipe = make_batch(16, missing=False), parts["recipe"]
    view = jax.jit(lambda state: make_view("corrupted", batch, recipe, state, 1.0))
    first, level = view(state)
    again, _ = view(state)
    later, later_level = view(state.replace(step=state.step + 1))
    np.testing.assert_array_equal(first.inputs["left"], again.inputs["left"])
    assert (np.asarray(level) != np.asarray(later_level)).any()
    assert (np.asarray(first.inputs["left"]) != np.asarray(later.inputs["left"])).any()
    # "right" has no corruption in the recipe: it stays clean.
    np.testing.assert_array_equal(first.inputs["right"], batch.inputs["right"])
    assert not np.asarray(level)[:, 1].any()
    clean = np.asarray(level)[:, 0] == 0
    np.testing.assert_array_equal(
        np.asarray(first.inputs["left"])[clean], batch.inputs["left"][clean]
    )
    assert 0 < clean.sum() < 16
