"""Conv: against NumPy and Flax at every rank, and the form it takes on each platform."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.blocks.convolution import (
    Conv,
    convolve,
    convolve_direct,
    convolve_kept,
    convolve_patches,
)
from fusion_jax.errors import FusionError

# Map, kernel size, stride and padding; between them every way in which taps meet only padding.
CASES = {
    "one position": ((1, 1), (3, 3), 1, ((1, 1), (1, 1))),
    "two by two": ((2, 2), (3, 3), 1, ((1, 1), (1, 1))),
    "two to one": ((2, 2), (3, 3), 2, ((1, 1), (1, 1))),
    "four to two": ((4, 4), (3, 3), 2, ((1, 1), (1, 1))),
    "uneven": ((5, 3), (3, 5), 2, ((0, 2), (2, 1))),
    "kernel over map": ((2, 3), (7, 7), 2, ((3, 3), (3, 3))),
    "unpadded": ((4, 3), (3, 2), 1, ((0, 0), (0, 0))),
    "far padding": ((1, 2), (3, 3), 2, ((4, 0), (0, 5))),
    "one tap": ((5, 4), (1, 1), 2, ((0, 0), (0, 0))),
    "series": ((5,), (9,), 1, ((4, 4),)),
    "volume": ((2, 1, 3), (3, 3, 3), 1, ((1, 1), (1, 1), (1, 1))),
}


def make_arrays(spatial, sizes, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(3, *spatial, 5)).astype(np.float32)
    return x, generator.normal(size=(*sizes, 5, 4)).astype(np.float32)


def by_definition(x, kernel, stride, pads) -> np.ndarray:
    """Sum over taps and channels, one output position at a time, in float64."""
    padded = np.pad(np.float64(x), ((0, 0), *pads, (0, 0)))
    sizes = kernel.shape[:-2]
    outputs = [(n - k) // stride + 1 for n, k in zip(padded.shape[1:-1], sizes, strict=True)]
    y = np.zeros((len(x), *outputs, kernel.shape[-1]))
    for position in itertools.product(*map(range, outputs)):
        window = tuple(
            slice(stride * i, stride * i + k) for i, k in zip(position, sizes, strict=True)
        )
        patch = padded[(slice(None), *window)]
        y[(slice(None), *position)] = np.tensordot(patch, kernel, axes=len(sizes) + 1)
    return y


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_all_forms_are_the_convolution_and_have_the_same_gradients(case):
    spatial, sizes, stride, pads = case
    x, kernel = make_arrays(spatial, sizes)
    expected = by_definition(x, kernel, stride, pads)
    given = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)

    @jax.jit
    def run(x, kernel, given):
        found = []
        for form in (convolve_direct, convolve_patches, convolve_kept):
            y, pull = jax.vjp(
                lambda *args, form=form: form(*args, stride=stride, pads=pads), x, kernel
            )
            found.append((y, *pull(given)))
        return found

    direct, *others = run(x, kernel, given)
    np.testing.assert_allclose(direct[0], expected, rtol=1e-5, atol=1e-5)
    for other in others:
        for ours, theirs in zip(other, direct, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_kept_form_can_be_differentiated_in_every_way():
    x, kernel = make_arrays((5, 6), (3, 3))
    dx, dkernel = make_arrays((5, 6), (3, 3), seed=1)

    def of(form):
        def run(x, kernel):
            return form(x, kernel, stride=2, pads=((1, 1), (1, 1)))

        def loss(x, kernel):
            return jnp.sum(jnp.sin(run(x, kernel)))

        # Forward, by one argument alone, and twice.
        forward = jax.jvp(run, (x, kernel), (dx, dkernel))
        alone = jax.grad(loss, 0)(x, kernel), jax.grad(loss, 1)(x, kernel)
        twice = jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), (dx, dkernel))
        stacked = jax.vmap(jax.grad(loss, 1), (None, 0))(x, jnp.stack([kernel, dkernel]))
        return forward, alone, twice, stacked

    found = jax.jit(lambda: (of(convolve_kept), of(convolve_direct)))()
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_the_kept_form_are_in_the_layout_that_is_fast_in_loops(stride):
    x = np.zeros((6, 2, 12, 12, 5), np.float32)
    kernel = np.zeros((3, 3, 5, 4), np.float32)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolve_kept(x, kernel, stride, ((1, 1), (1, 1)))))

    def in_parts(kernel, x):
        def add(total, part):
            gradients = jax.grad(loss, (0, 1))(part, kernel)
            return jax.tree.map(jnp.add, total, gradients), None

        return jax.lax.scan(add, (jnp.zeros(x.shape[1:]), jnp.zeros(kernel.shape)), x)[0]

    text = jax.jit(in_parts).lower(kernel, x).compile().as_text()
    layouts = re.findall(r" convolution\(.*dim_labels=([^\s,]+)", text)
    assert len(layouts) == 3 and set(layouts) == {"b01f_01io->b01f"}


def test_conv_has_the_parameters_of_flax():
    x, _ = make_arrays((5, 6), (3, 2))
    fields = [{"features": 4, "kernel_size": (3, 2), "use_bias": use} for use in (True, False)]

    @jax.jit
    def make(key):
        return [[kind(**each).init(key, x) for kind in (Conv, nn.Conv)] for each in fields]

    for ours, theirs in make(jax.random.key(0)):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (2, 1))], ids=str)
def test_conv_has_the_results_of_flax(padding):
    x, kernel = make_arrays((5, 6), (3, 3))
    variables = {"params": {"kernel": kernel, "bias": np.arange(4, dtype=np.float32)}}

    @jax.jit
    def run(variables, x):
        layers = [kind(4, (3, 3), strides=2, padding=padding) for kind in (Conv, nn.Conv)]
        return [layer.apply(variables, x) for layer in layers]

    np.testing.assert_allclose(*run(variables, x), rtol=1e-5, atol=1e-5)


def lowered_text(platform, spatial, size):
    x, kernel = make_arrays(spatial, (size, size))
    run = jax.jit(lambda x, kernel: convolve(x, kernel, stride=1, padding="SAME"))
    return run.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("spatial", "size", "product"),
    [((2, 4), 3, True), ((3, 3), 3, False), ((6, 6), 7, True), ((9, 9), 1, True)],
    ids=["fewer positions", "as many positions", "large kernel", "one tap"],
)
def test_form_follows_the_shape_on_cpu_and_is_always_direct_elsewhere(spatial, size, product):
    # Programs compiled here, on CPU, for another platform must hold that platform's form.
    text = lowered_text("cpu", spatial, size)
    assert ("dot_general" in text) == product and ("stablehlo.convolution" in text) != product
    for platform in ("cuda", "tpu"):
        text = lowered_text(platform, spatial, size)
        assert "stablehlo.convolution" in text and "dot_general" not in text


@pytest.mark.parametrize(("spatial", "product"), [((2, 2), True), ((6, 6), False)])
def test_compiled_training_program_holds_one_form_and_gathers_nothing(spatial, product):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("data",), ())
    )
    x, kernel = np.ones((16, *spatial, 5), np.float32), np.ones((3, 3, 5, 4), np.float32)

    def loss(kernel, x):
        return jnp.sum(convolve(x, kernel, stride=1, padding="SAME") ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=(everywhere, rows))
    args = (jax.device_put(kernel, everywhere), jax.device_put(x, rows))
    text = gradient.lower(*args).compile().as_text()
    assert ("convolution(" in text) != product and ("conditional(" in text) != product
    # The kernel's gradient is summed over devices; nothing else moves between them.
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_conv_over_stacked_kernels_is_each_kernel_alone():
    x, _ = make_arrays((2, 2), (3, 3))
    kernels = np.stack([make_arrays((2, 2), (3, 3), seed)[1] for seed in range(3)])

    def run(kernel):
        return convolve(x, kernel, stride=1, padding="SAME")

    stacked, single = jax.jit(lambda k: (jax.vmap(run)(k), [run(each) for each in k]))(kernels)
    np.testing.assert_allclose(stacked, np.stack(single), rtol=1e-5, atol=1e-5)


def test_conv_computes_in_the_precision_it_is_given():
    x, kernel = make_arrays((2, 2), (3, 3))
    layer = Conv(4, (3, 3), use_bias=False, dtype=jnp.bfloat16)
    y = jax.jit(layer.apply)({"params": {"kernel": kernel}}, x)
    assert y.dtype == jnp.bfloat16
    full = by_definition(x, kernel, 1, ((1, 1), (1, 1)))
    np.testing.assert_allclose(np.float32(y), full, atol=0.02 * np.abs(full).max())


def test_conv_refuses_a_kernel_of_another_rank():
    with pytest.raises(FusionError, match=r"needs an input of 4 axes, not of shape \(3, 5, 5\)"):
        jax.eval_shape(Conv(4).init, jax.random.key(0), np.ones((3, 5, 5)))
