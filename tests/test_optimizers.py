"""Optimisers: frozen parameters, and where a balancer's scale acts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.data.arrays import ArrayData
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.optimizers import SGD, AdamW
from fusion_jax.runs import build_optimizer, new_state, root_key, state_shapes
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.sources import ArraySource
from fusion_jax.tasks.classification import ClassificationHead
from fusion_jax.training.step import make_train_step
from tests.conftest import make_batch

NAMES = ("left", "right")
SHAPES = {"left": 5, "right": 3}


def make_config(**fields):
    source = ArraySource(
        {name: np.zeros((4, width), np.float32) for name, width in SHAPES.items()},
        np.arange(4) % 3,
        num_classes=3,
    )
    return Config(
        model=FusionModel(
            encoders={name: MLPEncoder(hidden=(8,), features=6) for name in NAMES},
            scheduler=StaticScheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(num_classes=3),
        ),
        data=ArrayData(train=source, validation=source, test=source),
        recipe=Recipe(corruptions={"left": GaussianNoise(deviation=1.0)}),
        optimizer=AdamW(**({"learning_rate": 0.05, "weight_decay": 0.1} | fields)),
        num_steps=8,
    )


@functools.cache
def trained(frozen):
    """Parameters before and after 8 steps, and the optimiser's state."""
    config = make_config(frozen=frozen)
    spec = config.data.source("train").spec
    state = new_state(config, spec, root_key(config, 0))
    step = jax.jit(
        make_train_step(
            **{name: getattr(config, name) for name in ("model", "task", "objective", "balancer")},
            recipe=config.recipe,
            tx=build_optimizer(config),
            num_steps=config.num_steps,
        )
    )
    before = state.params
    for seed in range(8):
        state, _ = step(state, make_batch(seed=seed))
    return before, state.params, state.opt_state


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


@pytest.mark.parametrize(
    "frozen",
    [("encoders_left",), ("head", "encoders_right/Dense_0"), ("encoders_left/Dense_1/kernel",)],
    ids=["encoder", "two", "one array"],
)
def test_frozen_parameters_stay_to_the_bit_and_the_others_move(frozen):
    before, after, state = trained(frozen)
    before, after = by_path(before), by_path(after)
    held = {path for path in before if any(f"{path}/".startswith(f"{name}/") for name in frozen)}
    assert held and held != set(before)
    for path in before:
        assert (before[path] == after[path]).all() == (path in held), path
    # No optimiser memory: two moments of what is trained, and two step counts.
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 + 2 * sum(
        x.size for path, x in before.items() if path not in held
    )


def test_the_others_learn_as_if_the_frozen_ones_did_not_exist():
    # A chain over the trained parameters alone: no frozen gradient enters the clipped norm.
    generator = np.random.default_rng(0)
    params = {
        "encoders_left": {"kernel": np.float32(generator.normal(size=(4, 3)))},
        "head": {"kernel": np.float32(generator.normal(size=(3, 2)))},
    }
    grads = jax.tree.map(lambda x: np.float32(10 * generator.normal(size=x.shape)), params)

    def update(frozen, params, grads):
        tx = AdamW(frozen=frozen).build(
            num_steps=10, path_to_modality=lambda path: None, modalities=NAMES
        )
        state = tx.init(params)
        for factor in (1, 100, 1):  # Adam would not feel a clipped norm that is always the same.
            scaled = {
                name: jax.tree.map(lambda x, factor=factor: factor * x, g)
                if name == "encoders_left"
                else g
                for name, g in grads.items()
            }
            updates, state = tx.update(scaled, state, params, update_scale=jnp.ones(2))
            params = optax.apply_updates(params, updates)
        return params

    found = update(("encoders_left",), params, grads)
    alone = update((), {"head": params["head"]}, {"head": grads["head"]})
    np.testing.assert_array_equal(found["head"]["kernel"], alone["head"]["kernel"])
    both = update((), params, grads)
    assert (both["head"]["kernel"] != alone["head"]["kernel"]).any()


