"""Constant scales: the control that tells whether a balancer's adaptivity matters."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.errors import FusionError
from fusion_jax.types import Batch, ModelOutput


@dataclasses.dataclass
class FixedScales:
    """Each modality's encoder learns at a fixed multiple of the learning rate.

    Set to the mean of an adaptive balancer's weights (logged as "update_scale") it is the control
    of that balancer: the same rates without the adaptivity.

    Attributes:
        scales: one for each modality, in the order of sorted names, >= 0; empty for 1 each.
        site: "update" or "gradient", see `fusion_jax.balancing.mwam.MWAM`.
    """

    scales: tuple[float, ...] = ()
    site: str = "update"

    def init(self, num_modalities: int) -> Any:
        """No state.

        Raises:
            FusionError: where the number of scales is not that of the modalities.
        """
        in_range = all(0 <= scale < math.inf for scale in self.scales)
        if self.scales and (len(self.scales) != num_modalities or not in_range):
            raise FusionError(
                f"config.balancer.scales is {self.scales}: give {num_modalities} numbers from 0 up,"
                " one for each modality in alphabetical order"
            )
        return {}

    def observe(
        self, state: Any, batch: Batch, output: ModelOutput
    ) -> tuple[Float[Array, " m"], Float[Array, " m"], Any]:
        """The fixed scales; see `fusion_jax.balancing.none.NoBalancer.observe`."""
        ones = jnp.ones(batch.present.shape[1], jnp.float32)
        scales = jnp.asarray(self.scales, jnp.float32) if self.scales else ones
        return ones, scales, state

    @classmethod
    def example(cls) -> "FixedScales":
        """A small instance for the conformance tests."""
        return cls()
