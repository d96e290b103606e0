"""Running the signals of a scheduler."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.types import SchedulerInput


def collect_signals(
    signals: Iterable[Any], inputs: SchedulerInput, *, train: bool
) -> tuple[dict[str, Float[Array, "b m"]], Float[Array, " b"]]:
    """Class name of each signal -> its values [B, M], and the sum of their losses [B].

    Args:
        signals: modules, of different classes.
        inputs: what they look at.
        train: training mode.
    """
    found = {type(signal).__name__: signal(inputs, train=train) for signal in signals}
    aux = sum((signal.aux_loss for signal in found.values()), jnp.zeros(inputs.mask.shape[0]))
    return {name: signal.value for name, signal in found.items()}, aux
