"""Delay: a waveform, series or video that comes too late, against the other modalities."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from fusion_jax.blocks.strength import TabledStrength
from fusion_jax.errors import FusionError


@dataclasses.dataclass
class Delay(TabledStrength):
    """y[t] = x[t - d], zeros before: misalignment in time, by whole steps.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | d, share of the length | 0 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5 |

    With `steps_per_second` the table is in seconds, else in shares of the length T, which counts
    padding. d is rounded to whole steps; the last d steps of x are lost. Nothing is drawn. The
    table is our own.

    Attributes:
        steps_per_second: samples, steps or frames per second; 0 where `strengths` are shares.
        strengths: d at equally spaced severities from 0 to 1, in seconds or as shares.
        reference: d, in the same unit, that counts as noise level 1.
    """

    unit: ClassVar[str] = "delay"
    deterministic: ClassVar[bool] = True
    steps_per_second: float = 0.0
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    reference: float = 0.1

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        delay = float(self.strength(severity))
        if self.steps_per_second:
            return f"{delay:.3g} s late"
        return f"{100 * delay:.3g} % of the length late"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, "t ..."],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, "t ..."]:
        """Corrupt one waveform [T], series [T, ...] of floats or 8-bit video [T, H, W, C].

        Raises:
            FusionError: for what is none of these, such as an image.
        """
        video = x.dtype == jnp.uint8 and x.ndim == 4
        sound = x.dtype == jnp.int16 and x.ndim == 1
        floats = jnp.issubdtype(x.dtype, jnp.floating) and x.ndim >= 1
        if not (video or sound or floats):
            raise FusionError(
                f"a delay met an input of {x.dtype} {x.shape}: it takes waveforms [T], series "
                "[T, ...] of floats and 8-bit videos [T, H, W, C]"
            )
        length = x.shape[0]
        per_unit = self.steps_per_second or length
        steps = jnp.clip(jnp.round(self.strength(severity) * per_unit), 0, length)
        both = jnp.concatenate([jnp.zeros_like(x), x])
        return jax.lax.dynamic_slice_in_dim(both, length - steps.astype(jnp.int32), length)

    @classmethod
    def example(cls) -> tuple["Delay", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (20, 3, 2, 1), "uint8"
