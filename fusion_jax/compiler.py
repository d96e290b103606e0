"""Options of XLA's compiler that all programs of the library are compiled with."""

import functools

import jax

# On CPU XLA gives 2-D convolutions to YNNPACK, whose gradients of kernels take two to three times
# as long as those of its older form (docs/performance.md).
_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
    """What to give to `jax.jit` as `compiler_options` for programs of a platform.

    Empty where the installed XLA does not know the options: programs are the same, only slower.

    Args:
        platform: "cpu", "gpu" or "tpu".
    """
    if platform != "cpu":
        return {}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options=_CPU).lower(0.0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return {}
    return _CPU
