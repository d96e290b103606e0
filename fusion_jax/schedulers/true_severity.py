"""A gate that is told the true noise: what a learned gate gains where noise is known exactly."""

import flax.linen as nn
import jax.numpy as jnp

from fusion_jax.blocks.collect_signals import collect_signals
from fusion_jax.blocks.presence import masked_softmax
from fusion_jax.errors import FusionError
from fusion_jax.types import FusionWeights, SchedulerInput


class TrueSeverityScheduler(nn.Module):
    """w = softmax over present modalities of a learned score of the injected noise levels.

    A control of experiments: no model in use knows these levels, so it trains and is evaluated on a
    grid, and cannot predict. It learns from the severities of training; beyond them, and for other
    kinds of noise, whose levels are on other scales, it is no upper bound. Per modality a small
    network scores log(1 + level) of its own and the mean of it over the other present modalities.

    Attributes:
        hidden: width of the hidden layer.
        signals: computed for logs and reports and trained by their own losses.
        reads_noise_level: evaluation gives the true levels to what says so.
    """

    hidden: int = 32
    signals: tuple[nn.Module, ...] = ()
    reads_noise_level = True

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> FusionWeights:
        """Weights [B, M].

        Raises:
            FusionError: where the noise levels are not known.
        """
        found, aux = collect_signals(self.signals, inputs, train=train)
        level = inputs.noise_level
        if level is None:
            if not self.is_initializing():
                raise FusionError(
                    "TrueSeverityScheduler needs the true noise levels, which a prediction does "
                    "not know: it is a control for training and grid evaluation"
                )
            level = jnp.zeros(inputs.present.shape)
        own = jnp.where(inputs.present, jnp.log1p(level), 0)
        others = inputs.present.sum(axis=-1, keepdims=True) - inputs.present
        rest = (own.sum(axis=-1, keepdims=True) - own) / jnp.maximum(others, 1)
        scores = []
        for m, name in enumerate(inputs.modalities):
            x = jnp.stack([own[:, m], rest[:, m]], axis=-1)
            x = nn.gelu(nn.Dense(self.hidden, name=f"hidden_{name}")(x))
            # Zero-initialised: weighting starts static.
            score = nn.Dense(1, kernel_init=nn.initializers.zeros, name=f"score_{name}")(x)
            scores.append(score[:, 0])
        weights = masked_softmax(jnp.stack(scores, axis=-1), inputs.present)
        return FusionWeights(weights, aux, found)

    @classmethod
    def example(cls) -> "TrueSeverityScheduler":
        """A small instance for the conformance tests."""
        return cls(hidden=4)
