"""Multi-layer perceptron on flattened inputs."""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Bool, Shaped

from fusion_jax.blocks.dropout import Dropout
from fusion_jax.blocks.gaussian import GaussianCode
from fusion_jax.precision import at_least_float32, compute_dtype
from fusion_jax.types import Features


class MLPEncoder(nn.Module):
    """Dense - LayerNorm - GELU layers, then a projection to D.

    A missing input is encoded as whatever stands in its place; the model puts zeros there and no
    fusion operator lets the result through.

    Attributes:
        hidden: widths of the hidden layers.
        features: D, the width that all encoders of a model share.
        dropout_rate: in [0, 1), after each hidden layer.
        dtype: of the computation, "float32" or "bfloat16"; parameters and features stay float32.
        probabilistic: project to a Gaussian code, see `fusion_jax.blocks.gaussian.GaussianCode`.
    """

    hidden: tuple[int, ...] = (128, 128)
    features: int = 64
    dropout_rate: float = 0.0
    dtype: str = "float32"
    probabilistic: bool = False

    @nn.compact
    def __call__(
        self, x: Shaped[Array, "b ..."], *, train: bool, mask: Bool[Array, " b"] | None = None
    ) -> Features:
        """Encode x [B, ...] to pooled features [B, D]; `mask` is unused (no batch statistics)."""
        dtype = compute_dtype(self.dtype, x)
        x = x.reshape(x.shape[0], -1).astype(dtype)
        for width in self.hidden:
            x = nn.LayerNorm(dtype=dtype)(nn.Dense(width, use_bias=False, dtype=dtype)(x))
            x = Dropout(self.dropout_rate)(nn.gelu(x), train=train)
        if self.probabilistic:
            code = GaussianCode(self.features, dtype)(x[:, None], train=train)
            return dataclasses.replace(code, tokens=None)
        return Features(pooled=at_least_float32(nn.Dense(self.features, dtype=dtype)(x)))

    @classmethod
    def example(cls) -> tuple["MLPEncoder", tuple[int, ...]]:
        """A small instance and the shape of one input, for the conformance tests."""
        return cls(hidden=(8,), features=6), (5, 2)
