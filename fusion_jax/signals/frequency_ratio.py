"""How much does low frequency stand over high frequency in an input? Noise takes the ratio down."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from fusion_jax.errors import FusionError
from fusion_jax.frequency import frequency_ratio
from fusion_jax.types import SchedulerInput, Signal

# An input of zeros has the ratio 0: below this, one such input would outweigh all others in running
# statistics. White noise has a ratio of about 1.
SMALLEST = 1e-2


class FrequencyRatio(nn.Module):
    """Logarithm of the frequency ratio of each input, the corrupted one where it is corrupted.

    Most noise is richer in high frequencies than what it covers, so the ratio falls with it; blur
    and loss of detail raise it. Its scale differs from modality to modality: compare it with what
    is usual for the modality, as `fusion_jax.gate.Gate` does by running means.

    It needs no labels, head or training, and belongs into a gate: `UDMLScheduler`'s rule takes
    positive signals that grow with unreliability. A `FusionModel` measures its preprocessed
    inputs where its scheduler has this signal; in other loops give
    `SchedulerInput.frequency_ratio`.

    Attributes:
        mode: "robust", "low_only", "direct_sum" or "weighted_sum"; the official ratio is not finite
            everywhere.
        transform: "dct" or "fft".
        block: side of a DCT block. A modality smaller than that has no ratio.
        corner: coefficients along each axis of a band, at most half of a block.
        padding: for sizes that are no multiple of a block: "error", "edge" or "crop".

    References:
        Lu et al., MWAM, arXiv 2602.22644, section 3, where it balances training; as a signal of an
        input's quality it is ours.
    """

    mode: str = "robust"
    transform: str = "dct"
    block: int = 8
    corner: int = 2
    padding: str = "error"

    def measure_frequency_ratio(self, x: Shaped[Array, "b ..."]) -> Float[Array, " b"]:
        """Frequency ratio of the preprocessed inputs of one modality, without gradient: [B].

        Raises:
            FusionError: see `fusion_jax.frequency.frequency_ratio`; and for the official ratio.
        """
        if self.mode == "official":
            raise FusionError(
                "frequency_ratio.mode 'official' is not finite on all inputs: use 'robust'"
            )
        ratio = frequency_ratio(
            x,
            mode=self.mode,
            transform=self.transform,
            block=self.block,
            corner=self.corner,
            padding=self.padding,
        )
        return jax.lax.stop_gradient(ratio)

    @nn.compact
    def __call__(self, inputs: SchedulerInput, *, train: bool) -> Signal:
        """`Signal.value` is the logarithm of the ratio [B, M], 0 on absent modalities.

        Raises:
            FusionError: where no ratios are given.
        """
        if inputs.frequency_ratio is None:
            raise FusionError(
                "FrequencyRatio needs SchedulerInput.frequency_ratio: a FusionModel measures it, "
                "in another loop give FrequencyRatio().measure_frequency_ratio(x) of each"
            )
        ratio = jnp.where(inputs.present, inputs.frequency_ratio, 1)
        value = jnp.log(jnp.maximum(ratio, SMALLEST))
        return Signal(value=value, aux_loss=jnp.zeros(value.shape[0]))

    @classmethod
    def example(cls) -> "FrequencyRatio":
        """A small instance for the conformance tests."""
        return cls()
