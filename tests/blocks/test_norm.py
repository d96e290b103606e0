"""BatchNorm over devices with uneven padding, GroupNorm; both against NumPy and against Flax."""

import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.axes import DATA_AXIS, mean_share
from fusion_jax.blocks.norm import BatchNorm, GroupNorm
from fusion_jax.errors import FusionError

CHANNELS, EPSILON = 4, 1e-5


def make_rows(rows: int = 16, seed: int = 0) -> np.ndarray:
    """[rows, 3, CHANNELS]; the means differ and the first is large against its deviation."""
    x = np.random.default_rng(seed).normal(size=(rows, 3, CHANNELS))
    return (x * [0.5, 1, 2, 3] + [40, -1, 0, 5]).astype(np.float32)


def make_variables(seed: int = 1) -> dict:
    """Parameters and statistics that are not those of initialisation."""
    generator = np.random.default_rng(seed)

    def draw(low, high):
        return jnp.asarray(generator.uniform(low, high, CHANNELS), jnp.float32)

    return {
        "params": {"scale": draw(0.5, 2), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
    }


def normalised(x, mean, variance, variables) -> np.ndarray:
    scale, bias = (np.float64(variables["params"][name]) for name in ("scale", "bias"))
    return (x - mean) / np.sqrt(variance + EPSILON) * scale + bias


def apply(variables, x, mask=None, *, train=True, module=None):
    module = module or BatchNorm()
    run = jax.jit(
        lambda variables, x, mask: module.apply(
            variables, x, train=train, mask=mask, mutable=["batch_stats"]
        )
    )
    output, changed = run(variables, x, mask)
    return output, changed["batch_stats"]


@pytest.mark.parametrize("valid", [16, 5])
def test_batch_norm_in_training_uses_and_records_the_valid_rows(valid):
    x, variables, mask = make_rows(), make_variables(), np.arange(16) < valid
    rows = x[mask].astype(np.float64).reshape(-1, CHANNELS)
    mean, variance = rows.mean(axis=0), rows.var(axis=0)
    output, stats = apply(variables, x, mask, module=BatchNorm(momentum=0.8))
    # Two-pass float32 moments: the channel with mean 40 and deviation 0.5 loses two digits.
    expected = normalised(x, mean, variance, variables)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-4)
    before = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.8 * before["mean"] + 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.8 * before["var"] + 0.2 * variance, rtol=1e-5)


def test_batch_norm_without_mask_counts_all_rows():
    x, variables = make_rows(), make_variables()
    output, stats = apply(variables, x)
    masked, masked_stats = apply(variables, x, np.ones(16, bool))
    np.testing.assert_allclose(output, masked, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], masked_stats["mean"], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], masked_stats["var"], rtol=1e-6)


def test_batch_norm_in_evaluation_uses_the_running_statistics():
    x, variables = make_rows(), make_variables()
    output, stats = apply(variables, x, np.arange(16) < 3, train=False)
    before = {name: np.float64(value) for name, value in variables["batch_stats"].items()}
    expected = normalised(x, before["mean"], before["var"], variables)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(stats["mean"], variables["batch_stats"]["mean"])
    np.testing.assert_array_equal(stats["var"], variables["batch_stats"]["var"])


def test_batch_norm_ignores_whatever_padding_rows_hold():
    x, variables, mask = make_rows(), make_variables(), np.arange(16) < 9
    broken = x.copy()
    broken[9:] = np.nan
    broken[12:] = 1e30
    output, stats = apply(variables, x, mask)
    other, other_stats = apply(variables, broken, mask)
    np.testing.assert_array_equal(output[:9], other[:9])
    np.testing.assert_array_equal(stats["mean"], other_stats["mean"])
    np.testing.assert_array_equal(stats["var"], other_stats["var"])


def test_batch_norm_without_a_valid_row_keeps_its_statistics():
    x, variables = make_rows(), make_variables()
    output, stats = apply(variables, x, np.zeros(16, bool))
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(stats["mean"], variables["batch_stats"]["mean"])
    np.testing.assert_array_equal(stats["var"], variables["batch_stats"]["var"])


