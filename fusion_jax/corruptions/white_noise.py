"""White noise on a waveform at a stated signal-to-noise ratio."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.strength import SignalToNoise, add_at_ratio


@dataclasses.dataclass
class WhiteNoise(SignalToNoise):
    """x + r RMS(x) n, n ~ N(0, 1) for each sample; RMS over the samples that are not 0.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | r, noise amplitude over signal amplitude | 0 | 0.1 | 0.316 | 0.562 | 1 | 1.78 |
    | signal-to-noise ratio, dB | none | 20 | 10 | 5 | 0 | -5 |

    The noise covers the padding too, as a microphone would. Integer input is rounded and saturates.
    """

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, " t"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, " t"]:
        """Corrupt one waveform x [T]; dtype and shape stay."""
        return add_at_ratio(x, normal_noise(key, x.shape), self.strength(severity))

    @classmethod
    def example(cls) -> tuple["WhiteNoise", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (160,), "int16"
