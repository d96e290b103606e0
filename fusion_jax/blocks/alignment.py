"""A space that modalities share, trained to put what belongs together next to each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.axes import all_rows, row_ids
from fusion_jax.precision import at_least_float32
from fusion_jax.types import SchedulerInput


class AlignedSpace(nn.Module):
    """Unit vectors of every modality's stopped pooled features, in one space.

    Cosine and shared anchors mean nothing before spaces are aligned; the loss aligns them.

    Attributes:
        width: of the space.

    References:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, arXiv
        1807.03748 (InfoNCE), between modalities as in Radford et al., CLIP, arXiv 2103.00020.
    """

    width: int = 32

    @nn.compact
    def __call__(
        self, inputs: SchedulerInput, *, train: bool
    ) -> tuple[Float[Array, "b m d"], Float[Array, " b"]]:
        """The vectors, and in training the loss of each row, averaged over its present pairs.

        In the loss the other rows of the global batch that have the modality are the negatives.
        Padding rows have no loss and are no negatives.
        """
        vectors = []
        for name in inputs.modalities:
            x = at_least_float32(jax.lax.stop_gradient(inputs.features[name].pooled))
            x = nn.Dense(self.width, use_bias=False, name=f"project_{name}")(x)
            vectors.append(unit_vectors(x))
        unit = jnp.stack(vectors, axis=1)
        scale = jnp.exp(self.param("log_scale", lambda _: jnp.asarray(jnp.log(10.0), jnp.float32)))
        if not train or self.is_initializing():
            return unit, jnp.zeros(unit.shape[0])
        return unit, info_nce(unit, inputs, jnp.minimum(scale, 100.0))


def unit_vectors(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Vectors over their length; 0 stays 0, with a finite gradient."""
    return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def info_nce(
    unit: Float[Array, "b m d"], inputs: SchedulerInput, scale: Float[Array, ""]
) -> Float[Array, " b"]:
    """Mean over the ordered pairs of present modalities of a row's contrastive loss, in nats."""
    here = inputs.present & inputs.mask[:, None]
    others, valid = all_rows((unit, here))
    logits = scale * jnp.einsum("imd,jnd->imnj", unit, others)
    rows = row_ids(unit.shape[0]).astype(jnp.int32)
    own = rows[:, None] == jnp.arange(others.shape[0])[None]
    own = own[:, None, None]
    # A negative must have the modality; one's own row is the positive.
    usable = valid.T[None, None] | own
    logits = jnp.where(usable, logits, jnp.finfo(logits.dtype).min)
    positive = scale * jnp.einsum("imd,ind->imn", unit, unit)
    loss = jax.nn.logsumexp(logits, axis=-1) - positive
    num = unit.shape[1]
    pairs = here[:, :, None] & here[:, None, :] & ~jnp.eye(num, dtype=bool)[None]
    return jnp.sum(jnp.where(pairs, loss, 0), axis=(1, 2)) / jnp.maximum(pairs.sum(axis=(1, 2)), 1)
