"""OGM and OGM-GE: slow down the modality whose own prediction is ahead of the others'."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.blocks.true_class import discrepancy_ratio, true_class_scores
from fusion_jax.errors import FusionError
from fusion_jax.types import Batch, ModelOutput


@dataclasses.dataclass
class OGM:
    """On-the-fly gradient modulation, for classification.

    The score s of a modality is the mean probability that the head gives the true class from that
    modality alone; its ratio is rho = s over the mean s of the others. Its encoder's gradient is
    scaled by 1 - tanh(alpha rho) where rho > 1, and by 1 elsewhere: a jump at rho = 1, as
    published. A modality that is absent from the whole batch has no ratio and is not scaled.

    With `gradient_noise=1.0` it is OGM-GE: while a gradient is scaled, Gaussian noise with the
    standard deviation of each unscaled gradient array is added in the encoders.

    Attributes:
        alpha: >= 0, strength; the authors' scripts use 0.1 to 0.8.
        gradient_noise: 0 for OGM, 1 for OGM-GE.
        site: "gradient" as published, or "update": after Adam, where a scale does not cancel.
        start: first step that is modulated (parts of a step count where the batch is worked through
            in parts).
        end: first step that is not modulated any more; 0 for never.

    References:
        Peng et al., CVPR 2022, equations 8 to 11. The published score halves the head's bias
        between two modalities; here each modality alone has it whole. More than two modalities are
        not in the paper: the mean of the others is ours.
    """

    alpha: float = 0.8
    gradient_noise: float = 0.0
    site: str = "gradient"
    start: int = 0
    end: int = 0

    def init(self, num_modalities: int) -> Any:
        """Last scores (for the log) and the number of the step.

        Raises:
            FusionError: for numbers below 0, and for noise that no gradient would get.
        """
        for name in ("alpha", "gradient_noise", "start", "end"):
            if not getattr(self, name) >= 0:
                raise FusionError(
                    f"config.balancer.{name} is {getattr(self, name)}: it must be 0 or more"
                )
        if self.gradient_noise and self.site != "gradient":
            raise FusionError(
                f"config.balancer.gradient_noise is {self.gradient_noise}: it is of gradients, so"
                " use site='gradient'"
            )
        return {
            "score": jnp.zeros(num_modalities),
            "step": jnp.zeros((), jnp.int32),
        }

    def observe(
        self, state: Any, batch: Batch, output: ModelOutput
    ) -> tuple[Float[Array, " m"], Float[Array, " m"], Any]:
        """Look at a training step; see `fusion_jax.balancing.none.NoBalancer.observe`."""
        scores, available = true_class_scores(output, batch)
        ratio = discrepancy_ratio(scores, available)
        active = (state["step"] >= self.start) & ((self.end == 0) | (state["step"] < self.end))
        scale = jnp.where((ratio > 1) & active, 1 - jnp.tanh(self.alpha * ratio), 1.0)
        kept = scores.astype(state["score"].dtype)
        return jnp.ones_like(scale), scale, {"score": kept, "step": state["step"] + 1}

    @classmethod
    def example(cls) -> "OGM":
        """A small instance for the conformance tests."""
        return cls()