def test_batch_norm_initialises_to_the_identity_in_evaluation():
    x = make_rows()
    variables = jax.jit(lambda x: BatchNorm().init(jax.random.key(0), x, train=True))(x)
    output, _ = apply(variables, x, train=False)
    # Mean 0, variance 1, scale 1, bias 0: only epsilon is left.
    np.testing.assert_allclose(output, x / np.sqrt(1 + EPSILON), rtol=1e-6)


def test_batch_norm_keeps_half_precision_but_not_in_its_statistics():
    output, stats = apply(make_variables(), jnp.asarray(make_rows(), jnp.bfloat16))
    assert output.dtype == jnp.bfloat16
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32


def gradients(module, stats, params, x, valid, target, **kwargs):
    """Gradients of a curved loss into (params, x), with (output, new statistics)."""

    def loss(params, x):
        output, changed = module.apply(
            {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"], **kwargs
        )
        rows = jnp.sum(jnp.sin(output) * target, axis=(1, 2))
        return mean_share(rows, valid), (output, changed["batch_stats"])

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)


def test_batch_norm_over_devices_is_batch_norm_of_the_whole_batch():
    x, variables = make_rows(seed=2), make_variables()
    # Devices 4 and 7 hold padding only, device 2 one valid row of two.
    mask = np.repeat([1, 1, 1, 1, 0, 1, 1, 0], 2).astype(bool)
    mask[4] = False
    target = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)

    def run(params, x, mask, target):
        stats = variables["batch_stats"]
        return gradients(BatchNorm(), stats, params, x, mask, target, train=True, mask=mask)

    (params, inputs), (output, stats) = jax.jit(run)(variables["params"], x, mask, target)
    parts = [values.reshape(8, 2, *values.shape[1:]) for values in (x, mask, target)]
    mapped = jax.pmap(run, axis_name=DATA_AXIS, in_axes=(None, 0, 0, 0))
    (each_params, each_inputs), (each_output, each_stats) = mapped(variables["params"], *parts)
    np.testing.assert_allclose(np.reshape(each_output, x.shape), output, atol=1e-5)
    np.testing.assert_allclose(np.reshape(each_inputs, x.shape), inputs, atol=1e-5)
    for name in ("scale", "bias"):
        np.testing.assert_allclose(each_params[name].sum(axis=0), params[name], atol=1e-5)
    for name in ("mean", "var"):
        copies = np.broadcast_to(stats[name], (8, CHANNELS))
        np.testing.assert_allclose(each_stats[name], copies, rtol=1e-5, atol=1e-5)


def test_batch_norm_of_a_full_batch_is_that_of_flax():
    # Moderate means: Flax computes the variance as E[x^2] - E[x]^2.
    x = np.random.default_rng(4).normal(0.5, 2, (16, 3, CHANNELS)).astype(np.float32)
    target = np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    variables, mask = make_variables(), np.ones(16, bool)

    @jax.jit
    def run(params, x):
        given = (variables["batch_stats"], params, x, mask, target)
        return (
            gradients(BatchNorm(momentum=0.7), *given, train=True),
            gradients(nn.BatchNorm(momentum=0.7), *given, use_running_average=False),
        )

    ours, theirs = run(variables["params"], x)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_batch_norm_computes_in_float64_where_its_input_is_and_keeps_the_dtype_of_its_state():
    with jax.enable_x64(True):
        x, variables = np.float64(make_rows()), make_variables()
        rows = x.reshape(-1, CHANNELS)
        mean, variance = rows.mean(axis=0), rows.var(axis=0)
        output, stats = apply(variables, x)
        expected = normalised(x, mean, variance, variables)
        # In float32 the channel with mean 40 is off by 1e-5.
        np.testing.assert_allclose(output, expected, rtol=1e-10, atol=1e-10)
        assert stats["mean"].dtype == stats["var"].dtype == jnp.float32


def test_batch_norm_scale_starts_where_it_is_told():
    layer = BatchNorm(scale_init=nn.initializers.zeros_init())
    made = jax.jit(lambda x: layer.init(jax.random.key(0), x, train=False))(make_rows())
    assert not np.any(made["params"]["scale"])


def group_variables(channels=8):
    generator = np.random.default_rng(2)
    scale, bias = generator.uniform(0.5, 2, channels), generator.uniform(-1, 1, channels)
    return {"params": {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}}


