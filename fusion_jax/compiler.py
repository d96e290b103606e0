"""Options of XLA's compiler that all programs of the library are compiled with."""

import functools

import jax

# On CPU XLA gives 2-D convolutions to YNNPACK, whose gradients of kernels take two to three times
# as long as those of its older form. A schedule for concurrency lets one operation begin while
# another waits for its threads (docs/performance.md has what both are worth).
_CPU: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_enable_concurrency_optimized_scheduler": True,
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str | bool]:
    """What to give to `jax.jit` as `compiler_options` for programs of a platform.

    Without those that the installed XLA does not know: programs are the same, only slower.

    Args:
        platform: "cpu", "gpu" or "tpu".
    """
    if platform != "cpu":
        return {}
    return {name: value for name, value in _CPU.items() if _known({name: value})}


def _known(options: dict[str, str | bool]) -> bool:
    """Whether XLA compiles with these options."""
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return False
    return True
