"""Babble: another example's voice over a waveform, at a stated ratio."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.over_time import active_length, on_waveform
from fusion_jax.blocks.strength import SignalToNoise, add_at_ratio
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class Babble(SignalToNoise):
    """x + r RMS(x) v, v the donor's sound of RMS 1; RMS of x over its samples that are not 0.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | r, donor's amplitude over signal amplitude | 0 | 0.1 | 0.316 | 0.562 | 1 | 1.78 |
    | signal-to-noise ratio, dB | none | 20 | 10 | 5 | 0 | -5 |

    One competing voice: the donor's sound without the zeros at its end, looped from a random sample
    on, so that it covers the padding too. It is scaled to RMS 1 over the whole of its T samples,
    its pauses included. A silent donor changes nothing. With one key and donor, curves over
    severity are paired. The table is that of white noise. The donor is another example, so no
    recipe trains on it.

    Attributes:
        strengths: as `SignalToNoise`.
        reference: as `SignalToNoise`.

    References:
        `AddBackgroundNoise` of audiomentations, whose RMS is over all samples of x, zeros too.
    """

    needs_donor: ClassVar[bool] = True

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, " t"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, " t"]:
        """Corrupt one waveform x [T] with another of its shape; dtype and shape stay.

        Raises:
            FusionError: without a donor, and for what is no waveform.
        """
        if donor is None:
            raise FusionError("Babble needs a donor: the waveform of another example")
        if donor.shape != x.shape:
            raise FusionError(
                f"Babble met a donor of shape {donor.shape} for an input of {x.shape}: "
                "give waveforms of one length"
            )

        def change(signal: Float[Array, " t"]) -> Float[Array, " t"]:
            voice = donor.astype(jnp.float32)
            length = jnp.maximum(active_length(voice), 1)
            start = jnp.floor(jax.random.uniform(key) * length).astype(jnp.int32)
            looped = voice[(start + jnp.arange(len(voice))) % length]
            power = jnp.mean(looped**2)
            unit = jnp.where(power > 0, looped / jnp.sqrt(jnp.where(power > 0, power, 1)), 0)
            return add_at_ratio(signal, unit, self.strength(severity))

        return on_waveform(x, change, name="babble")

    @classmethod
    def example(cls) -> tuple["Babble", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
