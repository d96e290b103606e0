"""Time the parts of a ResNet-18 step in the library's forms against XLA's and Flax's own.

python benchmarks/bench_convolution.py [--batch=16] [--pixels=32,64,224] [--repeats=15]
    [--out=FOLDER]

Both forms run by turns on the same arrays; printed are medians in milliseconds and theirs / ours. A
layer is timed with its gradients; a step is the gradient of a ResNet-18 with the "imagenet" stem
and plain descent. Theirs is XLA's convolution whatever its shape, Flax's maximum pooling and
GroupNorm, and a step of all three under the compiler's own options; ours is what the library
compiles. A folder in `--out` receives convolution_<platform>.json.
"""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from fusion_jax.blocks.convolution import Conv, convolve, convolve_direct
from fusion_jax.blocks.norm import GroupNorm
from fusion_jax.blocks.pooling import max_pool
from fusion_jax.compiler import compiler_options
from fusion_jax.config import write_json
from fusion_jax.encoders import resnet
from fusion_jax.runs import describe_machine

BATCH = flags.DEFINE_integer("batch", 16, "rows")
PIXELS = flags.DEFINE_list("pixels", ["32", "64", "224"], "image sides of the ResNet-18 steps")
REPEATS = flags.DEFINE_integer("repeats", 15, "timed calls of each form")
OUT = flags.DEFINE_string("out", None, "folder that receives the result file")

# Side of the map, channels in and out, kernel size, stride.
LAYERS = [
    (1, 512, 512, 3, 1),
    (2, 256, 512, 3, 2),
    (2, 256, 256, 3, 1),
    (3, 256, 256, 3, 1),
    (4, 128, 256, 3, 2),
    (4, 128, 128, 3, 1),
    (6, 64, 64, 7, 1),
    (2, 256, 512, 1, 2),
    (8, 64, 128, 1, 2),
    (28, 128, 512, 1, 1),
    (28, 64, 64, 3, 1),
    (28, 128, 128, 3, 1),
    (56, 64, 64, 3, 1),
    (224, 3, 64, 7, 2),
]

# Side and channels of the maps that are pooled and normalised.
MAPS = [(14, 64), (56, 64), (112, 64)]


def median_times(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each form, called by turns after one warm-up call."""
    for form in forms.values():
        jax.block_until_ready(form())
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            jax.block_until_ready(form())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def layer_forms(
    side: int, channels: int, features: int, size: int, stride: int, batch: int
) -> dict[str, Callable[[], object]]:
    """One layer with both of its gradients."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (batch, side, side, channels))
    kernel = jax.random.normal(keys[1], (size, size, channels, features))
    pads = ((size // 2, size // 2),) * 2
    forms = {
        "theirs": functools.partial(convolve_direct, stride=stride, pads=pads),
        "ours": functools.partial(convolve, stride=stride, padding=pads),
    }
    return with_gradients(forms, x, kernel)


def with_gradients(forms: dict[str, Callable], *arguments: jax.Array) -> dict[str, Callable]:
    """Each form with the gradients of all its arguments, compiled; ours as the library does it."""

    def compiled(name: str, form: Callable) -> Callable[[], object]:
        def run(*arguments: jax.Array) -> object:
            y, pull = jax.vjp(form, *arguments)
            return y, pull(y)

        program = jax.jit(run, compiler_options=options(name))
        return lambda: program(*arguments)

    return {name: compiled(name, form) for name, form in forms.items()}


def options(name: str) -> dict[str, str]:
    """For the compiler: the library's for ours."""
    return compiler_options(jax.default_backend()) if name == "ours" else {}


def flax_pool(x: jax.Array) -> jax.Array:
    """The pooling of a ResNet's stem."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class FlaxGroupNorm(nn.GroupNorm):
    """Flax's GroupNorm with the field of ours.

    Attributes:
        relu: whether a ReLU follows.
    """

    relu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x [B, ..., C]."""
        y = super().__call__(x)
        return nn.relu(y) if self.relu else y


def map_forms(side: int, channels: int, batch: int) -> dict[str, dict[str, Callable]]:
    """Maximum pooling, and GroupNorm with ReLU, of a map."""
    x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
    norms = {"theirs": FlaxGroupNorm(8, relu=True), "ours": GroupNorm(8, relu=True)}
    variables = norms["ours"].init(jax.random.key(1), x)

    def normalised(module: nn.Module, x: jax.Array, variables: dict) -> jax.Array:
        return module.apply(variables, x)

    layers = {name: functools.partial(normalised, module) for name, module in norms.items()}
    return {
        "maximum pooling": with_gradients({"theirs": flax_pool, "ours": max_pool}, x),
        "GroupNorm, ReLU": with_gradients(layers, x, variables),
    }


def always_direct(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
    """Runs a `Conv` as XLA's convolution, whatever its shape."""
    layer = context.module
    if isinstance(layer, Conv) and context.method_name == "__call__":
        kernel = layer.get_variable("params", "kernel")
        return convolve_direct(args[0], kernel, stride=layer.strides, pads=layer.padding)
    return call(*args, **kwargs)


def step_forms(side: int, batch: int) -> dict[str, Callable[[], object]]:
    """A training step of ResNet-18."""
    encoder = resnet.ResNetEncoder(stem="imagenet")
    x = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    variables = jax.jit(lambda key: encoder.init(key, x, train=False))(jax.random.key(1))

    def loss(params: dict) -> jax.Array:
        return jnp.mean(encoder.apply({"params": params}, x, train=True).pooled ** 2)

    def step(params: dict) -> dict:
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(loss)(params))

    def their_step(params: dict) -> dict:
        with (
            nn.intercept_methods(always_direct),
            mock.patch.multiple(resnet, max_pool=flax_pool, GroupNorm=FlaxGroupNorm),
        ):
            return step(params)

    forms = {"theirs": their_step, "ours": step}
    run = {name: jax.jit(form, compiler_options=options(name)) for name, form in forms.items()}
    params = variables["params"]
    return {name: functools.partial(form, params) for name, form in run.items()}


def main(_: list[str]) -> None:
    """Print the table and write it, as the flags say."""
    load, rows = os.getloadavg(), {}
    print(f"{'':>34} {'theirs ms':>10} {'ours ms':>10} {'ratio':>6}")

    def row(label: str, forms: dict[str, Callable[[], object]]) -> None:
        found = median_times(forms, REPEATS.value)
        theirs, ours = found["theirs"], found["ours"]
        rows[label] = found | {"ratio": theirs / ours}
        print(f"{label:>34} {theirs:10.2f} {ours:10.2f} {theirs / ours:6.1f}", flush=True)

    for side, channels, features, size, stride in LAYERS:
        label = f"{side}x{side} {channels}->{features} kernel {size} stride {stride}"
        row(label, layer_forms(side, channels, features, size, stride, BATCH.value))
    for side, channels in MAPS:
        for name, forms in map_forms(side, channels, BATCH.value).items():
            row(f"{side}x{side} {channels} {name}", forms)
    for pixels in PIXELS.value:
        row(f"ResNet-18 step, {pixels} pixels", step_forms(int(pixels), BATCH.value))
    if OUT.value:
        path = Path(OUT.value) / f"convolution_{jax.default_backend()}.json"
        facts = {"batch": BATCH.value, "load_average": load, "milliseconds": rows}
        write_json(path, {"run": describe_machine(), **facts})


if __name__ == "__main__":
    app.run(main)