def test_the_balancer_still_scales_what_is_not_frozen():
    params = {f"encoders_{name}": {"bias": np.ones(3, np.float32)} for name in NAMES}
    params["head"] = {"bias": np.ones(3, np.float32)}
    grads = jax.tree.map(np.ones_like, params)
    tx = AdamW(frozen=("encoders_left",)).build(
        num_steps=10,
        path_to_modality=lambda path: path[0].removeprefix("encoders_").replace("head", "") or None,
        modalities=NAMES,
    )
    steps = {}
    for scale in (1.0, 0.25):
        state = tx.init(params)
        for _ in range(2):  # The first step has the learning rate 0 of the warm-up.
            updates, state = tx.update(
                grads, state, params, update_scale=jnp.array([7.0, scale], jnp.float32)
            )
        steps[scale] = by_path(updates)
    assert not steps[1.0]["encoders_left/bias"].any()
    np.testing.assert_allclose(
        steps[0.25]["encoders_right/bias"], 0.25 * steps[1.0]["encoders_right/bias"], rtol=1e-6
    )
    assert steps[1.0]["encoders_right/bias"].all()
    np.testing.assert_array_equal(steps[0.25]["head/bias"], steps[1.0]["head/bias"])


def test_without_frozen_paths_the_state_is_that_of_the_plain_chain():
    params = {"head": {"kernel": np.ones((3, 2), np.float32)}}
    state = (
        AdamW()
        .build(num_steps=10, path_to_modality=lambda path: None, modalities=NAMES)
        .init(params)
    )
    kinds = [type(part).__name__ for part in state]
    assert kinds == [
        "EmptyState",
        "EmptyState",
        "ScaleByAdamState",
        "EmptyState",
        "MaskedState",
        "ScaleByScheduleState",
    ]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (
            ("encoders_audio",),
            "'encoders_audio', which is no parameter: the top-level paths are "
            "encoders_left, encoders_right, head",
        ),
        # A prefix of a name is no path.
        (("encoders_lef",), "'encoders_lef', which is no parameter"),
        (("head", "head/Dense_7"), "'head/Dense_7', which is no parameter"),
        (("encoders_left", "encoders_right", "head"), "names every parameter: leave some to train"),
    ],
    ids=["unknown", "part of a name", "below", "all"],
)
def test_paths_that_lead_nowhere_are_refused_before_anything_is_compiled(frozen, message):
    config = make_config(frozen=frozen)
    with pytest.raises(FusionError, match=message):
        state_shapes(config, config.data.source("train").spec)


# Where a balancer's scale acts


def owner(path):
    return path[0].removeprefix("encoders_") if path[0] != "head" else None


def steps_of(optimizer, num=6, **scales):
    """Parameters, and the steps and gradients of steps 0, 1, ...; gradients vary and are the same
    for every optimiser and scale. A scale is [M], or [num, M] with one row for each step."""
    generator = np.random.default_rng(0)
    params = {
        f"encoders_{name}": {
            "kernel": np.float32(generator.normal(size=(4, 3))),
            "bias": np.float32(generator.normal(size=3)),
        }
        for name in NAMES
    }
    params["head"] = {"kernel": np.float32(generator.normal(size=(3, 2)))}
    tx = optimizer.build(num_steps=1000, path_to_modality=owner, modalities=NAMES)
    state, found = tx.init(params), []
    for _ in range(num):
        # Parameters stay where they are: what differs is what the optimiser makes of gradients.
        grads = jax.tree.map(lambda x: np.float32(generator.normal(size=x.shape)), params)
        now = {name: x[len(found)] if x.ndim == 2 else x for name, x in scales.items()}
        updates, state = tx.update(grads, state, params, **now)
        found.append((by_path(updates), by_path(grads)))
    return by_path(params), found


SCALE = jnp.asarray([0.25, 1.0], jnp.float32)
LEFT = ("encoders_left/kernel", "encoders_left/bias")


def assert_scaled(plain, scaled, factor, rtol):
    """The steps of the left encoder are `factor` times the plain ones, the others the same."""
    for path in plain:
        expected = (factor if path in LEFT else 1) * plain[path]
        np.testing.assert_allclose(scaled[path], expected, rtol=rtol, err_msg=path)


