"""A learned gate from reliability signals to fusion weights."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.blocks.collect_signals import collect_signals
from fusion_jax.blocks.presence import masked_softmax, uniform_weights
from fusion_jax.blocks.running_norm import RunningNorm
from fusion_jax.types import FusionWeights, SchedulerInput


class Gate(nn.Module):
    """Fusion weights by one small network that scores every modality from its signals.

    score_m = network(signals of m, their mean over the present modalities, embedding of m), the
    same network for all modalities; weights = softmax over the present ones of score / temperature.
    The last layer starts at 0, so weighting starts static. Signals enter as sign(s) log(1 + |s|),
    normalised by running means and variances of each modality.

    Attributes:
        hidden: widths of the network's hidden layers.
        embedding: width of the modality embedding.
        decay: of the running statistics, in [0, 1).
        floor: share of equal weights that is mixed in at the start of training, falling linearly to
            0 at its end, so that no modality is starved of gradient before it has learned.
        warmup: fraction of training with equal weights, in [0, 1).
        ramp: fraction of training after that over which the gate's weights come in, in [0, 1].

    References:
        Bennett et al., MA-AFS, arXiv 2506.12733, abstract: a lightweight neural scheduler of
        per-instance weights. Its network is not public; this one is ours.
    """

    hidden: tuple[int, ...] = (32, 32)
    embedding: int = 8
    decay: float = 0.99
    floor: float = 0.05
    warmup: float = 0.1
    ramp: float = 0.1

    @nn.compact
    def __call__(
        self,
        signals: Mapping[str, Float[Array, "b m"]],
        inputs: SchedulerInput,
        *,
        train: bool,
    ) -> Float[Array, "b m"]:
        """Weights [B, M] from the signals' values, each [B, M]; gradient to both."""
        values = jnp.stack(list(signals.values()), axis=-1)  # [B, M, S]
        # Noise beyond training is many times stronger: on a scale of logarithms, a few steps away.
        values = jnp.sign(values) * jnp.log1p(jnp.abs(values))
        values = self._normalised(values, inputs, train=train)
        values = jnp.where(inputs.present[:, :, None], values, 0)
        count = jnp.maximum(jnp.sum(inputs.present, axis=-1), 1)[:, None, None]
        context = jnp.sum(values, axis=1, keepdims=True) / count
        embeddings = [
            self.param(f"embedding_{name}", nn.initializers.normal(0.1), (self.embedding,))
            for name in inputs.modalities
        ]
        shape = values.shape[:2]
        x = jnp.concatenate(
            [
                values,
                jnp.broadcast_to(context, values.shape),
                jnp.broadcast_to(jnp.stack(embeddings)[None], (*shape, self.embedding)),
            ],
            axis=-1,
        )
        for index, width in enumerate(self.hidden):
            x = nn.gelu(nn.Dense(width, name=f"hidden_{index}")(x))
        score = nn.Dense(1, kernel_init=nn.initializers.zeros, name="score")(x)[..., 0]
        # 0.2 at least: sharper than that, one modality would take all.
        raw = self.param("temperature", lambda _: jnp.log(jnp.expm1(jnp.float32(0.8))))
        weights = masked_softmax(score / (0.2 + jax.nn.softplus(raw)), inputs.present)
        return self._scheduled(weights, inputs, train=train)

    def _normalised(
        self, values: Float[Array, "b m s"], inputs: SchedulerInput, *, train: bool
    ) -> Float[Array, "b m s"]:
        """The values of each modality by its running means and deviations."""
        made = [
            RunningNorm(self.decay, name=f"norm_{name}")(
                values[:, m], inputs.mask & inputs.present[:, m], train=train
            )
            for m, name in enumerate(inputs.modalities)
        ]
        return jnp.stack(made, axis=1)

    def _scheduled(
        self, weights: Float[Array, "b m"], inputs: SchedulerInput, *, train: bool
    ) -> Float[Array, "b m"]:
        """Equal weights at first, then a growing share of the gate's; in training, the floor."""
        equal = uniform_weights(inputs.present)
        progress = jnp.asarray(inputs.progress, jnp.float32)
        if train and self.floor:
            floor = self.floor * (1 - progress)
            weights = (1 - floor) * weights + floor * equal
        share = jnp.clip((progress - self.warmup) / max(self.ramp, 1e-6), 0, 1)
        return share * weights + (1 - share) * equal


class GatedScheduler(nn.Module):
    """A scheduler that is a gate over signals; subclasses say over which.

    Attributes:
        signals: what the gate reads.
        gate: the network.
    """

    signals: tuple[nn.Module, ...] = ()
    gate: Gate = dataclasses.field(default_factory=Gate)

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> FusionWeights:
        """Weights [B, M], with the signals' values and losses."""
        found, aux = collect_signals(self.signals, inputs, train=train)
        return FusionWeights(self.gate(found, inputs, train=train), aux, found)
