"""Shot noise: the light of an image is a number of photons that was counted."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float, Key, UInt8

from fusion_jax.blocks.images import on_image
from fusion_jax.blocks.normal_noise import normal_noise
from fusion_jax.blocks.strength import TabledStrength

# Below this mean, counts are found by summing probabilities, above it by an expansion.
FEW = 8
# Of a mean of FEW, 1.2 in a million counts lie above it.
MOST = 24
# Sums in single precision end a little below 1: a draw beyond would count to the very end.
LAST_DRAW = 1 - 1e-6


@dataclasses.dataclass
class ShotNoise(TabledStrength):
    """k / N, k a Poisson count of mean N x for each entry, x in [0, 1]; rounded, and saturates.

    | severity | 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0 |
    |---|---|---|---|---|---|---|
    | N, photons at full brightness | infinite | 60 | 25 | 12 | 5 | 3 |
    | deviation at full brightness, 1 / sqrt(N) | 0 | 0.129 | 0.2 | 0.289 | 0.447 | 0.577 |

    Published severities 1 to 5 are 0.2 to 1. At brightness x the deviation is sqrt(x / N), before
    values above full brightness saturate. Each channel of each pixel of each frame is drawn by
    itself. With one key, each entry has the same quantile at every severity. That is what a loop
    of rejections, the usual way to draw counts, does not give, besides being slow inside a
    compiled step: here a normal number is drawn and turned into the count of the same quantile.
    Up to a mean of 8 that is exact; above, an expansion in 1 / sqrt(mean) is off by one count in
    0.3 % of draws or fewer, which leaves mean and variance right to 0.02 %.

    Attributes:
        strengths: 1 / sqrt(N), at equally spaced severities from 0 to 1; between them it is linear.
        reference: 1 / sqrt(N) that counts as noise level 1.

    References:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, arXiv:1903.12261 (ImageNet-C). Giles, "Algorithm 955:
        Approximation of the inverse Poisson cumulative distribution function", ACM TOMS 42, 2016
        (the expansion).
    """

    unit: ClassVar[str] = "sigma at full brightness"
    strengths: tuple[float, ...] = (0.0, 60**-0.5, 25**-0.5, 12**-0.5, 5**-0.5, 3**-0.5)
    reference: float = 60**-0.5

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        sigma = float(self.strength(severity))
        return "no noise" if sigma == 0 else f"{sigma**-2:.3g} photons at full brightness"

    def __call__(
        self,
        key: Key[Array, ""],
        x: UInt8[Array, "*frames h w c"],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> UInt8[Array, "*frames h w c"]:
        """Corrupt one image or video x [..., H, W, C], 8-bit; dtype and shape stay.

        Raises:
            FusionError: for an input of another dtype, or with fewer than three axes.
        """
        # At 10^12 photons the noise is far below a level: that stands for infinitely many.
        variance = jnp.maximum(self.strength(severity), 1e-6) ** 2

        def change(frames: Array) -> Array:
            # Flat: along an innermost axis of few channels nothing would be vectorised.
            flat = frames.reshape(-1)
            counts = _poisson_counts(flat / variance, normal_noise(key, flat.shape))
            return (counts * variance).reshape(frames.shape)

        return on_image(x, change, name="shot noise")

    @classmethod
    def example(cls) -> tuple["ShotNoise", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (12, 10, 3), "uint8"


def _poisson_counts(mean: Float[Array, " n"], normal: Float[Array, " n"]) -> Float[Array, " n"]:
    """Poisson counts of given means >= 0, at the quantiles of standard normal draws."""
    return jnp.where(mean < FEW, _few_counts(mean, normal), _many_counts(mean, normal))


def _few_counts(mean: Float[Array, " n"], normal: Float[Array, " n"]) -> Float[Array, " n"]:
    """The least k of cumulative probability at or above that of the draw; means up to FEW."""
    mean = jnp.minimum(mean, FEW)
    draw = jnp.minimum(ndtr(normal), LAST_DRAW)
    probability = jnp.exp(-mean)
    cumulative = probability
    counts = jnp.zeros_like(mean)
    for number in range(1, MOST + 1):
        counts += draw > cumulative
        probability *= mean / number
        cumulative += probability
    return counts


def _many_counts(mean: Float[Array, " n"], normal: Float[Array, " n"]) -> Float[Array, " n"]:
    """The same by the normal expansion of the quantile; means from FEW on."""
    mean = jnp.maximum(mean, FEW)
    deviation = jnp.sqrt(mean)
    shift = 1 / 3 + normal**2 / 6 - (normal / 36 + normal**3 / 72) / deviation
    return jnp.floor(mean + deviation * normal + shift)
