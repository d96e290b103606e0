"""Blur over time: each sample becomes a Gaussian mean of its neighbours."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped
from scipy.fft import next_fast_len

from fusion_jax.blocks.over_time import check_floats, on_waveform, without
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class TemporalBlur(TabledStrength):
    """Convolution over time with a normal density of standard deviation sigma: a muffled sound.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | sigma, ms | 0 | 0.02 | 0.05 | 0.1 | 0.2 | 0.4 |
    | frequency that loses 3 dB, Hz | none | 6626 | 2650 | 1325 | 663 | 331 |

    By FFT: the frequency f keeps exp(-2 pi^2 f^2 sigma^2) of its amplitude. Before the start and
    after the end, the first and the last step are held. The table is for sounds; a series wants
    longer times, in proportion to its steps. Nothing is drawn. The table is our own.

    Attributes:
        sample_rate: samples, or steps of the series, per second, Hz.
        strengths: sigma in milliseconds, at equally spaced severities from 0 to 1.
        reference: sigma in milliseconds that counts as noise level 1.
    """

    unit: ClassVar[str] = "sigma ms"
    deterministic: ClassVar[bool] = True
    sample_rate: float = 16_000
    strengths: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
    reference: float = 0.02

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"sigma {float(self.strength(severity)):.3g} ms"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, "t ..."],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, "t ..."]:
        """Corrupt one waveform x [T], or one series x [T, C] of floats; dtype and shape stay.

        Raises:
            FusionError: for what is neither.
        """
        if x.ndim == 1:
            return on_waveform(
                x, lambda signal: self._blur(signal, severity), name="a temporal blur"
            )
        takes = "waveforms [T] and series [T, C] of floats"
        check_floats(x, axes=2, name="a temporal blur", takes=takes)
        return self._blur(x.astype(jnp.float32), severity).astype(x.dtype)

    def _blur(
        self, signal: Float[Array, "t ..."], severity: Float[Array, ""]
    ) -> Float[Array, "t ..."]:
        """The blurred signal [T, ...]; sigma 0 changes no bit."""
        longest = max(self.strengths) * self.sample_rate / 1000
        length = signal.shape[0]
        before = int(np.ceil(4 * longest))
        size = next_fast_len(length + 2 * before, real=True)
        around = ((before, size - length - before),) + ((0, 0),) * (signal.ndim - 1)
        sigma = self.strength(severity) * np.float32(self.sample_rate / 1000)
        cycles = np.fft.rfftfreq(size).astype(np.float32)
        taken = -jnp.expm1(-2 * (np.float32(np.pi) * cycles * sigma) ** 2)
        return without(jnp.pad(signal, around, mode="edge"), taken)[before : before + length]

    @classmethod
    def example(cls) -> tuple["TemporalBlur", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
