"""How much does the model lean on a modality? The change of its logits without it."""

import itertools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fusion_jax.axes import any_row, masked_mean
from fusion_jax.blocks.unimodal import subset_logits, unimodal_logits
from fusion_jax.errors import FusionError
from fusion_jax.types import SchedulerInput, Signal

# 2^8 subsets of a batch through the head; beyond that sampling would be needed.
MAX_MODALITIES = 8


class Dependence(nn.Module):
    """Running share of each modality in the prediction: mean 1 before clipping, 1 is balanced.

    Measured in training on examples whose present modalities, two at least, are all clean: the L1
    change of the centred logits when a modality is dropped (leave-one-out up to two modalities,
    beyond that its Shapley average over the subsets of what is present, since leave-one-out is near
    0 for redundant modalities). Examples with everything present and clean would be too few: with
    six modalities, half of them noisy and a fifth missing, one in 240. Shares are clipped to
    [margin, M - margin] and averaged over steps. Evaluation uses the stored average.

    Attributes:
        mode: "corrected", as above, or "official": the mean absolute logit of each modality alone
            in the last batch alone, clean or not, divided by its mean over modalities.
        decay: of the running average, in [0, 1).
        margin: distance of a share from 0 and from M; not applied to a single modality.

    References:
        Wei et al., UDML, arXiv 2603.19681 (dependence by modality dropout); "official": its
        released code, which measures features that are already weighted; here they are not.
    """

    mode: str = "corrected"
    decay: float = 0.99
    margin: float = 0.2

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> Signal:
        """Measure or recall; `Signal.value` is the share [B, M], the same for every row.

        Raises:
            FusionError: for another mode, where the task has no per-example prediction, or there
                are more than 8 modalities.
        """
        if self.mode not in ("corrected", "official"):
            raise FusionError(f"mode is {self.mode!r}: choose 'corrected' or 'official'")
        num = len(inputs.modalities)
        share = self.variable("scheduler", "share", jnp.ones, (num,), jnp.float32)
        if train and not self.is_initializing():
            share.value = self._next(share.value, inputs)
        value = jnp.broadcast_to(share.value, inputs.present.shape)
        return Signal(value=value, aux_loss=jnp.zeros(value.shape[0]))

    def _next(self, share: Float[Array, " m"], inputs: SchedulerInput) -> Float[Array, " m"]:
        """The share after this batch."""
        num = len(inputs.modalities)
        if self.mode == "official":
            rows = inputs.mask & inputs.present.all(axis=-1)
            change, decay = masked_mean(unimodal_size(inputs), rows), 0.0
        else:
            # One modality has none to be compared with, unless the model has no other.
            rows = inputs.mask & (inputs.present.sum(axis=-1) >= min(num, 2))
            if inputs.noise_level is not None:
                rows &= ((inputs.noise_level == 0) | ~inputs.present).all(axis=-1)
            changes, decay = logit_change(inputs), self.decay
            means = [masked_mean(changes[:, m], rows & inputs.present[:, m]) for m in range(num)]
            change = jnp.stack(means)
            # Until every modality was met in a batch, shares among the others would be too large.
            met = jnp.stack([any_row(rows & inputs.present[:, m]) for m in range(num)])
            rows &= met.all()
        measured = num * change / jnp.maximum(change.sum(), 1e-12)
        if num > 1 and self.mode == "corrected":
            measured = jnp.clip(measured, self.margin, num - self.margin)
        step = jnp.where(any_row(rows) & (change.sum() > 0), 1 - decay, 0.0)
        return (1 - step) * share + step * measured

    @classmethod
    def example(cls) -> "Dependence":
        """A small instance for the conformance tests."""
        return cls()


def unimodal_size(inputs: SchedulerInput) -> Float[Array, "b m"]:
    """Sum over classes of the absolute logits of each modality alone: [B, M]."""
    return jnp.abs(unimodal_logits(inputs, user="dependence")).sum(axis=-1)


def logit_change(inputs: SchedulerInput) -> Float[Array, "b m"]:
    """L1 change of the centred logits of each example when each modality is dropped: [B, M], >= 0.

    Centring over classes comes first: the head's logits carry an arbitrary shift per example, which
    a plain difference would count.
    """
    num = len(inputs.modalities)
    if num > MAX_MODALITIES:
        raise FusionError(
            f"dependence over {num} modalities needs 2^{num} predictions; at most {MAX_MODALITIES}"
        )
    subsets, pairs, weights = _coalitions(num)
    logits = subset_logits(inputs, subsets, user="dependence")
    centred = logits - logits.mean(axis=-1, keepdims=True)
    # One modality at a time: all marginals at once would hold M 2^(M-1) copies of the logits.
    change = [
        sum(
            w * jnp.abs(centred[a] - centred[b]).sum(axis=-1)
            for (a, b), w in zip(pairs[m], weights[m], strict=True)
        )
        for m in range(num)
    ]
    return jnp.stack(change, axis=-1)


def _coalitions(
    num: int,
) -> tuple[Bool[np.ndarray, "s m"], list[list[tuple[int, int]]], list[list[float]]]:
    """Subsets to predict on, and each modality's (with, without) pairs of them with weights."""
    everything = frozenset(range(num))
    if num <= 2:
        chosen = [everything] + [everything - {m} for m in range(num)]
    else:
        chosen = [
            frozenset(c)
            for size in range(num + 1)
            for c in itertools.combinations(range(num), size)
        ]
    position = {subset: i for i, subset in enumerate(chosen)}
    pairs: list[list[tuple[int, int]]] = []
    weights: list[list[float]] = []
    for m in range(num):
        without = [s for s in chosen if m not in s and s | {m} in position]
        pairs.append([(position[s | {m}], position[s]) for s in without])
        # Shapley: |S|! (M - |S| - 1)! / M!; with a single pair (leave-one-out) the weight is 1.
        shapley = [
            math.factorial(len(s)) * math.factorial(num - len(s) - 1) / math.factorial(num)
            for s in without
        ]
        weights.append([1.0] if len(without) == 1 else shapley)
    table = np.array([[m in subset for m in range(num)] for subset in chosen], bool)
    return table, pairs, weights
