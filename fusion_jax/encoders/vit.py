"""Vision transformer on patches of images, frames and series."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fusion_jax.blocks.attention import TransformerBlock, layer_norm
from fusion_jax.blocks.dropout import Dropout
from fusion_jax.blocks.gaussian import GaussianCode
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32, compute_dtype
from fusion_jax.types import Features


class ViTEncoder(nn.Module):
    """Linear embedding of patches plus positions, pre-norm transformer blocks, a projection to D.

    Patches do not overlap. Of frames [B, T, H, W, C] the patches of every frame are tokens, T as a
    further axis of the positions, and all tokens see each other. Positions are fixed sines and
    cosines, so that there is nothing to resize for inputs of another size.

    Pooled features are the mean of the tokens after the last normalisation, and not a CLS token: it
    is at least as good (Beyer et al.), and it trains the tokens that token-level fusion takes.

    Kernels start Xavier-uniform (patch embedding and projection LeCun-normal), biases at 0. A
    missing input is encoded as whatever stands in its place; the model puts zeros there.

    Attributes:
        patch: (height, width) of a patch for images and frames, (length,) for series.
        width: of the tokens inside; `heads` must divide it, and it must be at least twice the
            number of axes.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over `width`.
        features: D, the width that all encoders of a model share.
        padding: "error" refuses inputs that do not divide into patches, "zero" adds zeros after
            their end.
        dropout_rate: in [0, 1), of the embedded patches and of each branch.
        dtype: of the matrix products in the blocks, "float32" or "bfloat16".
        probabilistic: project to a Gaussian code, see `fusion_jax.blocks.gaussian.GaussianCode`.

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv 2010.11929, equations 1
        to 4; Beyer et al., Better plain ViT baselines for ImageNet-1k, 2022, arXiv 2205.01580
        (sin-cos positions and mean pooling).
    """

    patch: tuple[int, ...] = (16, 16)
    width: int = 192
    depth: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    features: int = 64
    padding: str = "error"
    dropout_rate: float = 0.0
    dtype: str = "float32"
    probabilistic: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ..."], *, train: bool, mask: Bool[Array, " b"] | None = None
    ) -> Features:
        """Encode.

        Args:
            x: [B, H, W, C], [B, T, H, W, C] or, with a patch of one axis, [B, T, C].
            train: whether dropout is on.
            mask: unused (no batch statistics).

        Returns:
            Features with tokens [B, N, D], patches in row-major order, and pooled [B, D]; float32
            or wider.

        Raises:
            FusionError: for inputs that do not fit the patch, and for wrong fields.
        """
        x = at_least_float32(x)
        dtype, wide = compute_dtype(self.dtype, x), x.dtype
        patches, grid = split_patches(x, self.patch, padding=self.padding)

        def drop(y: Array) -> Array:
            return Dropout(self.dropout_rate)(y, train=train)

        x = nn.Dense(self.width, dtype=dtype, name="embed")(patches).astype(wide)
        x = drop(x + jnp.asarray(sincos_positions(grid, self.width), wide)[None])
        for i in range(self.depth):
            block = TransformerBlock(self.heads, self.mlp_ratio, self.dtype, name=f"block_{i}")
            x = block(x, drop=drop)
        x = layer_norm("norm")(x)
        if self.probabilistic:
            return GaussianCode(self.features, name="code")(x, train=train, grid=grid)
        tokens = nn.Dense(self.features, name="project")(x)
        return Features(pooled=jnp.mean(tokens, axis=1), tokens=tokens, grid=grid)

    @classmethod
    def example(cls) -> tuple["ViTEncoder", tuple[int, ...]]:
        """A small instance and the shape of one input, for the conformance tests."""
        small = cls(
            patch=(4, 4), width=8, depth=1, heads=2, mlp_ratio=1, features=6, padding="zero"
        )
        return small, (9, 7, 1)


def split_patches(
    x: Float[Array, "b ..."], patch: tuple[int, ...], *, padding: str = "error"
) -> tuple[Float[Array, "b n p"], tuple[int, ...]]:
    """Cut into patches that do not overlap.

    Args:
        x: [B, T, C] for a patch of one axis, else [B, H, W, C] or [B, T, H, W, C].
        patch: size of a patch along the axes just before the channels; frames are not joined.
        padding: "error", or "zero" to add zeros after the end of each axis.

    Returns:
        patches [B, N, P] in row-major order, each flattened with the channels last, and the number
        of patches along each axis between B and C (T counts frames).

    Raises:
        FusionError: for another number of axes, sizes that do not divide, or another padding.
    """
    ranks = {1: (3,), 2: (4, 5)}.get(len(patch), ())
    if not ranks or min(patch) < 1:
        raise FusionError(
            f"patch is {patch}: it must be (length,) for series or (height, width) for images"
        )
    if x.ndim not in ranks:
        wanted = "[B, T, C]" if ranks == (3,) else "[B, H, W, C] or [B, T, H, W, C]"
        raise FusionError(
            f"a patch of {len(patch)} axes needs inputs {wanted}, not {list(x.shape)}: choose "
            "another patch, or add the axis of the channels"
        )
    if padding not in ("error", "zero"):
        raise FusionError(f"padding is {padding!r}: it must be 'error' or 'zero'")
    sizes = x.shape[1:-1]
    steps = (1,) * (len(sizes) - len(patch)) + tuple(patch)
    missing = [-size % step for size, step in zip(sizes, steps, strict=True)]
    if any(missing) and padding == "error":
        raise FusionError(
            f"inputs of size {sizes} do not divide into patches of {patch}: choose a patch that "
            "divides them, or padding='zero'"
        )
    if any(missing):
        x = jnp.pad(x, [(0, 0), *((0, more) for more in missing), (0, 0)])
    grid = tuple(size // step for size, step in zip(x.shape[1:-1], steps, strict=True))
    # [B, n_1, p_1, ..., n_k, p_k, C] -> [B, n_1, ..., n_k, p_1, ..., p_k, C]
    pairs = [size for pair in zip(grid, steps, strict=True) for size in pair]
    split = x.reshape(x.shape[0], *pairs, x.shape[-1])
    last = split.ndim - 1
    split = split.transpose(0, *range(1, last, 2), *range(2, last, 2), last)
    return split.reshape(x.shape[0], math.prod(grid), -1), grid


def sincos_positions(grid: tuple[int, ...], width: int) -> Float[np.ndarray, "n d"]:
    """Fixed positions: for each axis sines and cosines at the same frequencies, side by side.

    With n = width // (2 x axes) frequencies, the i-th is 10000^(-i / (n - 1)), 1 for the first.
    Columns that are left over are 0.

    Args:
        grid: number of positions along each axis.
        width: D.

    Returns:
        [N, D] float64 in [-1, 1], positions in row-major order.

    Raises:
        FusionError: where the width holds no frequency for some axis.
    """
    num = width // (2 * len(grid))
    if num < 1:
        raise FusionError(
            f"width {width} is too small for positions on {len(grid)} axes: choose at least "
            f"{2 * len(grid)}"
        )
    frequencies = 10000.0 ** (-np.arange(num) / max(num - 1, 1))
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    angles = places.reshape(-1, len(grid), 1) * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(angles), -1)
    return np.pad(waves, ((0, 0), (0, width - waves.shape[1])))
