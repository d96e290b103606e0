"""What corruptions of waveforms and series share: which arrays they are, levels, stretches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from fusion_jax.errors import FusionError
from fusion_jax.precision import to_dtype_of


def on_waveform(
    x: Shaped[Array, " t"],
    change: Callable[[Float[Array, " t"]], Float[Array, " t"]],
    *,
    name: str,
) -> Shaped[Array, " t"]:
    """Change one waveform as float32 samples in its own units.

    Args:
        x: [T], T at least 2, 16-bit or floating.
        change: [T] float32 -> [T] float32.
        name: of the corruption, for the message.

    Returns:
        [T] in the dtype of x; integers are rounded and saturate.

    Raises:
        FusionError: for another dtype, or another shape.
    """
    sound = x.dtype == jnp.int16 or jnp.issubdtype(x.dtype, jnp.floating)
    if not sound or x.ndim != 1 or len(x) < 2:
        raise FusionError(
            f"{name} met an input of {x.dtype} {x.shape}: it takes waveforms [T] of at least 2 "
            "samples, 16-bit or floating"
        )
    return to_dtype_of(change(x.astype(jnp.float32)), x)


def check_floats(x: Shaped[Array, "..."], *, axes: int, name: str, takes: str) -> None:
    """Refuse what is no floating array of at least so many axes.

    Args:
        x: one example.
        axes: the least number of axes; for a series [T, C] exactly 2 are asked for.
        name: of the corruption, for the message.
        takes: what it takes, for the message.

    Raises:
        FusionError: for another dtype, or another number of axes.
    """
    enough = x.ndim == axes if axes == 2 else x.ndim >= axes
    if not jnp.issubdtype(x.dtype, jnp.floating) or not enough:
        raise FusionError(f"{name} met an input of {x.dtype} {x.shape}: it takes {takes}")


def active_rms(signal: Float[Array, " t"]) -> Float[Array, ""]:
    """Root mean square over the samples that are not 0; 0 where all are."""
    return jnp.sqrt(jnp.sum(signal**2) / jnp.maximum(jnp.sum(signal != 0), 1))


def active_length(signal: Float[Array, " t"]) -> Int[Array, ""]:
    """Number of samples up to the last that is not 0: zeros at the end are padding."""
    return jnp.max(jnp.where(signal != 0, jnp.arange(1, len(signal) + 1), 0))


def random_stretch(
    key: Key[Array, ""], share: Float[Array, ""], length: Float[Array, ""] | float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """One stretch of [0, length) that covers a share of it, at a uniformly random place.

    With one key, the stretch of a share lies inside that of every greater share.

    Returns:
        Its start and its end.
    """
    start = jax.random.uniform(key) * (1 - share) * length
    return start, start + share * length


def inside(length: int, start: Float[Array, ""], end: Float[Array, ""]) -> Shaped[Array, " t"]:
    """Bool[T]: the steps of a stretch, its start and its end rounded to whole steps."""
    steps = jnp.arange(length)
    return (steps >= jnp.round(start)) & (steps < jnp.round(end))


def without(signal: Float[Array, "t ..."], share: Float[Array, " f"]) -> Float[Array, "t ..."]:
    """The signal less a share of each of its frequencies, phases kept; share 0 changes no bit.

    Args:
        signal: [T, ...], taken as periodic.
        share: [T // 2 + 1] in [0, 1], what is taken away at each frequency of `jnp.fft.rfft`.
    """
    spectrum = jnp.fft.rfft(signal, axis=0)
    taken = spectrum * share.reshape((-1,) + (1,) * (signal.ndim - 1))
    return signal - jnp.fft.irfft(taken, n=signal.shape[0], axis=0)
