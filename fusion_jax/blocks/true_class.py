"""How sure is each modality alone of the true class? What OGM and OPM go by."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.axes import any_row, masked_mean
from fusion_jax.types import Batch, ModelOutput

EPSILON = 1e-6


def true_class_scores(
    output: ModelOutput, batch: Batch
) -> tuple[Float[Array, " m"], Bool[Array, " m"]]:
    """Mean probability of the true class from each modality alone, over the global batch.

    Args:
        output: with unimodal logits [B, M, K].
        batch: gives targets Int[B] and the padding mask.

    Returns:
        Scores [M] in [0, 1], and Bool[M], False where no row of the batch has the modality.

    References:
        Peng et al., OGM, CVPR 2022, equation 8. There the head's bias is halved between two
        modalities; here each modality alone has it whole.
    """
    here = output.present & batch.mask[:, None]
    true = jax.nn.one_hot(batch.target, output.unimodal.shape[-1])
    probability = jnp.sum(jax.nn.softmax(output.unimodal) * true[:, None, :], axis=-1)
    each = range(probability.shape[1])
    scores = jnp.stack([masked_mean(probability[:, m], here[:, m]) for m in each])
    return scores, jnp.stack([any_row(here[:, m]) for m in each])


def discrepancy_ratio(
    scores: Float[Array, " m"], available: Bool[Array, " m"]
) -> Float[Array, " m"]:
    """Each modality's score over the mean score of the others, 1 where there is nothing to compare.

    Args:
        scores: [M], >= 0.
        available: Bool[M], the others do not count.

    References:
        Peng et al., OGM, CVPR 2022, equation 9, for two modalities.
    """
    counted = jnp.where(available, scores, 0)
    others = jnp.maximum(available.sum() - 1, 1)
    mean = (counted.sum() - counted) / others
    comparable = available & (available.sum() > 1)
    return jnp.where(comparable, scores / (mean + EPSILON), 1.0)
