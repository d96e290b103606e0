"""Waveform to standardised log-mel map, as two matrix products."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from fusion_jax.errors import FusionError


class LogMel(nn.Module):
    """Log-mel power map of a waveform.

    The transform is a matrix DFT: XLA would gather a sharded batch for an FFT, and at these frame
    lengths the matrix product is also the faster one.

    Attributes:
        sample_rate: in Hz.
        frame: samples per (Hann-windowed) frame.
        hop: samples between frames.
        bins: number of mel bins.
        mean: of the log power, subtracted.
        deviation: of the log power, divided by.
        floor: added to the mel power (full scale 1) before the natural logarithm.
    """

    sample_rate: int = 8000
    frame: int = 256
    hop: int = 128
    bins: int = 32
    mean: float = -14.0
    deviation: float = 3.0
    floor: float = 1e-8

    def _frames(self, x: Array) -> Array:
        """[B, T] to overlapping frames [B, frames, frame]; a shorter tail is left out."""
        # Concatenated blocks, not an index array: a gather of overlapping rows is slow on every
        # backend.
        blocks = x[:, : x.shape[1] // self.hop * self.hop].reshape(x.shape[0], -1, self.hop)
        overlap = self.frame // self.hop
        count = blocks.shape[1] - overlap + 1
        return jnp.concatenate([blocks[:, i : i + count] for i in range(overlap)], axis=-1)

    @nn.compact
    def __call__(self, x: Shaped[Array, "b t"], *, train: bool) -> Float[Array, "b f n 1"]:
        """Transform x [B, T] (int16, or float with full scale 1) to [B, frames, bins, 1]."""
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = x.astype(jnp.float32) / (jnp.iinfo(x.dtype).max + 1.0)
        if self.frame % self.hop or x.shape[1] < self.frame:
            raise FusionError(
                f"log-mel needs a frame ({self.frame}) that is a multiple of the hop ({self.hop}) "
                f"and a waveform ({x.shape[1]} samples) of at least one frame: change one of them"
            )
        spectrum = jnp.matmul(
            self._frames(x), dft_matrix(self.frame), precision=jax.lax.Precision.HIGHEST
        )
        half = self.frame // 2 + 1
        power = spectrum[..., :half] ** 2 + spectrum[..., half:] ** 2
        filters = mel_filters(sample_rate=self.sample_rate, frame=self.frame, bins=self.bins)
        mel = jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)
        return ((jnp.log(mel + self.floor) - self.mean) / self.deviation)[..., None]


def dft_matrix(frame: int) -> np.ndarray:
    """[frame, 2 (frame/2 + 1)]: Hann window times cosines, then sines, over half its sum."""
    n = np.arange(frame)
    angles = 2 * np.pi * np.outer(n, np.arange(frame // 2 + 1)) / frame
    window = (0.5 - 0.5 * np.cos(2 * np.pi * n / frame)) / (frame / 2)
    return (window[:, None] * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)).astype(
        np.float32
    )


def mel_filters(*, sample_rate: int, frame: int, bins: int) -> np.ndarray:
    """[frame/2 + 1, bins] triangles, equally spaced on the mel scale up to half the rate.

    References:
        O'Shaughnessy, Speech Communication, 1987: mel = 2595 log10(1 + f / 700).
    """
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    frequencies = np.arange(frame // 2 + 1) * sample_rate / frame
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - low) / (centre - low)
    falling = (high - frequencies[:, None]) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
