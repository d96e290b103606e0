"""From severity in [0, 1] to a physical strength by a table, and from there to an input's scale."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from fusion_jax.errors import FusionError
from fusion_jax.precision import to_dtype_of


def strength_at(
    severity: Float[Array, "..."] | float, table: tuple[float, ...]
) -> Float[Array, "..."]:
    """Linear interpolation in a table of strengths at equally spaced severities from 0 to 1.

    Args:
        severity: [...], in [0, 1].
        table: strengths; the first stands at severity 0, the last at 1.
    """
    return jnp.interp(
        jnp.asarray(severity, jnp.float32),
        np.linspace(0, 1, len(table), dtype=np.float32),
        np.asarray(table, np.float32),
    )


# Not frozen: configuration overrides set fields in place, and ml_collections refuses frozen.
@dataclasses.dataclass
class TabledStrength:
    """What corruptions with a table of strengths have in common.

    Attributes:
        strengths: at equally spaced severities from 0 to 1, linear in between; 0 at severity 0.
        reference: the strength that counts as noise level 1.
    """

    strengths: tuple[float, ...] = (0.0, 1.0)
    reference: float = 1.0

    def strength(self, severity: Float[Array, "..."] | float) -> Float[Array, "..."]:
        """Physical strength at a severity, in the unit that the corruption states."""
        return strength_at(severity, self.strengths)

    def noise_level(self, severity: Float[Array, "..."] | float) -> Float[Array, "..."]:
        """Strength in units of the reference: what a noise estimator is trained on."""
        return self.strength(severity) / self.reference


@dataclasses.dataclass
class SignalToNoise(TabledStrength):
    """A table of noise amplitude over signal amplitude, told in dB.

    Attributes:
        strengths: r, noise amplitude over signal amplitude, at equally spaced severities from 0 to
            1; between them r is interpolated linearly.
        reference: r that counts as noise level 1 (here 20 dB, where log-mel features begin to
            suffer).
    """

    unit: ClassVar[str] = "SNR"
    strengths: tuple[float, ...] = (0.0, 0.1, 0.316, 0.562, 1.0, 1.78)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        ratio = float(self.strength(severity))
        return "no noise" if ratio == 0 else f"SNR {round(-20 * np.log10(ratio))} dB"


def add_at_ratio(
    x: Shaped[Array, " t"], noise: Float[Array, " t"], ratio: Float[Array, ""]
) -> Shaped[Array, " t"]:
    """Noise of amplitude ratio x RMS(x), added; RMS over the samples of x that are not 0.

    Args:
        x: one waveform [T].
        noise: [T] of RMS 1.
        ratio: noise amplitude over signal amplitude.

    Returns:
        [T] in the dtype of x; integers are rounded and saturate.
    """
    signal = x.astype(jnp.float32)
    active = jnp.maximum(jnp.sum(x != 0), 1)
    rms = jnp.sqrt(jnp.sum(signal**2) / active)
    return to_dtype_of(signal + ratio * rms * noise, x)


def numbers_of_entries(
    one: float, each: tuple[float, ...], x: Shaped[Array, "..."], name: str
) -> float | Float[Array, " n"]:
    """A number of the data for each entry of x, flat: `one` for all, or `each` by the last axis.

    Args:
        one: the number where `each` is empty.
        each: one number for each entry of the last axis, or ().
        x: [..., C] one example.
        name: of the numbers, in the plural, for the message.

    Returns:
        `one`, or an array of as many numbers as x has.

    Raises:
        FusionError: where `each` has another length than the last axis of x.
    """
    if not each:
        return one
    if x.shape[-1:] != (len(each),):
        raise FusionError(
            f"the noise has {len(each)} {name} for an input of shape {x.shape}: "
            "give one for each entry of the last axis"
        )
    last = np.asarray(each, np.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.broadcast_to(last, x.shape).reshape(-1)
