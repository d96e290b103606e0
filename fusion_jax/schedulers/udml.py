"""UDML: weights from predicted noise, corrected by the model's dependence on each modality."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.blocks.collect_signals import collect_signals
from fusion_jax.blocks.gaussian import code_divergence
from fusion_jax.blocks.presence import masked_softmax, permuted_weights, uniform_weights
from fusion_jax.errors import FusionError
from fusion_jax.signals.dependence import Dependence
from fusion_jax.signals.predicted_noise import PredictedNoise
from fusion_jax.types import FusionWeights, SchedulerInput

MODES = ("corrected", "official")


def _default_signals() -> tuple[nn.Module, ...]:
    return (PredictedNoise(), Dependence())


class UDMLScheduler(nn.Module):
    """w proportional to the product over signals of signal^-exponent, over the present modalities.

    With the default signals this is w ~ rho^-tau dependence^-kappa: little weight where the input
    looks noisy, and less for a modality that the model already leans on, so that a weak modality is
    not suppressed twice. The exponents are learned by the task's loss within (0, limit); the
    signals get no gradient from the weights. `official_udml` is the released arithmetic.

    Attributes:
        signals: positive signals, each larger = less reliable.
        exponents: their starting values, in (0, limit), one per signal.
        learned: whether the task's loss moves them.
        limit: upper bound of an exponent.
        floor: share of equal weights that is mixed in, in [0, 1].
        start: fraction of training before which weights are equal, in [0, 1); the signals train
            from the first step.
        divergence_weight: factor of the divergence of Gaussian codes from their prior, which has
            variance 1 + level^2: the total scale that the estimator predicts. It trains the
            encoders, which must be probabilistic.
        mode: "corrected" or "official", see `official_udml`.
        permuted: a control: each example gets the weights of the next one in the batch, so that
            their values stay and what they say of the example goes. Evaluate it where examples
            differ in quality.

    References:
        Wei et al., UDML, arXiv 2603.19681: w = g(1 / (rho alpha)), that is both exponents fixed at
            1.
    """

    signals: tuple[nn.Module, ...] = dataclasses.field(default_factory=_default_signals)
    exponents: tuple[float, ...] = (0.5, 1.0)
    learned: bool = True
    limit: float = 4.0
    floor: float = 0.0
    start: float = 0.0
    divergence_weight: float = 0.0
    mode: str = "corrected"
    permuted: bool = False

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> FusionWeights:
        """Weights [B, M], with the signals' values and losses.

        Raises:
            FusionError: for exponents out of range or of another number than the signals, another
                mode, or, with `divergence_weight`, encoders that are not probabilistic.
        """
        self._check()
        official = self.mode == "official"
        found, aux = collect_signals(self.signals, inputs, train=train)
        values = jnp.stack(list(found.values()))
        values = values if official else jax.lax.stop_gradient(values)
        weights = power_weights(values, self._exponents(), inputs.present)
        equal = uniform_weights(inputs.present)
        if self.floor:
            weights = (1 - self.floor) * weights + self.floor * equal
        if self.permuted:
            weights = permuted_weights(weights, inputs.present)
        # The released code weighs in evaluation from the first step.
        if self.start and (train or not official):
            weights = jnp.where(inputs.progress < self.start, equal, weights)
        if train and self.divergence_weight:
            aux = aux + self.divergence_weight * codes_divergence(inputs, mode=self.mode)
        return FusionWeights(weights, aux, found)

    def _check(self) -> None:
        if self.mode not in MODES:
            raise FusionError(f"scheduler.mode is {self.mode!r}: choose one of {list(MODES)}")
        if len(self.exponents) != len(self.signals):
            raise FusionError(
                f"scheduler.exponents has {len(self.exponents)} values for {len(self.signals)} "
                "signals: give one for each"
            )
        if not all(0 < value < self.limit for value in self.exponents):
            raise FusionError(
                f"scheduler.exponents is {self.exponents}: each must lie in (0, {self.limit:g})"
            )

    def _exponents(self) -> Float[Array, " s"]:
        """The exponents in use."""
        if not self.learned:
            return jnp.asarray(self.exponents, jnp.float32)
        start = [math.log(value / (self.limit - value)) for value in self.exponents]
        raw = self.param("exponents", lambda _: jnp.asarray(start, jnp.float32))
        return self.limit * jax.nn.sigmoid(raw)

    @classmethod
    def example(cls) -> "UDMLScheduler":
        """A small instance for the conformance tests."""
        return cls(signals=(PredictedNoise(hidden=4), Dependence()))


def official_udml(**fields: Any) -> UDMLScheduler:
    """The released arithmetic, for comparison: its defects are in docs/methods.md, rows U1 to U19.

    Weights scale^-2 / dependence with fixed exponents; the released residual gain 1 + M w, which is
    twice M times these weights with half of equal ones mixed in; the estimator's squared error in
    standard deviations; the divergence with the level as a variance, summed over positions; weights
    that are equal in training before `start` and used in evaluation from the first step; and the
    task's gradient through the weights into the estimator. The host is concatenation of
    probabilistic encoders; the noise levels of `LegacyNoise` are the released ones.

    Args:
        fields: in place of those above, of `UDMLScheduler`; `divergence_weight` was 1e-5 on CREMA-D
            and 0 on Kinetics-Sounds.

    References:
        Released code of Wei et al., UDML, arXiv 2603.19681.
    """
    signals = (
        PredictedNoise(mode="official", hidden=256, loss_weight=0.1),
        Dependence(mode="official"),
    )
    released: dict[str, Any] = {
        "signals": signals,
        "exponents": (2.0, 1.0),
        "learned": False,
        "floor": 0.5,
        "start": 0.6,
        "divergence_weight": 1e-5,
        "mode": "official",
    }
    return UDMLScheduler(**(released | fields))


def codes_divergence(inputs: SchedulerInput, *, mode: str = "corrected") -> Float[Array, " b"]:
    """Divergence [B] of the present modalities' codes from their prior, in nats.

    "corrected": from N(0, 1 + level^2), the mean over positions. "official": from N(0, 1 + level),
    the sum over positions. The noise level is 0 where it is not known.

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
        prior = 1 + (level[:, m] if mode == "official" else level[:, m] ** 2)
        divergence = code_divergence(features.second_moment, features.log_variance, prior)
        if mode == "official" and features.tokens is not None:
            divergence = divergence * features.tokens.shape[1]
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
    if mode not in MODES:
        raise FusionError(f"mode is {mode!r}: choose one of {list(MODES)}")
    tau, kappa = exponents if mode == "corrected" else (2.0, 1.0)
    here = jnp.ones(scale.shape, bool) if present is None else present
    return masked_softmax(-tau * jnp.log(scale) - kappa * jnp.log(dependence)[None], here)


def power_weights(
    values: Float[Array, "s b m"], exponents: Float[Array, " s"], present: Array
) -> Float[Array, "b m"]:
    """Weights ~ prod_s values_s^-exponents_s over present modalities.

    Args:
        values: [S, B, M], > 0.
        exponents: [S].
        present: Bool[B, M].
    """
    logs = jnp.log(jnp.maximum(values, 1e-6))
    return masked_softmax(-jnp.einsum("s,sbm->bm", exponents, logs), present)
