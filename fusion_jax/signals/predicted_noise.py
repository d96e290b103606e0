"""How noisy does a modality look? An estimator of the injected noise level."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.blocks.dropout import Dropout
from fusion_jax.blocks.running_norm import RunningNorm
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32
from fusion_jax.types import Features, SchedulerInput, Signal

MODES = ("corrected", "statistics", "official")


class PredictedNoise(nn.Module):
    """Predicted total scale rho of each modality: 1 is clean, sqrt(1 + level^2) noisy.

    A small network per modality reads the encoder's features with stopped gradient, so the encoder
    is never bent to expose noise. Where the injected level is known (training), the squared error
    trains the network.

    | mode | network | value | squared error of |
    |---|---|---|---|
    | "corrected" | Dense, GELU, Dense | rho = exp(max(., 0)) >= 1 | ., from log rho |
    | "statistics" | Dense | as above | as above |
    | "official" | Dense, dropout 0.1, Dense | exp(. / 2) > 0 | exp(. / 2), from 1 + level |

    Attributes:
        mode: one of the above. "statistics" reads no features but statistics of the input
            (`fusion_jax.blocks.input_statistics`), normalised: encoders saturate under noise beyond
            training, a linear map of these does not. "official" reads the standard deviations of a
            probabilistic encoder: the geometric mean over positions, where the released code takes
            the arithmetic one.
        hidden: width of the hidden layer (released: 256).
        loss_weight: factor of the squared error in `aux_loss` (released: 0.1).

    References:
        Wei et al., UDML, arXiv 2603.19681 (noise-aware uncertainty estimator); "official": its
        released code, where a level of 1 is clean. The total scale is ours: two clean inputs have
        about equal rho whatever small level is predicted.
    """

    mode: str = "corrected"
    hidden: int = 64
    loss_weight: float = 1.0

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> Signal:
        """Predict; `Signal.value` is [B, M], > 0.

        Raises:
            FusionError: for another mode, "official" without probabilistic encoders, or
                "statistics" without those of the inputs.
        """
        if self.mode not in MODES:
            raise FusionError(f"mode is {self.mode!r}: choose one of {list(MODES)}")
        official = self.mode == "official"
        outputs = []
        for m, name in enumerate(inputs.modalities):
            if self.mode == "statistics":
                rows = inputs.mask & inputs.present[:, m]
                x = self._statistics(inputs.features[name], name)
                x = RunningNorm(name=f"norm_{name}")(x, rows, train=train)
            else:
                x = self._hidden(inputs.features[name], name, train=train)
            # Zero-initialised: every modality starts at the same scale, so weighting starts static.
            outputs.append(
                nn.Dense(1, kernel_init=nn.initializers.zeros, name=f"scale_{name}")(x)[:, 0]
            )
        output = jnp.stack(outputs, axis=-1)
        log_scale = output / 2 if official else output
        # The network's output is cut at 0, where rho is 1, and not bent by a softplus: that never
        # reaches the 0 of clean inputs, which costs rank correlation with weak noise. The error is
        # of the uncut output, so its gradient stays. Above, only an overflow ends.
        value = jnp.exp(jnp.clip(log_scale, -20.0 if official else 0.0, 20.0))
        error = jnp.zeros(value.shape[0])
        if train and inputs.noise_level is not None:
            target = 0.5 * jnp.log1p(inputs.noise_level**2)
            distance = value - (1 + inputs.noise_level) if official else log_scale - target
            error = jnp.sum(jnp.where(inputs.present, distance**2, 0), axis=-1)
        return Signal(value=value, aux_loss=self.loss_weight * error)

    @property
    def reads_statistics(self) -> bool:
        """Whether the model must measure `Features.statistics`."""
        return self.mode == "statistics"

    def _hidden(self, features: Features, name: str, *, train: bool) -> Float[Array, "b c"]:
        """The hidden layer over an encoder's features."""
        official = self.mode == "official"
        x = jax.lax.stop_gradient(noise_cues(features))
        if official and features.log_variance is None:
            raise FusionError(
                "the official noise estimator reads Gaussian codes: set "
                f"encoders.{name}.probabilistic=True"
            )
        x = nn.Dense(self.hidden, name=f"hidden_{name}")(jnp.exp(x / 2) if official else x)
        if official:
            return Dropout(0.1, name=f"dropout_{name}")(x, train=train)
        return nn.gelu(x)

    def _statistics(self, features: Features, name: str) -> Float[Array, "b s"]:
        """Statistics of the input of a modality."""
        if features.statistics is None:
            raise FusionError(
                f"predicted noise reads statistics of the inputs, and the features of {name!r} "
                "have none: give them `statistics=input_statistics(x)`, as FusionModel does"
            )
        return jax.lax.stop_gradient(features.statistics)

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
