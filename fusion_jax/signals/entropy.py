"""How undecided is a modality? The entropy of a distribution that it alone gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.blocks.alignment import AlignedSpace, unit_vectors
from fusion_jax.blocks.unimodal import entropy_share, unimodal_logits
from fusion_jax.errors import FusionError
from fusion_jax.precision import at_least_float32
from fusion_jax.types import SchedulerInput, Signal

SOURCES = ("heads", "anchors", "attention")
# Cosines lie in [-1, 1]: without a factor no distribution over anchors would be far from uniform.
ANCHOR_SCALE = 10.0


class Entropy(nn.Module):
    """Entropy of each modality over its largest value: 0 is decided, 1 knows nothing.

    | source | distribution | it needs |
    |---|---|---|
    | "heads" | the model's prediction from that modality alone | a head trained on each alone |
    | "anchors" | over learned anchors in a space that the modalities share | several modalities |
    | "attention" | of a learned pooling over the modality's tokens | tokens; 0 without |

    Every distribution has a learned temperature per modality. Features enter without gradient;
    temperatures, anchors and queries learn from whatever loss the scheduler's weights get, and the
    space of the anchors from a contrastive loss of its own. A modality that is sure and wrong has
    low entropy: that is what agreement and a calibration loss are for.

    Attributes:
        source: one of the above.
        num_anchors: of "anchors".
        width: of the shared space of "anchors".
        loss_weight: factor of the contrastive loss in `aux_loss`, "anchors" only.

    References:
        Bennett et al., MA-AFS, arXiv 2506.12733, abstract: visual and textual entropy. Of which
        distribution is not said there; these three are ours.
    """

    source: str = "heads"
    num_anchors: int = 64
    width: int = 32
    loss_weight: float = 0.1

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> Signal:
        """`Signal.value` is the share of the largest entropy [B, M], in [0, 1].

        Raises:
            FusionError: for another source, or "heads" where the task has no per-example
                prediction.
        """
        if self.source not in SOURCES:
            raise FusionError(f"entropy.source is {self.source!r}: choose one of {list(SOURCES)}")
        names = inputs.modalities
        loss = jnp.zeros(inputs.mask.shape[0])
        valid: list[Bool[Array, "b n"] | None] = [None] * len(names)
        if self.source == "heads":
            logits = list(jnp.moveaxis(unimodal_logits(inputs, user="entropy"), 1, 0))
        elif self.source == "anchors":
            unit, loss = AlignedSpace(self.width, name="space")(inputs, train=train)
            start = nn.initializers.normal(1.0)
            anchors = unit_vectors(self.param("anchors", start, (self.num_anchors, self.width)))
            logits = list(jnp.moveaxis(ANCHOR_SCALE * unit @ anchors.T, 1, 0))
        else:
            logits, valid = map(
                list, zip(*(self._attention(inputs, n) for n in names), strict=True)
            )
        values = []
        for name, part, where in zip(names, logits, valid, strict=True):
            log_temperature = self.param(f"log_temperature_{name}", nn.initializers.zeros, ())
            values.append(entropy_share(part / jnp.exp(log_temperature), where))
        value = jnp.where(inputs.present, jnp.stack(values, axis=-1), 0)
        return Signal(value=value, aux_loss=self.loss_weight * loss)

    def _attention(
        self, inputs: SchedulerInput, name: str
    ) -> tuple[Float[Array, "b n"], Bool[Array, "b n"]]:
        """Logits over the tokens of a modality, and which of them count."""
        features = inputs.features[name]
        tokens = features.pooled[:, None] if features.tokens is None else features.tokens
        tokens = at_least_float32(jax.lax.stop_gradient(tokens))
        query = self.param(f"query_{name}", nn.initializers.normal(1.0), (tokens.shape[-1],))
        valid = features.token_mask if features.tokens is not None else None
        valid = jnp.ones(tokens.shape[:2], bool) if valid is None else valid
        return tokens @ query / jnp.sqrt(1.0 * tokens.shape[-1]), valid

    @classmethod
    def example(cls) -> "Entropy":
        """A small instance for the conformance tests."""
        return cls()
