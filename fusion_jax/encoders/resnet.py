"""Residual network for images, spectrograms and video frames."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from fusion_jax.blocks.convolution import Conv
from fusion_jax.blocks.gaussian import GaussianCode
from fusion_jax.blocks.norm import BatchNorm, GroupNorm
from fusion_jax.blocks.pooling import max_pool
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32, compute_dtype
from fusion_jax.types import Features

# Depth -> blocks per stage, and whether they are bottlenecks.
STAGES = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}


class ResNetEncoder(nn.Module):
    """ResNet, then a projection of each position of the last map to D.

    Tokens are the positions of the last map in row-major order, frame after frame where there are
    frames; pooled features are their mean. Frames pass through the 2-D network one by one. A
    missing input is encoded as whatever stands in its place; the model puts zeros there.

    Departures from the paper: GroupNorm by default, since batch statistics tie the rows of a batch
    together; the stride of a bottleneck is on its 3x3 convolution, where the common checkpoints
    have it; shortcuts are projections where the shape changes (option B); the last norm of each
    residual branch starts at 0, so that every block starts as its shortcut.

    Attributes:
        depth: 18, 34 (basic blocks) or 50 (bottlenecks).
        features: D, the width that all encoders of a model share.
        width: channels of the first stage (64 in the paper); each later stage doubles them.
        norm: "group", or "batch" over the valid rows of the global batch.
        groups: number of GroupNorm groups; must divide `width`.
        stem: "small" (3x3 convolution at full resolution, for maps up to about 64 pixels) or
            "imagenet" (7x7 convolution and maximum pool, together a quarter of the resolution).
        dtype: of the computation, "float32" or "bfloat16"; parameters and features stay float32.
        probabilistic: project to a Gaussian code, see `fusion_jax.blocks.gaussian.GaussianCode`.

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, Table 1; section 4.2 for
        the small stem. Wu and He, Group Normalization, ECCV 2018. Goyal et al., Accurate, Large
        Minibatch SGD, 2017, arXiv 1706.02677, section 5.1, for the zero start.
    """

    depth: int = 18
    features: int = 64
    width: int = 64
    norm: str = "group"
    groups: int = 8
    stem: str = "small"
    dtype: str = "float32"
    probabilistic: bool = False

    @nn.compact
    def __call__(
        self, x: Shaped[Array, "b ... c"], *, train: bool, mask: Bool[Array, " b"] | None = None
    ) -> Features:
        """Encode images x [B, H, W, C] or frames x [B, T, H, W, C].

        Args:
            x: of any number of channels.
            train: with norm "batch", use and record the batch's statistics.
            mask: Bool[B], rows that enter batch statistics; a row counts with all its frames.

        Raises:
            FusionError: for an input of another rank and for fields with an unknown value.
        """
        self._check(x)
        dtype, rows = compute_dtype(self.dtype, x), x.shape[0]
        x = x.astype(dtype)
        if x.ndim == 5:
            frames = x.shape[1]
            x = x.reshape(rows * frames, *x.shape[2:])
            mask = None if mask is None else jnp.repeat(mask, frames)
        conv = functools.partial(Conv, use_bias=False, dtype=dtype)
        norm = self._norm(train=train, mask=mask)
        x = self._stem(x, conv, norm)
        blocks, bottleneck = STAGES[self.depth]
        for stage, count in enumerate(blocks):
            for number in range(count):
                x = _Block(
                    width=self.width * 2**stage,
                    stride=2 if stage and not number else 1,
                    bottleneck=bottleneck,
                    name=f"stage{stage + 1}_block{number + 1}",
                )(x, conv, norm)
        grid = x.shape[1:3] if x.shape[0] == rows else (x.shape[0] // rows, *x.shape[1:3])
        x = x.reshape(rows, -1, x.shape[-1])
        if self.probabilistic:
            return GaussianCode(self.features, dtype, name="code")(x, train=train, grid=grid)
        projection = nn.Dense(self.features, dtype=dtype, name="projection")
        tokens = at_least_float32(projection(x))
        return Features(pooled=jnp.mean(tokens, axis=1), tokens=tokens, grid=grid)

    def _check(self, x: Array) -> None:
        """Refuse what the network cannot be built from, by name."""
        if x.ndim not in (4, 5):
            raise FusionError(
                f"a ResNet encodes [B, H, W, C] or [B, T, H, W, C], not shape {x.shape}: "
                "give images or frames with an axis of channels"
            )
        allowed: dict[str, tuple] = {
            "depth": tuple(STAGES),
            "norm": ("group", "batch"),
            "stem": ("small", "imagenet"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise FusionError(
                    f"unknown {name} {getattr(self, name)!r} of a ResNet: use one of {list(values)}"
                )
        if self.norm == "group" and (self.groups < 1 or self.width % self.groups):
            raise FusionError(
                f"{self.groups} groups do not divide a width of {self.width}: change one of them"
            )

    def _norm(self, *, train: bool, mask: Array | None) -> Callable[..., Any]:
        """The norm, (x, name, start, relu) -> x normalised; its scale starts at `start`."""

        def norm(x: Array, name: str, *, start: float = 1.0, relu: bool = False) -> Array:
            init = nn.initializers.constant(start)
            if self.norm == "batch":
                y = BatchNorm(scale_init=init, name=name)(x, train=train, mask=mask)
                return nn.relu(y) if relu else y
            return GroupNorm(self.groups, scale_init=init, relu=relu, name=name)(x)

        return norm

    def _stem(self, x: Array, conv: Callable, norm: Callable) -> Array:
        """From pixels to the first stage's map."""
        if self.stem == "small":
            x = conv(self.width, (3, 3), padding=_around(1), name="stem_conv")(x)
            return norm(x, "stem_norm", relu=True)
        x = conv(self.width, (7, 7), strides=2, padding=_around(3), name="stem_conv")(x)
        return max_pool(norm(x, "stem_norm", relu=True))

    @classmethod
    def example(cls) -> tuple["ResNetEncoder", tuple[int, ...]]:
        """A small instance and the shape of one input, for the conformance tests."""
        return cls(width=4, features=6, groups=2), (9, 7, 1)


class _Block(nn.Module):
    """relu(shortcut + residual branch).

    Attributes:
        width: channels inside the branch; a bottleneck returns four times as many.
        stride: of the first 3x3 convolution.
        bottleneck: 1x1, 3x3, 1x1 convolutions in place of two 3x3.
    """

    width: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], conv: Callable[..., Any], norm: Callable[..., Any]
    ) -> Float[Array, "b h2 w2 d"]:
        """Transform x with the encoder's convolution and norm."""
        w, s = self.width, self.stride
        # Channels, kernel size and stride of each convolution of the branch.
        branch = (
            [(w, 1, 1), (w, 3, s), (4 * w, 1, 1)] if self.bottleneck else [(w, 3, s), (w, 3, 1)]
        )
        y = x
        for i, (channels, size, stride) in enumerate(branch, start=1):
            pads = _around(size // 2)
            layer = conv(channels, (size, size), strides=stride, padding=pads, name=f"conv{i}")
            last = i == len(branch)
            y = norm(layer(y), f"norm{i}", start=0.0 if last else 1.0, relu=not last)
        if x.shape != y.shape:
            projection = conv(
                y.shape[-1], (1, 1), strides=s, padding=_around(0), name="shortcut_conv"
            )
            x = norm(projection(x), "shortcut_norm")
        return nn.relu(x + y)


def _around(pad: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The same padding on all four sides, as in the paper; "SAME" would pad even maps unevenly."""
    return (pad, pad), (pad, pad)
