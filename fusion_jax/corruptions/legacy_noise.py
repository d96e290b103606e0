"""The noise of the released UDML pipeline, with its slips, so that their effect can be measured."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

LEVELS = 11
# The one pattern that every example and every step gets.
SHARED_SEED = 0


@dataclasses.dataclass
class LegacyNoise:
    """Noise of level 1 (clean) to 11, as the released code makes it. For comparison only.

    | severity | 0 | 0.1 | 0.2 | ... | 0.9 | 1.0 |
    |---|---|---|---|---|---|---|
    | level | 1 | 2 | 3 | ... | 10 | 11 |
    | 8-bit images: standard deviation in grey levels | 0 | 4 | 9 | ... | 100 | replaced |
    | log spectrograms: standard deviation | 0 | 2 | 3 | ... | 10 | replaced |

    Severities between round to the next level. At level 11 the input is replaced by noise (standard
    deviation 121 for images, 11 for spectrograms) times 25.5. What is kept on purpose:

    * in images one plane is shared by all channels, and only the upper side is clipped before the
      cast to 8 bits: negative values wrap around to bright ones;
    * the standard deviation is the square of the level in images, the level in spectrograms;
    * with `shared_pattern` every example gets the same pattern, scaled (there, of spectrograms).

    Its noise level is the level less 1, so that clean is 0 as everywhere here.

    Attributes:
        shared_pattern: ignore the key.

    References:
        Released code of Wei et al., UDML, arXiv 2603.19681.
    """

    unit: ClassVar[str] = "level"
    shared_pattern: bool = False

    def strength(self, severity: Float[Array, "..."] | float) -> Float[Array, "..."]:
        """The level less 1, in [0, 10], before it is rounded."""
        return (LEVELS - 1) * jnp.asarray(severity, jnp.float32)

    def noise_level(self, severity: Float[Array, "..."] | float) -> Float[Array, "..."]:
        """The level less 1: 0 to 10."""
        return jnp.round(self.strength(severity))

    def describe(self, severity: float) -> str:
        """The strength in words, for reports."""
        return f"level {int(self.noise_level(severity)) + 1}"

    def __call__(
        self,
        key: Key[Array, ""],
        x: Shaped[Array, "..."],
        severity: Float[Array, ""],
        donor: Any = None,
    ) -> Shaped[Array, "..."]:
        """Corrupt one 8-bit image [H, W, C] or one log spectrogram [...] of floats."""
        image = x.dtype == jnp.uint8
        level = self.noise_level(severity) + 1
        deviation = level**2 if image else level
        key = jax.random.key(SHARED_SEED) if self.shared_pattern else key
        shape = (*x.shape[:-1], 1) if image else x.shape
        noise = deviation * jax.random.normal(key, shape, jnp.float32)
        added = x.astype(jnp.float32) + noise
        noisy = jnp.where(level >= LEVELS, jnp.broadcast_to(noise * 25.5, x.shape), added)
        if image:
            # Towards zero and then modulo 256, as C casts a negative float through an integer.
            noisy = jnp.minimum(noisy, 255).astype(jnp.int32) & 255
        return jnp.where(level > 1, noisy.astype(x.dtype), x)

    @classmethod
    def example(cls) -> tuple["LegacyNoise", tuple[int, ...], str]:
        """A small instance with the shape and dtype of one input, for the conformance tests."""
        return cls(), (6, 5, 3), "uint8"
