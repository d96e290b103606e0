"""OPM: drop the modality whose own prediction is ahead from the forward pass, now and then."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fusion_jax.blocks.true_class import discrepancy_ratio, true_class_scores
from fusion_jax.errors import FusionError
from fusion_jax.rng import stream
from fusion_jax.types import Batch, ModelOutput


@dataclasses.dataclass
class OPM:
    """On-the-fly prediction modulation, for classification.

    With rho the discrepancy ratio of OGM, a modality with rho > 1 is dropped from an example with
    probability

        q = base (1 + strength tanh(rho - 1)), at most 1

    and the others are not dropped. Dropping happens in a share `probability` of the training steps,
    on top of the recipe's modality dropout, and acts on all losses: an example without the dominant
    modality is learned from the rest. The last present modality of an example is always kept.

    Attributes:
        base: q_base, in [0, 1].
        strength: lambda, >= 0.
        probability: of a step being modulated, in [0, 1].
        start: first step that is modulated (parts of a step count where the batch is worked through
            in parts).
        end: first step that is not modulated any more; 0 for never.

    References:
        Wei et al., On-the-fly Modulation for Balanced Multimodal Learning, TPAMI 2024, arXiv
        2410.11582. There features are set to 0 and the rest scaled up, rho is that of the same
        batch, and examples that lose everything are left out; here the modality is absent, as the
        model knows it from modality dropout, and rho is that of the
        batch before (of the part before, where a batch is worked through in parts).
    """

    base: float = 0.5
    strength: float = 0.5
    probability: float = 0.7
    start: int = 0
    end: int = 0

    def init(self, num_modalities: int) -> Any:
        """The probabilities q of the next step, the last scores (for the log), and its number.

        Raises:
            FusionError: for numbers out of range.
        """
        for name, largest in (("base", 1), ("strength", None), ("probability", 1)):
            value = getattr(self, name)
            if value < 0 or (largest is not None and value > largest):
                limit = "0 or more" if largest is None else f"in [0, {largest}]"
                raise FusionError(f"config.balancer.{name} is {value}: it must be {limit}")
        if self.start < 0 or self.end < 0:
            raise FusionError("config.balancer.start and .end must be 0 or more")
        return {
            "rate": jnp.zeros(num_modalities),
            "score": jnp.zeros(num_modalities),
            "step": jnp.zeros((), jnp.int32),
        }

    def drop_rates(self, state: Any, key: Key[Array, ""]) -> Float[Array, " m"]:
        """Probability [M] of dropping each modality from each example of this step."""
        modulated = jax.random.bernoulli(stream(key, "modulated"), self.probability)
        return jnp.where(modulated, state["rate"], 0)

    def observe(
        self, state: Any, batch: Batch, output: ModelOutput
    ) -> tuple[Float[Array, " m"], Float[Array, " m"], Any]:
        """Look at a training step; see `fusion_jax.balancing.none.NoBalancer.observe`."""
        scores, available = true_class_scores(output, batch)
        ratio = discrepancy_ratio(scores, available)
        after = state["step"] + 1  # The rates are for the next step.
        active = (after >= self.start) & ((self.end == 0) | (after < self.end))
        rate = jnp.minimum(self.base * (1 + self.strength * jnp.tanh(ratio - 1)), 1)
        ones = jnp.ones_like(scores)
        return (
            ones,
            ones,
            {
                "rate": jnp.where((ratio > 1) & active, rate, 0).astype(state["rate"].dtype),
                "score": scores.astype(state["score"].dtype),
                "step": after,
            },
        )

    @classmethod
    def example(cls) -> "OPM":
        """A small instance for the conformance tests."""
        return cls()
