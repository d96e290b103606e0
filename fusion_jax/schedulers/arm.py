"""ARM's weighting: more weight to the modality that contributes less information."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusion_jax.axes import any_row, masked_mean
from fusion_jax.blocks.collect_signals import collect_signals
from fusion_jax.blocks.presence import uniform_weights
from fusion_jax.blocks.unimodal import subset_logits
from fusion_jax.errors import FusionError
from fusion_jax.types import FusionWeights, SchedulerInput

# A value of 0 would give its modality all the weight that `limit` allows on a rounding error.
SMALLEST_VALUE = 1e-3


class ARMScheduler(nn.Module):
    """w_m ~ the mean value of the other modalities over that of m, within [1 / limit, limit].

    The value of a modality is a running average over training batches, the same for every example:

        c_m = P nmi_m + P_rest max(nmi_m - ncmi_m, 0)

    P and P_rest are the mean confidences of the prediction from everything and from everything
    but m; nmi_m is the information that m alone gives about the class, ncmi_m what it adds to
    the rest, both over the entropy of the mean prediction. So a modality counts by what it
    tells and by what of that the others tell too, and one that counts little is reinforced: it
    corrects what training learned unevenly and does not look at the quality of an input.

    Attributes:
        decay: of the running average, in [0, 1).
        limit: of the ratio of values, >= 1.
        signals: computed for logs and reports and trained by their own losses.

    References:
        Gao et al., Asymmetric Reinforcing against Multi-modal Representation Bias, AAAI 2025, arXiv
        2501.01240. Its code weighs by the true class, at prediction time too, and takes information
        from histograms of all feature values; here both are of the model's predictions, no label is
        used, and the ratio is bounded. Its min-max loss and re-sampling are not here.
    """

    decay: float = 0.99
    limit: float = 3.0
    signals: tuple[nn.Module, ...] = ()

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> FusionWeights:
        """Weights [B, M].

        Raises:
            FusionError: where the task has no per-example prediction, and for a limit below 1.
        """
        if self.limit < 1:
            raise FusionError(f"scheduler.limit is {self.limit}: it must be at least 1")
        found, aux = collect_signals(self.signals, inputs, train=train)
        num = len(inputs.modalities)
        kept = self.variable("scheduler", "value", jnp.ones, (num,), jnp.float32)
        if train and num > 1 and not self.is_initializing():
            rows = inputs.mask & inputs.present.all(axis=-1)
            step = jnp.where(any_row(rows), 1 - self.decay, 0)
            kept.value = (1 - step) * kept.value + step * modality_values(inputs)
        present = inputs.present
        value = jnp.where(present, kept.value[None], 0)
        others = jnp.maximum(present.sum(axis=-1, keepdims=True) - 1, 1)
        ratio = (value.sum(axis=-1, keepdims=True) - value) / others / kept.value[None]
        share = jnp.where(present, jnp.clip(ratio, 1 / self.limit, self.limit), 0)
        total = share.sum(axis=-1, keepdims=True)
        weights = jnp.where(total > 0, share / jnp.where(total > 0, total, 1), 0)
        several = present.sum(axis=-1, keepdims=True) > 1
        return FusionWeights(jnp.where(several, weights, uniform_weights(present)), aux, found)

    @classmethod
    def example(cls) -> "ARMScheduler":
        """A small instance for the conformance tests."""
        return cls()


def modality_values(inputs: SchedulerInput) -> Float[Array, " m"]:
    """C [M] > 0 of the complete rows of the global batch; see `ARMScheduler`.

    Raises:
        FusionError: where the task has no per-example prediction.
    """
    num = len(inputs.modalities)
    rows = inputs.mask & inputs.present.all(axis=-1)
    own = np.eye(num, dtype=bool)
    subsets = np.concatenate([np.ones((1, num), bool), own, ~own])
    logits = subset_logits(inputs, subsets, user="ARM")
    shares = jnp.swapaxes(jax.nn.softmax(logits), 0, 1)  # [B, subset, K]
    confidence = masked_mean(shares.max(axis=-1), rows)
    # Of the class as the subset sees it over the batch, and what is left of it in each example.
    whole = _entropy(masked_mean(shares, rows))
    left = masked_mean(_entropy(shares), rows)
    every, alone, rest = 0, slice(1, num + 1), slice(num + 1, None)
    # Over one entropy: a modality that always says the same is sure, and tells nothing.
    scale = jnp.maximum(whole[every], SMALLEST_VALUE)
    told = (whole[alone] - left[alone]) / scale
    added = (left[rest] - left[every]) / scale
    shared = jnp.maximum(told - jnp.maximum(added, 0), 0)
    return jnp.maximum(confidence[every] * told + confidence[rest] * shared, SMALLEST_VALUE)


def _entropy(shares: Float[Array, "... k"]) -> Float[Array, "..."]:
    """Entropy of distributions, in nats."""
    return -jnp.sum(shares * jnp.log(jnp.maximum(shares, jnp.finfo(shares.dtype).tiny)), axis=-1)
