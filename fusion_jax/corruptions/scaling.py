"""Wrong gains: each channel of a series, or each feature, is multiplied by a random one."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.over_time import check_floats
from fusion_jax.blocks.strength import TabledStrength


@dataclasses.dataclass
class Scaling(TabledStrength):
    """x 10^(s n / 20), n ~ N(0, 1), one for each entry of the last axis.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | s, standard deviation of the gain, dB | 0 | 1 | 2 | 4 | 6 | 10 |
    | gain at one deviation, up | 1 | 1.12 | 1.26 | 1.58 | 2 | 3.16 |

    Gains are log-normal: a channel gets twice as strong as often as half as strong, and never
    changes its sign. The raw value is multiplied, about 0: offsets grow too. With one key, n is the
    same at every severity.

    Attributes:
        strengths: s in dB, at equally spaced severities from 0 to 1.
        reference: s that counts as noise level 1.

    References:
        Um et al., "Data augmentation of wearable sensor data for Parkinson's disease monitoring
        using convolutional neural networks", ICMI 2017, multiply each channel by N(1, 0.1^2), for
        which 1 dB stands in ours; the further strengths are our own.
    """

    unit: ClassVar[str] = "dB"
    strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 6.0, 10.0)
    reference: float = 1.0

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"gains of {float(self.strength(severity)):.3g} dB"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Array, "... c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Float[Array, "... c"]:
        """Corrupt one series [T, C] or vector of features [C], floats; dtype and shape stay.

        Raises:
            FusionError: for integers, and for what has no axis.
        """
        check_floats(x, axes=1, name="scaling", takes="floats [..., C]")
        drawn = normal_noise(key, x.shape[-1:])
        gain = jnp.exp(self.strength(severity) * np.float32(np.log(10) / 20) * drawn)
        return (x * gain.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)

    @classmethod
    def example(cls) -> tuple["Scaling", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (20, 3), "float32"
