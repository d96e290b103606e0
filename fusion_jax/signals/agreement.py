"""Does a modality say what the others say? Agreement of predictions, or of aligned features."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.blocks.alignment import AlignedSpace
from fusion_jax.blocks.unimodal import jensen_shannon, unimodal_logits
from fusion_jax.errors import FusionError
from fusion_jax.types import SchedulerInput, Signal

SOURCES = ("heads", "space")


class Agreement(nn.Module):
    """Mean agreement of each modality with the other present ones: 1 is the same, 0 is opposed.

    | source | agreement of a pair |
    |---|---|
    | "heads" | 1 - Jensen-Shannon divergence / log 2 of their predictions, each alone |
    | "space" | (1 + cosine) / 2 in a space that a contrastive loss aligns |

    With two modalities both have the same value: it says that one is wrong, not which. Beyond two
    the odd one out has the lowest. A modality that is alone agrees with itself: 1.

    Attributes:
        source: one of the above.
        width: of the shared space of "space".
        loss_weight: factor of the contrastive loss in `aux_loss`, "space" only.

    References:
        Bennett et al., MA-AFS, arXiv 2506.12733, abstract: cross-modal agreement. Its formula is
        not public; these two are ours.
    """

    source: str = "heads"
    width: int = 32
    loss_weight: float = 0.1

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> Signal:
        """`Signal.value` is the agreement [B, M], in [0, 1].

        Raises:
            FusionError: for another source, or "heads" where the task has no per-example
                prediction.
        """
        if self.source not in SOURCES:
            raise FusionError(f"agreement.source is {self.source!r}: choose one of {list(SOURCES)}")
        loss = jnp.zeros(inputs.mask.shape[0])
        if self.source == "heads":
            shares = jax.nn.softmax(unimodal_logits(inputs, user="agreement"))
            pairs = 1 - jensen_shannon(shares[:, :, None], shares[:, None, :])
        else:
            unit, loss = AlignedSpace(self.width, name="space")(inputs, train=train)
            pairs = (1 + jnp.einsum("bmd,bnd->bmn", unit, unit)) / 2
        value = mean_over_others(pairs, inputs)
        return Signal(value=value, aux_loss=self.loss_weight * loss)

    @classmethod
    def example(cls) -> "Agreement":
        """A small instance for the conformance tests."""
        return cls()


def mean_over_others(pairs: Float[Array, "b m m"], inputs: SchedulerInput) -> Float[Array, "b m"]:
    """Mean of each row over the other present modalities; 1 where there is none, or on absent."""
    present = inputs.present
    both = present[:, :, None] & present[:, None, :] & ~jnp.eye(present.shape[1], dtype=bool)[None]
    count = both.sum(axis=-1)
    mean = jnp.sum(jnp.where(both, pairs, 0), axis=-1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, 1)
