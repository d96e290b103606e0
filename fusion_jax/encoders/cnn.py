"""Small convolutional encoder for images and spectrograms."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from fusion_jax.blocks.convolution import Conv
from fusion_jax.blocks.gaussian import GaussianCode
from fusion_jax.blocks.norm import GroupNorm
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32, compute_dtype
from fusion_jax.types import Features


class CNNEncoder(nn.Module):
    """Strided 3x3 convolution - GroupNorm - GELU stages, then a projection of each position to D.

    Tokens are the positions of the last map in row-major order; pooled features are their mean, or
    what `pooling` makes of them. A missing input is encoded as whatever stands in its place; the
    model puts zeros there.

    Attributes:
        widths: channels of the stages; each halves height and width.
        features: D, the width that all encoders of a model share.
        groups: number of GroupNorm groups; must divide each width.
        dtype: of the computation, "float32" or "bfloat16"; parameters and features stay float32.
        probabilistic: project to a Gaussian code, see `fusion_jax.blocks.gaussian.GaussianCode`.
        pooling: module tokens [B, N, D] -> [B, D], such as
            `fusion_jax.blocks.attention.TransformerPooling`; None for the mean.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    features: int = 64
    groups: int = 8
    dtype: str = "float32"
    probabilistic: bool = False
    pooling: nn.Module | None = None

    @nn.compact
    def __call__(
        self, x: Shaped[Array, "b h w c"], *, train: bool, mask: Bool[Array, " b"] | None = None
    ) -> Features:
        """Encode x [B, H, W, C]; `mask` is unused (no batch statistics).

        Raises:
            FusionError: for a Gaussian code with a `pooling` of its own.
        """
        if self.probabilistic and self.pooling is not None:
            raise FusionError(
                "a Gaussian code is the mean of its positions: set pooling=None or "
                "probabilistic=False"
            )
        dtype = compute_dtype(self.dtype, x)
        x = x.astype(dtype)
        for width in self.widths:
            x = Conv(width, (3, 3), strides=2, use_bias=False, dtype=dtype)(x)
            x = nn.gelu(GroupNorm(num_groups=self.groups)(x))
        grid = x.shape[1:-1]
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if self.probabilistic:
            return GaussianCode(self.features, dtype)(x, train=train, grid=grid)
        tokens = at_least_float32(nn.Dense(self.features, dtype=dtype)(x))
        pooled = jnp.mean(tokens, axis=1) if self.pooling is None else self.pooling(tokens)
        return Features(pooled=pooled, tokens=tokens, grid=grid)

    @classmethod
    def example(cls) -> tuple["CNNEncoder", tuple[int, ...]]:
        """A small instance and the shape of one input, for the conformance tests."""
        return cls(widths=(4, 8), features=6, groups=2), (9, 7, 1)
