"""Speed of a waveform: it is played faster or slower, as a tape would be."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.over_time import active_length, on_waveform
from fusion_jax.blocks.resample import multiples, read_between
from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.rng import stream


@dataclasses.dataclass
class Speed(TabledStrength):
    """y(t) = x(c + r (t - c)), r being 1 + s (faster, higher) or 1 / (1 + s) (slower, lower).

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, change of speed | 0 | 0.05 | 0.1 | 0.2 | 0.3 | 0.5 |
    | r, faster | 1 | 1.05 | 1.1 | 1.2 | 1.3 | 1.5 |
    | r, slower | 1 | 0.952 | 0.909 | 0.833 | 0.769 | 0.667 |

    The direction is drawn, both being equally likely, and the instant c that stays where it is,
    uniformly over the sound up to its last sample that is not 0; with one key both are the same at
    every severity. A faster sound has zeros before and after it, a slower one is cut. Samples are
    read by linear interpolation, which weakens high frequencies and, where faster, folds those
    above half the sample rate.

    Attributes:
        strengths: s >= 0, at equally spaced severities from 0 to 1.
        reference: s that counts as noise level 1.

    References:
        Ko et al., "Audio augmentation for speech recognition", Interspeech 2015, trains on r = 0.9
        and 1.1, resampled by sinc filters; the further strengths are our own.
    """

    unit: ClassVar[str] = "change of speed"
    strengths: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
    reference: float = 0.05

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"{1 + float(self.strength(severity)):.3g} times as fast or as slow"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, " t"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, " t"]:
        """Corrupt one waveform x [T]; dtype and shape stay.

        Raises:
            FusionError: for what is no waveform.
        """

        def change(signal: Float[Array, " t"]) -> Float[Array, " t"]:
            factor = 1 + self.strength(severity)
            faster = jax.random.bernoulli(stream(key, "direction"))
            rate = jnp.where(faster, factor, 1 / factor)
            drawn = jax.random.uniform(stream(key, "instant")) * active_length(signal)
            still = jnp.floor(drawn).astype(jnp.int32)
            whole, part = multiples(jnp.arange(len(signal)) - still, rate)
            return read_between(signal, still + whole, part)

        return on_waveform(x, change, name="a change of speed")

    @classmethod
    def example(cls) -> tuple["Speed", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (24,), "int16"