def test_constant_scale_of_the_gradient_cancels_in_adam():
    adam = AdamW(weight_decay=0.0, clip_norm=0.0, warmup_fraction=0.0)
    _, plain = steps_of(adam)
    _, scaled = steps_of(adam, gradient_scale=SCALE)
    for (one, _), (other, _) in zip(plain[1:], scaled[1:], strict=True):
        assert np.abs(one[LEFT[0]]).min() > 0
        assert_scaled(one, other, 1.0, 1e-4)
    # Not because it is not there: what changes from step to step is felt.
    changing = jnp.ones((6, 2)).at[5, 0].set(0.25)
    _, scaled = steps_of(adam, gradient_scale=changing)
    assert_scaled(plain[4][0], scaled[4][0], 1.0, 0)
    assert (np.abs(scaled[5][0][LEFT[0]] - plain[5][0][LEFT[0]]) > 1e-6).all()


def test_scale_of_the_update_is_exact_in_adam_and_leaves_the_decay():
    fields = {"clip_norm": 0.0, "warmup_fraction": 0.0, "learning_rate": 0.1}
    _, plain = steps_of(AdamW(weight_decay=0.0, **fields))
    _, scaled = steps_of(AdamW(weight_decay=0.0, **fields), update_scale=SCALE)
    params, decayed = steps_of(AdamW(weight_decay=0.5, **fields), update_scale=SCALE)
    for step in range(1, 6):
        assert_scaled(plain[step][0], scaled[step][0], 0.25, 1e-6)
        # What the decay adds is -rate * decay * parameter (the rate is all but the peak here).
        added = decayed[step][0][LEFT[0]] - scaled[step][0][LEFT[0]]
        np.testing.assert_allclose(added, -0.1 * 0.5 * params[LEFT[0]], rtol=1e-2)


def rates(peak, num):
    """Step 0 has the rate 0 of the warm-up, step 1 the peak."""
    return [optax.warmup_cosine_decay_schedule(0.0, peak, 1, 1000)(step) for step in range(num)]


@pytest.mark.parametrize("site", ["gradient", "update"])
def test_sgd_step_is_weight_times_rate_times_gradient(site):
    sgd = SGD(learning_rate=0.5, momentum=0.0, weight_decay=0.0, warmup_fraction=0.0)
    _, found = steps_of(sgd, 2, **{f"{site}_scale": SCALE})
    update, gradient = found[1]
    for path, value in gradient.items():
        # Powers of two: the product is exact.
        weight = np.float32(0.25 if path in LEFT else 1)
        np.testing.assert_array_equal(update[path], -np.float32(0.5) * weight * value)


def test_sgd_momentum_gathers_scaled_gradients_and_the_decay_is_not_scaled():
    sgd = SGD(learning_rate=0.5, momentum=0.9, weight_decay=0.1, warmup_fraction=0.0)
    params, scaled = steps_of(sgd, 4, gradient_scale=SCALE)
    _, stepped = steps_of(sgd, 4, update_scale=SCALE)
    _, plain = steps_of(sgd, 4)
    memory = np.zeros((4, 3))
    for step, rate in enumerate(rates(0.5, 4)):
        gradient = scaled[step][1][LEFT[0]]
        memory = 0.9 * memory + 0.25 * gradient + 0.1 * params[LEFT[0]]
        np.testing.assert_allclose(scaled[step][0][LEFT[0]], -rate * memory, rtol=1e-4, atol=1e-6)
        # On the update all of it is scaled, the decay inside the momentum too.
        assert_scaled(plain[step][0], stepped[step][0], 0.25, 1e-6)


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_clip_norm_zero_is_no_clipping(kind):
    fields = {"warmup_fraction": 0.0, "weight_decay": 0.0}
    free, wide, tight = (
        steps_of(kind(clip_norm=norm, **fields), 3)[1][2][0] for norm in (0.0, 1e6, 1e-7)
    )
    for path in free:
        np.testing.assert_array_equal(free[path], wide[path])
        assert np.abs(free[path]).min() > 0
        # Adam feels a clipped norm only beside its epsilon.
        assert (np.abs(tight[path]) < 0.95 * np.abs(free[path])).all()
