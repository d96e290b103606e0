"""UDML: weights from predicted noise, corrected by the model's dependence on each modality."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.blocks.gaussian import code_divergence
from fusion_jax.blocks.presence import masked_softmax, uniform_weights
from fusion_jax.errors import FusionError
from fusion_jax.signals.dependence import Dependence
from fusion_jax.signals.predicted_noise import PredictedNoise
from fusion_jax.types import FusionWeights, SchedulerInput


def _default_signals() -> tuple[nn.Module, ...]:
    return (PredictedNoise(), Dependence())


class UDMLScheduler(nn.Module):
    """w proportional to the product over signals of signal^-exponent, over the present modalities.

    With the default signals this is w ~ rho^-tau dependence^-kappa: little weight where the input
    looks noisy, and less for a modality that the model already leans on, so that a weak modality is
    not suppressed twice. The exponents are learned by the task's loss within (0, limit); the
    signals get no gradient from the weights.

    Attributes:
        signals: positive signals, each larger = less reliable.
        exponents: their starting values, in (0, limit), one per signal.
        limit: upper bound of an exponent.
        start: fraction of training before which weights are equal, in [0, 1); the signals train
            from the first step. Validation always weighs, also before.
        divergence_weight: factor of the divergence of Gaussian codes from their prior, which has
            variance 1 + level^2: the total scale that the estimator predicts. It trains the
            encoders, which must be probabilistic.

    References:
        Wei et al., UDML, arXiv 2603.19681: w = g(1 / (rho alpha)), that is both exponents fixed at
            1.
    """

    signals: tuple[nn.Module, ...] = dataclasses.field(default_factory=_default_signals)
    exponents: tuple[float, ...] = (0.5, 1.0)
    limit: float = 4.0
    start: float = 0.0
    divergence_weight: float = 0.0

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> FusionWeights:
        """Weights [B, M], with the signals' values and losses.

        Raises:
            FusionError: with `divergence_weight`, for encoders that are not probabilistic.
        """
        found = {type(signal).__name__: signal(inputs, train=train) for signal in self.signals}
        start = [math.log(value / (self.limit - value)) for value in self.exponents]
        raw = self.param("exponents", lambda _: jnp.asarray(start, jnp.float32))
        values = jnp.stack([signal.value for signal in found.values()])
        weights = power_weights(values, self.limit * jax.nn.sigmoid(raw), inputs.present)
        aux = sum((signal.aux_loss for signal in found.values()), jnp.zeros(inputs.mask.shape[0]))
        if train and self.start:
            equal = uniform_weights(inputs.present)
            weights = jnp.where(inputs.progress < self.start, equal, weights)
        if train and self.divergence_weight:
            aux = aux + self.divergence_weight * codes_divergence(inputs)
        return FusionWeights(weights, aux, {name: signal.value for name, signal in found.items()})

    @classmethod
    def example(cls) -> "UDMLScheduler":
        """A small instance for the conformance tests."""
        return cls(signals=(PredictedNoise(hidden=4), Dependence()))


def codes_divergence(inputs: SchedulerInput) -> Float[Array, " b"]:
    """Divergence [B] of the present modalities' codes from N(0, 1 + level^2), in nats per position.

    The noise level is 0 where it is not known.

    Raises:
        FusionError: for encoders that are not probabilistic.
    """
    level = inputs.noise_level
    level = jnp.zeros(inputs.present.shape) if level is None else level
    total = jnp.zeros(inputs.mask.shape[0])
    for m, name in enumerate(inputs.modalities):
        features = inputs.features[name]
        if features.second_moment is None or features.log_variance is None:
            raise FusionError(
                f"the divergence needs Gaussian codes: set encoders.{name}.probabilistic=True, "
                "or scheduler.divergence_weight=0"
            )
        prior = 1 + level[:, m] ** 2
        divergence = code_divergence(features.second_moment, features.log_variance, prior)
        total = total + jnp.where(inputs.present[:, m], divergence, 0)
    return total


def quality_weights(
    scale: Float[Array, "b m"],
    dependence: Float[Array, " m"],
    *,
    mode: str = "corrected",
    exponents: tuple[float, float] = (0.5, 1.0),
    present: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b m"]:
    """Weights from predicted noise scales and dependence, without a model: [B, M], sum 1.

    | mode | w, normalised over present modalities |
    |---|---|
    | "corrected" | scale^-tau dependence^-kappa, exponents (tau, kappa) |
    | "official" | scale^-2 / dependence, the released arithmetic (there the sum is M) |

    Args:
        scale: [B, M], > 0: total noise scale with 1 for clean; in "official" the predicted level.
        dependence: [M], > 0, how much the prediction leans on each modality, in any unit.
        mode: one of the above.
        exponents: of "corrected".
        present: Bool[B, M]; None for all.

    Raises:
        FusionError: for another mode.

    References:
        Wei et al., UDML, arXiv 2603.19681; "official": its released code.

    Example:
        >>> weights = quality_weights(jnp.ones((1, 2)), jnp.asarray([32.0, 10.0]), mode="official")
        >>> [round(float(w), 3) for w in weights[0]]
        [0.238, 0.762]
    """
    if mode not in ("corrected", "official"):
        raise FusionError(f"mode is {mode!r}: choose 'corrected' or 'official'")
    tau, kappa = exponents if mode == "corrected" else (2.0, 1.0)
    here = jnp.ones(scale.shape, bool) if present is None else present
    return masked_softmax(-tau * jnp.log(scale) - kappa * jnp.log(dependence)[None], here)


def power_weights(
    values: Float[Array, "s b m"], exponents: Float[Array, " s"], present: Array
) -> Float[Array, "b m"]:
    """Weights ~ prod_s values_s^-exponents_s over present modalities; gradient to exponents only.

    Args:
        values: [S, B, M], > 0.
        exponents: [S].
        present: Bool[B, M].
    """
    logs = jnp.log(jnp.maximum(jax.lax.stop_gradient(values), 1e-6))
    return masked_softmax(-jnp.einsum("s,sbm->bm", exponents, logs), present)
