"""How noisy does a modality look? An estimator of the injected noise level."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from fusion_jax.precision import at_least_float32
from fusion_jax.types import Features, SchedulerInput, Signal


class PredictedNoise(nn.Module):
    """Predicted total scale rho of each modality: 1 is clean, sqrt(1 + level^2) noisy.

    A small network per modality reads the encoder's features with stopped gradient, so the encoder
    is never bent to expose noise. Where the injected level is known (training), the squared error
    of log rho trains the network.

    Attributes:
        hidden: width of the hidden layer.
        loss_weight: factor of the squared error in `aux_loss`.

    References:
        Wei et al., UDML, arXiv 2603.19681 (noise-aware uncertainty estimator). The published code
        reads the encoder's standard deviation and regresses a level that is 1 for clean; the scale
        used here is the total one, so that two clean inputs have equal rho whatever small level is
        predicted.
    """

    hidden: int = 64
    loss_weight: float = 1.0

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> Signal:
        """Predict; `Signal.value` is rho [B, M]."""
        outputs = []
        for name in inputs.modalities:
            x = jax.lax.stop_gradient(noise_cues(inputs.features[name]))
            x = nn.gelu(
                nn.Dense(self.hidden, name=f"hidden_{name}")(nn.LayerNorm(name=f"norm_{name}")(x))
            )
            # Zero-initialised: every modality starts at the same rho, so weighting starts static.
            outputs.append(
                nn.Dense(1, kernel_init=nn.initializers.zeros, name=f"scale_{name}")(x)[:, 0]
            )
        log_rho = jax.nn.softplus(jnp.stack(outputs, axis=-1))
        error = jnp.zeros(log_rho.shape[0])
        if train and inputs.noise_level is not None:
            target = 0.5 * jnp.log1p(inputs.noise_level**2)
            error = jnp.sum(jnp.where(inputs.present, (log_rho - target) ** 2, 0), axis=-1)
        return Signal(value=jnp.exp(log_rho), aux_loss=self.loss_weight * error)

    @classmethod
    def example(cls) -> "PredictedNoise":
        """A small instance for the conformance tests."""
        return cls(hidden=4)


def noise_cues(features: Features) -> Array:
    """What of the features tells noise from signal: [B, C], float32.

    The mean log variance of a probabilistic encoder, alone: its features are drawn in training and
    means in evaluation, and their spread would not be the same in both. Else pooled features, with
    the spread of the tokens where there are any: noise makes positions differ from one another.
    """
    if features.log_variance is not None:
        return at_least_float32(features.log_variance)
    parts = [features.pooled]
    if features.tokens is not None:
        valid = features.token_mask
        spread = features.tokens.var(axis=1, where=None if valid is None else valid[..., None])
        if valid is not None:  # a variance over no token is NaN
            spread = jnp.where(valid.any(axis=1, keepdims=True), spread, 0)
        parts.append(jnp.log(spread + 1e-6))
    return at_least_float32(jnp.concatenate(parts, axis=-1))
