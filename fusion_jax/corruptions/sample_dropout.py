"""Lost samples of a waveform, single ones or packets."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.over_time import on_waveform
from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class SampleDropout(TabledStrength):
    """Each packet of samples is lost, and 0, with a stated probability.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | fraction of packets that is lost | 0 | 0.1 | 0.2 | 0.4 | 0.6 | 0.8 |

    Packets are drawn one by one: the fraction is met on average. With one key, what is lost at a
    severity is lost at every higher one. The table is that of impulse noise.

    Attributes:
        packet: samples that are lost together, at least 1; 320 is 20 ms at 16 kHz, what networks
            send at a time.
        strengths: fractions in [0, 1], at equally spaced severities from 0 to 1.
        reference: fraction that counts as noise level 1.
    """

    unit: ClassVar[str] = "fraction"
    packet: int = 1
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{100 * float(self.strength(severity)):.3g} % lost"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, " t"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, " t"]:
        """Corrupt one waveform x [T]; dtype and shape stay.

        Raises:
            FusionError: for what is no waveform, and for packets of no sample.
        """
        if self.packet < 1:
            raise FusionError(f"packets of {self.packet} samples: give at least 1")

        def change(signal: Float[Array, " t"]) -> Float[Array, " t"]:
            drawn = jax.random.uniform(key, (math.ceil(len(signal) / self.packet),))
            lost = jnp.repeat(drawn < self.strength(severity), self.packet)[: len(signal)]
            return jnp.where(lost, 0, signal)

        return on_waveform(x, change, name="sample dropout")

    @classmethod
    def example(cls) -> tuple["SampleDropout", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
