"""A band-pass on a waveform: what a telephone or a small loudspeaker leaves of it."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.over_time import on_waveform, without
from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class BandPass(TabledStrength):
    """The band from f1 to f2 = centre^2 / f1 passes: a Butterworth filter without its phase.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | f1, lower edge (-3 dB), Hz | 0 | 130 | 200 | 300 | 450 | 700 |
    | f2, upper edge (-3 dB), Hz | none | 7847 | 5101 | 3400 | 2267 | 1457 |
    | width, octaves | all | 5.9 | 4.7 | 3.5 | 2.3 | 1.1 |

    The amplitude at f is multiplied by 1 / sqrt(1 + b^(2 order)), with b = (f^2 - f1 f2) over
    (f (f2 - f1)), by FFT over the whole waveform; what rings over its end comes back at its start.
    Severity 0.6 is the band of a telephone. As f1 goes to 0, both edges move away from the centre
    without end. Nothing is drawn, and the level is not made up for. The table is our own.

    Attributes:
        sample_rate: samples per second, Hz.
        centre: geometric mean of the edges, Hz; the default is that of 300 and 3400 Hz.
        order: of the filter; beyond the edges it falls by 6 order dB per octave.
        strengths: f1 in Hz, below `centre`, at equally spaced severities from 0 to 1.
        reference: f1 in Hz that counts as noise level 1.

    References:
        Butterworth, "On the theory of filter amplifiers", Wireless Engineer 7, 1930. ITU-T G.712
        for 300 to 3400 Hz. `BandPassFilter` of audiomentations is the same filter of order 2 to 4,
        with its phase and its digital form, whose upper slope is steeper near half the sample rate.
    """

    unit: ClassVar[str] = "lower edge Hz"
    deterministic: ClassVar[bool] = True
    sample_rate: int = 16_000
    centre: float = 1010.0
    order: int = 4
    strengths: tuple[float, ...] = (0.0, 130.0, 200.0, 300.0, 450.0, 700.0)
    reference: float = 130.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        low = float(self.strength(severity))
        return "all frequencies" if low == 0 else f"{low:.0f} to {self.centre**2 / low:.0f} Hz"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, " t"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, " t"]:
        """Corrupt one waveform x [T]; dtype and shape stay.

        Raises:
            FusionError: for what is no waveform, and where a lower edge is not below the centre.
        """
        if max(self.strengths) >= self.centre:
            raise FusionError(
                f"a band-pass with a lower edge of {max(self.strengths)} Hz and its centre at "
                f"{self.centre} Hz passes nothing: give lower edges below the centre"
            )

        def change(signal: Float[Array, " t"]) -> Float[Array, " t"]:
            return without(signal, self._taken(len(signal), self.strength(severity)))

        return on_waveform(x, change, name="a band-pass")

    def _taken(self, length: int, low: Float[Array, ""]) -> Float[Array, " f"]:
        """[T // 2 + 1] in [0, 1]: the share that each frequency loses; 0 with a lower edge of 0."""
        # All in units of the centre: f1 f2 is 1 and f2 - f1 is (1 - f1^2) / f1, with no infinity.
        frequency = np.fft.rfftfreq(length, 1 / self.sample_rate) / self.centre
        # The mean stands for what is too slow for the waveform's length: half the first frequency.
        frequency = np.maximum(frequency, frequency[1] / 2).astype(np.float32)
        edge = low / self.centre
        offset = (frequency - 1 / frequency) * (edge / (1 - edge**2))
        return 1 - 1 / jnp.sqrt(1 + (offset**2) ** self.order)

    @classmethod
    def example(cls) -> tuple["BandPass", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
