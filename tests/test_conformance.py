"""Every member of every protocol, found by walking the folders."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.blocks.presence import uniform_weights
from fusion_jax.corruptions.batch import corrupt_batch
from fusion_jax.errors import FusionError
from fusion_jax.rng import example_keys
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.types import FusionWeights, ModelOutput
from tests.conftest import NAMES, make_batch, make_features, make_present, make_scheduler_input
from tests.fusion.plain import plain_rows
from tests.members import fields_without_default, members

SIGNALS = members("fusion_jax.signals")
SCHEDULERS = members("fusion_jax.schedulers")
OPERATORS = members("fusion_jax.fusion")
ENCODERS = members("fusion_jax.encoders")
BALANCERS = members("fusion_jax.balancing", "observe")
OBJECTIVES = members("fusion_jax.objectives")
CORRUPTIONS = members("fusion_jax.corruptions")
TASKS = members("fusion_jax.tasks", "compute")


def test_members_are_all_found():
    found = [SIGNALS, SCHEDULERS, OPERATORS, ENCODERS, BALANCERS, OBJECTIVES, CORRUPTIONS, TASKS]
    assert [len(group) for group in found] == [7, 8, 9, 4, 5, 3, 41, 1]


@pytest.mark.parametrize(
    "kind", SIGNALS + SCHEDULERS + OPERATORS + ENCODERS + BALANCERS + OBJECTIVES + CORRUPTIONS
)
def test_every_field_has_a_default(kind):
    ignored = {"parent", "name"}
    assert not set(fields_without_default(kind)) - ignored
    kind()


def init(module, *args, seed=0, **kwargs):
    # Compiled as one program: op by op, the tests would spend their time compiling.
    keys = {"params": jax.random.key(seed), "dropout": jax.random.key(1)}
    return dict(
        {"params": {}}, **jax.jit(lambda keys, args: module.init(keys, *args, **kwargs))(keys, args)
    )


def apply(module, variables, *args, **kwargs):
    return jax.jit(lambda variables, args: module.apply(variables, *args, **kwargs))(
        variables, args
    )


def perturbed(variables, seed=3):
    """Variables with noise on every parameter, so that zero-initialised layers do something."""
    leaves, treedef = jax.tree.flatten(variables["params"])
    generator = np.random.default_rng(seed)
    moved = [leaf + 0.3 * generator.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return {**variables, "params": jax.tree.unflatten(treedef, moved)}


# Signals


@pytest.mark.parametrize("num", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", SIGNALS)
def test_signal_is_finite_and_evaluation_changes_nothing(kind, num):
    inputs, signal = make_scheduler_input(rows=33, num=num), kind.example()
    variables = init(signal, inputs, train=False)
    found, collections = apply(signal, variables, inputs, train=False, mutable=True)
    assert found.value.shape == (33, num) and found.aux_loss.shape == (33,)
    assert np.isfinite(found.value).all() and not np.any(found.aux_loss)
    chex.assert_trees_all_equal(dict(collections), dict(variables))
    trained, _ = apply(
        signal, variables, inputs, train=True, mutable=True, rngs={"dropout": jax.random.key(2)}
    )
    assert np.isfinite(trained.value).all() and np.isfinite(trained.aux_loss).all()


@pytest.mark.parametrize("kind", SIGNALS)
def test_signal_passes_no_gradient_to_the_features(kind):
    inputs, signal = make_scheduler_input(), kind.example()
    variables = perturbed(init(signal, inputs, train=False))

    def total(features):
        found, _ = apply(
            signal, variables, inputs.replace(features=features), train=True, mutable=True
        )
        return jnp.sum(found.value) + jnp.sum(found.aux_loss)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(inputs.features)):
        assert not np.any(leaf)


# Schedulers


@pytest.mark.parametrize("num", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_scheduler_weights_obey_the_rules(kind, num):
    inputs, scheduler = make_scheduler_input(rows=40, num=num), kind.example()
    variables = perturbed(init(scheduler, inputs, train=False))
    found = apply(scheduler, variables, inputs, train=False)
    assert isinstance(found, FusionWeights) and found.weights.shape == (40, num)
    weights, present = np.asarray(found.weights), np.asarray(inputs.present)
    assert (weights >= 0).all() and not weights[~present].any()
    np.testing.assert_allclose(weights.sum(axis=1), present.any(axis=1), atol=1e-6)
    assert found.aux_loss.shape == (40,)
    assert all(value.shape == (40, num) for value in found.signals.values())


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_scheduler_starts_static(kind):
    inputs, scheduler = make_scheduler_input(num=3, rows=20), kind.example()
    found = apply(scheduler, init(scheduler, inputs, train=False), inputs, train=False)
    np.testing.assert_allclose(found.weights, uniform_weights(inputs.present), atol=1e-6)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_scheduler_weighs_by_the_true_noise_only_where_it_says_so(kind):
    inputs, scheduler = make_scheduler_input(rows=20), kind.example()
    variables = perturbed(init(scheduler, inputs, train=False))
    other = inputs.replace(noise_level=3 + 2 * inputs.noise_level[::-1])
    first, second = (apply(scheduler, variables, x, train=False).weights for x in (inputs, other))
    several = np.asarray(inputs.present.sum(axis=1)) > 1
    if getattr(scheduler, "reads_noise_level", False):
        assert np.abs(first - second)[several].max() > 1e-4
    else:
        np.testing.assert_array_equal(first, second)
        unknown = apply(scheduler, variables, inputs.replace(noise_level=None), train=False).weights
        np.testing.assert_array_equal(first, unknown)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_scheduler_permutes_with_renamed_modalities(kind):
    inputs, scheduler = make_scheduler_input(rows=20, num=3), kind.example()
    variables = perturbed(init(scheduler, inputs, train=False))
    before = apply(scheduler, variables, inputs, train=False)
    order = [2, 0, 1]  # new position i holds what was at order[i]
    new = dict(zip([NAMES[i] for i in order], NAMES[:3], strict=True))

    def rename(text):
        return re.sub("|".join(new), lambda match: new[match.group()], text)

    renamed = {
        "/".join(rename(part.key) for part in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }
    moved_variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: renamed["/".join(part.key for part in path)], variables
    )
    moved = inputs.replace(
        features={new[name]: value for name, value in inputs.features.items()},
        present=inputs.present[:, order],
        noise_level=inputs.noise_level[:, order],
        frequency_ratio=inputs.frequency_ratio[:, order],
        predict=lambda subsets: inputs.predict(subsets[..., np.argsort(order)]),
    )
    after = apply(scheduler, moved_variables, moved, train=False)
    np.testing.assert_allclose(after.weights, before.weights[:, order], atol=1e-6)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_scheduler_has_finite_gradients_in_both_precisions(kind):
    for dtype in (jnp.float32, jnp.bfloat16):
        inputs, scheduler = make_scheduler_input(rows=16), kind.example()
        inputs = inputs.replace(
            features=jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), inputs.features)
        )
        variables = init(scheduler, inputs, train=False)
        params = variables.pop("params", {})

        def total(params, variables=variables, inputs=inputs, scheduler=scheduler):
            found, _ = apply(
                scheduler, {"params": params, **variables}, inputs, train=True, mutable=True
            )
            return jnp.sum(found.weights**2) + jnp.sum(found.aux_loss)

        assert all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params))
        )
        found = apply(scheduler, {"params": params, **variables}, inputs, train=False)
        assert found.weights.dtype == jnp.float32


# Fusion operators


@functools.cache
def operator_case(kind, num):
    """An operator with drawn parameters, inputs with every present pattern, one program."""
    operator, features = kind.example(), make_features(40, num)
    present = jnp.asarray(make_present(40, num))
    shapes = jax.eval_shape(
        operator.init, jax.random.key(0), features, uniform_weights(present), present
    )
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    variables = perturbed({"params": {}, **zeros})
    run = jax.jit(lambda *inputs: operator.apply(variables, *inputs).pooled)
    return operator, variables, features, present, run


def broken_where_absent(features, present):
    """Features with NaN wherever a modality is absent."""
    return {
        name: jax.tree.map(
            lambda x, m=m: jnp.where(
                present[:, m].reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan
            ),
            value,
        )
        for m, (name, value) in enumerate(sorted(features.items()))
    }


@pytest.mark.parametrize("num", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", OPERATORS)
def test_operator_ignores_absent_modalities_to_the_bit(kind, num):
    _, _, features, present, run = operator_case(kind, num)
    weights = uniform_weights(present)
    fused = run(features, weights, present)
    with_garbage = run(broken_where_absent(features, present), weights, present)
    assert np.isfinite(fused).all()  # where nothing is present, too
    np.testing.assert_array_equal(fused, with_garbage)


@pytest.mark.parametrize("num", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", OPERATORS)
def test_operator_with_uniform_weights_is_the_plain_operator(kind, num):
    # Plain: in NumPy on the modalities that are present, without any weight.
    operator, variables, features, present, run = operator_case(kind, num)
    fused = run(features, uniform_weights(present), present)[present.any(axis=1)]
    if variables["params"]:
        plain = plain_rows(operator, variables, features, present)
        np.testing.assert_allclose(fused, plain, rtol=1e-5, atol=1e-5)
    else:
        plain = plain_rows(operator, variables, features, present, dtype=np.float32)
        # To the bit; a mean divides, which XLA may round as a product with the reciprocal.
        units = 1 if kind.__name__ == "MeanFusion" else 0
        np.testing.assert_array_max_ulp(np.asarray(fused), plain, maxulp=units)


@pytest.mark.parametrize("kind", OPERATORS)
def test_operator_follows_the_weights(kind):
    operator, variables, features, present, run = operator_case(kind, 3)
    present = np.asarray(present)
    weights = np.random.default_rng(5).uniform(0.1, 1, present.shape) * present
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    some = present.any(axis=1)
    fused = np.asarray(run(features, weights.astype(np.float32), present))[some]
    expected = plain_rows(operator, variables, features, present, weights)
    np.testing.assert_allclose(fused, expected, rtol=1e-5, atol=2e-5)
    uniform = np.asarray(run(features, uniform_weights(present), present))[some]
    several = present.sum(axis=1)[some] > 1
    difference = np.abs(fused - uniform).max(axis=1)
    assert (difference[several] > 1e-5).all() and not difference[~several].any()


@pytest.mark.parametrize("kind", OPERATORS)
def test_operator_takes_no_gradient_from_absent_modalities_or_into_them(kind):
    operator, variables, features, present, _ = operator_case(kind, 2)
    coefficients = np.random.default_rng(6).normal(size=40)[:, None].astype(np.float32)

    @jax.jit
    def gradients(params, features, weights):
        def total(params, features, weights):
            fused = operator.apply({"params": params}, features, weights, present).pooled
            return jnp.sum(coefficients * fused**2)

        return jax.grad(total, argnums=(0, 1, 2))(params, features, weights)

    weights = uniform_weights(present)
    found = gradients(variables["params"], features, weights)
    broken = gradients(variables["params"], broken_where_absent(features, present), weights)
    chex.assert_trees_all_equal(found, broken)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.any(found[2])
    for m, name in enumerate(sorted(features)):
        for leaf in jax.tree.leaves(found[1][name]):
            assert not np.asarray(leaf)[~present[:, m]].any()
        assert any(np.any(leaf) for leaf in jax.tree.leaves(found[1][name]))


@pytest.mark.parametrize("kind", OPERATORS)
def test_operator_takes_bfloat16_features(kind):
    _, variables, features, present, run = operator_case(kind, 2)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
    weights = uniform_weights(present)
    found = run(rounded, weights, present).astype(jnp.float32)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    expected = run(exact, weights, present)
    # Operators without parameters stay in bfloat16, of 8 bits; the others compute in float32.
    tolerance = 1e-5 if variables["params"] else 2e-2
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("kind", OPERATORS)
def test_operator_never_leaves_float64(kind):
    operator, variables, features, present, _ = operator_case(kind, 3)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (variables, features))
        weights = np.asarray(uniform_weights(present), np.float64)
        program = jax.make_jaxpr(operator.apply)(*wide, weights, present)
    assert program.out_avals[0].dtype == jnp.float64
    assert "f32" not in {
        str(eqn.outvars[0].aval.dtype)
        for eqn in program.eqns
        if eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == jnp.float64
    }


# Encoders


@functools.cache
def encoder_example(kind):
    """An encoder, six inputs and drawn variables (initial ones would be a program to compile)."""
    encoder, shape = kind.example()
    x = jax.random.normal(jax.random.key(0), (6, *shape))
    shapes = jax.eval_shape(functools.partial(encoder.init, train=False), jax.random.key(0), x)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return encoder, x, perturbed(zeros)


@functools.cache
def encoder_program(kind):
    """The example in evaluation, compiled."""
    return jax.jit(functools.partial(encoder_example(kind)[0].apply, train=False))


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoder_shapes_and_row_independence(kind):
    encoder, x, variables = encoder_example(kind)
    run = encoder_program(kind)
    found = run(variables, x)
    assert found.pooled.shape == (6, encoder.features) and found.pooled.dtype == jnp.float32
    if found.tokens is not None:
        assert found.tokens.shape[0] == 6 and found.tokens.shape[-1] == encoder.features
    changed = run(variables, x.at[3].add(5.0))
    np.testing.assert_allclose(changed.pooled[:3], found.pooled[:3], atol=1e-6)
    assert np.abs(changed.pooled[3] - found.pooled[3]).max() > 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoder_in_bfloat16_keeps_parameters_features_and_gradients_in_float32(kind):
    encoder, x, variables = encoder_example(kind)
    half = encoder.clone(dtype="bfloat16")
    made = jax.eval_shape(functools.partial(half.init, train=False), jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, variables)

    def loss(params):
        return jnp.sum(half.apply({**variables, "params": params}, x, train=False).pooled ** 2)

    gradient = jax.eval_shape(jax.grad(loss), variables["params"])
    found = jax.jit(functools.partial(half.apply, train=False))(variables, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((found, gradient)))
    # bfloat16 keeps 8 bits: each layer errs by up to 0.4 %, and a deep network adds that up.
    full = encoder_program(kind)(variables, x)
    spread = np.std(full.pooled)
    assert 1e-4 * spread < np.abs(found.pooled - full.pooled).max() < 0.2 * spread


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoder_takes_integers_and_keeps_float64(kind):
    encoder, x, variables = encoder_example(kind)
    run = functools.partial(encoder.apply, train=False)
    for dtype in (jnp.uint8, jnp.int16, jnp.bfloat16, jnp.float32):
        found = jax.eval_shape(run, variables, jnp.zeros(x.shape, dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        double = jax.tree.map(np.float64, (variables, x))
        # No value on the way may be narrower, or float64 would be one in name only.
        text = str(jax.make_jaxpr(run)(*double))
        assert "f64[" in text and "f32[" not in text
    with pytest.raises(FusionError, match="dtype is 'half': it must be 'float32' or 'bfloat16'"):
        jax.eval_shape(
            functools.partial(encoder.clone(dtype="half").apply, train=False), variables, x
        )


# Balancers


def balancer_case(num, dtype=np.float32):
    """What a balancer observes."""
    batch = make_batch().replace(
        present=make_present(8, num),
        inputs={name: np.ones((8, 16, 16, 1), dtype) for name in NAMES[:num]},
    )
    output = ModelOutput(
        jnp.ones((8, 3), dtype),
        jnp.ones((8, num, 3), dtype),
        FusionWeights(jnp.ones((8, num)) / num, jnp.zeros(8), {}),
        make_features(8, num),
        jnp.ones((8, num), bool),
    )
    return batch, output


@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.parametrize("kind", BALANCERS)
def test_balancer_traces_once_and_is_pure(kind, num):
    balancer = kind.example()
    state = balancer.init(num)
    batch, output = balancer_case(num)
    traces = []

    @jax.jit
    def observe(state, batch, output):
        traces.append(1)
        return balancer.observe(state, batch, output)

    for _ in range(3):
        loss_weights, update_scale, state = observe(state, batch, output)
    assert len(traces) == 1
    assert loss_weights.shape == update_scale.shape == (num,)
    assert np.isfinite(loss_weights).all() and (np.asarray(update_scale) >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", BALANCERS)
def test_balancer_state_keeps_its_types_in_float64(kind, dtype):
    # Accumulation carries the state through a scan, which takes no other types.
    balancer = kind.example()
    with jax.enable_x64(True):
        batch, output = balancer_case(2, dtype)
        state = balancer.init(2)
        after = jax.eval_shape(balancer.observe, state, batch, output)[2]
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


# Objectives


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_objective_gives_a_loss_per_row_that_padding_cannot_touch(kind):
    objective, task = kind.example(), TASKS[0].example()
    batch = make_batch(8, valid=5)
    features, generator = make_features(8, 2), np.random.default_rng(0)

    def loss_of(logits):
        output = ModelOutput(
            jnp.asarray(logits),
            jnp.asarray(logits)[:, None].repeat(2, axis=1),
            FusionWeights(jnp.full((8, 2), 0.5), jnp.zeros(8), {}),
            features,
            jnp.ones((8, 2), bool),
        )
        views = dict.fromkeys(objective.views, output)
        loss, _, metrics = objective(
            views,
            dict.fromkeys(objective.views, batch),
            objective.init(2),
            task=task,
            loss_weights=jnp.ones(2),
        )
        assert loss.shape == (8,) and all(value.shape == (8,) for value in metrics.values())
        return loss

    logits = generator.normal(size=(8, 3)).astype(np.float32)
    other = logits.copy()
    other[5:] += 10 * generator.normal(size=(3, 3))
    np.testing.assert_array_equal(loss_of(logits)[:5], loss_of(other)[:5])


# Corruptions


@pytest.fixture(params=CORRUPTIONS, ids=lambda kind: kind.__name__)
def corruption_and_input(request):
    return example_and_input(request.param)


def example_and_input(kind):
    corruption, shape, dtype = kind.example()
    generator = np.random.default_rng(0)
    if np.issubdtype(np.dtype(dtype), np.floating):
        return corruption, generator.normal(size=(50, *shape)).astype(dtype)
    info = np.iinfo(dtype)
    low, high = (0, 256) if dtype == "uint8" else (info.min // 20, info.max // 20)
    return corruption, generator.integers(low, high, (50, *shape)).astype(dtype)


@functools.cache
def corruption_program(kind):
    """One compiled program per corruption; jit keeps one per shape."""
    corruption, _, _ = kind.example()

    def run(x, ids, severity, seed):
        keys = example_keys(jax.random.key(seed), ids)
        donor = None
        if getattr(corruption, "needs_donor", False):
            drawn = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
            donor = drawn(example_keys(jax.random.key(7), ids)).astype(x.dtype)
        return corrupt_batch(corruption, x, keys=keys, severity=severity, donor=donor)

    return jax.jit(run)


def corrupted(corruption, x, severity, ids=None, seed=0):
    ids = np.arange(len(x)) if ids is None else ids
    run = corruption_program(type(corruption))
    return np.asarray(run(x, ids, np.full(len(x), severity, np.float32), seed))


def test_corruption_at_severity_zero_is_the_identity(corruption_and_input):
    corruption, x = corruption_and_input
    before = x.copy()
    np.testing.assert_array_equal(corrupted(corruption, x, 0.0), x)
    donor = [jnp.asarray(x[1])] if getattr(corruption, "needs_donor", False) else []
    single = corruption(jax.random.key(0), jnp.asarray(x[0]), 0.0, *donor)
    assert single.dtype == x.dtype and single.shape == x[0].shape
    np.testing.assert_array_equal(single, x[0])
    corrupted(corruption, x, 0.7)
    np.testing.assert_array_equal(x, before)


def test_corruption_grows_with_severity(corruption_and_input):
    corruption, x = corruption_and_input
    distance = [
        np.abs(corrupted(corruption, x, s).astype(np.float64) - x).mean()
        for s in (0.1, 0.3, 0.6, 1.0)
    ]
    assert all(a < b for a, b in itertools.pairwise(distance)), distance
    strengths = np.asarray(corruption.strength(np.linspace(0, 1, 21)))
    assert strengths[0] == 0 and (np.diff(strengths) > 0).all()
    assert all(isinstance(corruption.describe(s), str) for s in (0.0, 0.5, 1.0))


# Those that recipes train on, one that draws nothing and one that borrows; seven programs each is
# too long for all of them in the fast stage.
FAST = ("GaussianNoise", "WhiteNoise", "Contrast", "Misalignment")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind.__name__ in FAST else pytest.mark.slow)
        for kind in CORRUPTIONS
    ],
)
def test_corruption_does_not_depend_on_batch_order_size_or_devices(kind):
    corruption, x = example_and_input(kind)
    whole = corrupted(corruption, x, 0.5)
    for size in (1, 7, 50):
        parts = [
            corrupted(corruption, x[i : i + size], 0.5, np.arange(i, min(i + size, 50)))
            for i in range(0, 50, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(corrupted(corruption, x[order], 0.5, order), whole[order])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with jax.set_mesh(mesh):
        sharded = corrupted(
            corruption, jax.device_put(x[:48], rows), 0.5, jax.device_put(np.arange(48), rows)
        )
    np.testing.assert_array_equal(sharded, whole[:48])
    run = jax.pmap(
        lambda x, ids: corruption_program(type(corruption))(x, ids, jnp.full(6, 0.5), 0),
        axis_name="data",
    )
    mapped = run(x[:48].reshape(8, 6, *x.shape[1:]), np.arange(48).reshape(8, 6))
    np.testing.assert_array_equal(np.asarray(mapped).reshape(sharded.shape), whole[:48])


def test_corruption_is_fresh_for_each_example_and_seed(corruption_and_input):
    corruption, x = corruption_and_input
    same = np.repeat(x[:1], 50, axis=0)
    noisy = corrupted(corruption, same, 0.5)
    if getattr(corruption, "deterministic", False):
        np.testing.assert_array_equal(corrupted(corruption, same, 0.5, seed=1), noisy)
        np.testing.assert_array_equal(noisy, np.repeat(noisy[:1], 50, axis=0))
        return
    assert (corrupted(corruption, same, 0.5, seed=1) != noisy).any()
    differs = (noisy[1:] != noisy[:1]).reshape(49, -1).any(axis=1)
    # Where whole inputs are lent, two examples may both keep their own.
    assert differs.mean() > 0.25 if getattr(corruption, "needs_donor", False) else differs.all()


# Tasks


@pytest.mark.parametrize("kind", TASKS)
def test_metrics_of_parts_joined_are_metrics_of_the_whole(kind):
    task, generator = kind.example(), np.random.default_rng(0)
    logits, target = (
        generator.normal(size=(64, 5)).astype(np.float32) * 2,
        generator.integers(0, 5, 64),
    )
    whole = jax.device_get(task.records(jnp.asarray(logits), jnp.asarray(target)))
    parts = [
        jax.device_get(task.records(jnp.asarray(logits[i:j]), jnp.asarray(target[i:j])))
        for i, j in ((0, 5), (5, 64))
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert task.compute(joined) == pytest.approx(task.compute(whole), rel=1e-6)


def test_static_scheduler_reports_signals_without_using_them():
    inputs = make_scheduler_input()
    scheduler = StaticScheduler(signals=(SIGNALS[1].example(),))
    variables = init(scheduler, inputs, train=False)
    found = apply(scheduler, variables, inputs, train=False)
    np.testing.assert_array_equal(found.weights, uniform_weights(inputs.present))
    assert list(found.signals) == [SIGNALS[1].__name__]