# Not eight groups without positions: a group of one value has no deviation.
@pytest.mark.parametrize(
    ("groups", "spatial"),
    [(1, ()), (2, ()), *itertools.product((1, 2, 8), ((5,), (4, 3), (9, 7)))],
)
@pytest.mark.parametrize("relu", [False, True])
def test_group_norm_is_that_of_flax_in_values_and_gradients(groups, spatial, relu):
    def flax_norm(variables, x):
        y = nn.GroupNorm(groups).apply(variables, x)
        return nn.relu(y) if relu else y

    x = np.float32(np.random.default_rng(0).normal(1.0, 2.0, size=(3, *spatial, 8)))
    given = np.float32(np.random.default_rng(1).normal(size=x.shape))
    found = {}
    for name, norm in {"own": GroupNorm(groups, relu=relu).apply, "flax": flax_norm}.items():
        y, pull = jax.vjp(jax.jit(norm), group_variables(), x)
        found[name] = (y, *pull(given))
    chex.assert_trees_all_close(found["own"], found["flax"], atol=2e-5, rtol=2e-4)


def test_gradients_of_group_norm_in_float64_are_those_of_its_definition():
    def by_definition(variables, x):
        rows = x.reshape(3, -1, 2, 4)
        mean = rows.mean(axis=(1, 3), keepdims=True)
        variance = rows.var(axis=(1, 3), keepdims=True)
        y = ((rows - mean) / jnp.sqrt(variance + 1e-6)).reshape(x.shape)
        scale, bias = (variables["params"][name][None, None, None] for name in ("scale", "bias"))
        return jnp.maximum(y * scale + bias, 0)

    with jax.enable_x64(True):
        x = np.random.default_rng(6).normal(1.0, 2.0, size=(3, 6, 5, 8))
        given = np.random.default_rng(7).normal(size=x.shape)
        variables = jax.tree.map(np.float64, group_variables())
        found = jax.vjp(GroupNorm(2, relu=True).apply, variables, x)
        expected = jax.vjp(by_definition, variables, x)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
        chex.assert_trees_all_close(found[1](given), expected[1](given), atol=1e-11)


def test_a_gradient_of_group_norm_can_be_differentiated_forwards():
    x = np.float32(np.random.default_rng(8).normal(size=(2, 20, 8)))
    way = np.float32(np.random.default_rng(9).normal(size=x.shape))

    def slope(norm):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(norm(group_variables(), x))))
        return jax.jvp(gradient, (x,), (way,))

    found, expected = slope(GroupNorm(2).apply), slope(nn.GroupNorm(2).apply)
    chex.assert_trees_all_close(found, expected, atol=1e-4)


def test_group_norm_starts_as_that_of_flax():
    x = jnp.ones((2, 3, 8))
    start = nn.initializers.constant(0.0)
    own = GroupNorm(4, scale_init=start).init(jax.random.key(0), x)
    flax = nn.GroupNorm(4, scale_init=start).init(jax.random.key(0), x)
    chex.assert_trees_all_equal(own, flax)


def test_a_large_mean_does_not_cancel_deviations_in_group_norm():
    x = np.random.default_rng(0).normal(300.0, 0.05, size=(2, 50, 8))
    rows = x.reshape(2, 50, 2, 4)
    mean, variance = (f(rows, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((rows - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    params = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    own = GroupNorm(2).apply(params, np.float32(x))
    # float32 holds 300 to 3e-5, which is 6e-4 of a deviation.
    np.testing.assert_allclose(own, expected, atol=2e-3)
    flax = nn.GroupNorm(2).apply(params, np.float32(x))
    assert np.abs(flax - expected).max() > 0.1


def test_group_norm_in_bfloat16_has_statistics_in_float32():
    x = np.random.default_rng(0).normal(20.0, 1.0, size=(2, 64, 64, 8))
    low = jnp.asarray(x, jnp.bfloat16)
    y = GroupNorm(2).apply(group_variables(), low)
    expected = GroupNorm(2).apply(group_variables(), low.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    with pytest.raises(FusionError, match=f"{groups} groups do not divide 8 channels"):
        GroupNorm(groups).init(jax.random.key(0), jnp.ones((1, 4, 8)))
