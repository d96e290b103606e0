"""Running the signals of a scheduler."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.errors import FusionError
from fusion_jax.types import SchedulerInput


def collect_signals(
    signals: Sequence[Any], inputs: SchedulerInput, *, train: bool
) -> tuple[dict[str, Float[Array, "b m"]], Float[Array, " b"]]:
    """Class name of each signal -> its values [B, M], and the sum of their losses [B].

    Args:
        signals: modules, of different classes.
        inputs: what they look at.
        train: training mode.

    Raises:
        FusionError: for two signals of one class.
    """
    names = [type(signal).__name__ for signal in signals]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise FusionError(
            f"scheduler.signals has {repeated} more than once: signals go by their class"
        )
    found = {name: signal(inputs, train=train) for name, signal in zip(names, signals, strict=True)}
    aux = sum((signal.aux_loss for signal in found.values()), jnp.zeros(inputs.mask.shape[0]))
    return {name: signal.value for name, signal in found.items()}, aux
