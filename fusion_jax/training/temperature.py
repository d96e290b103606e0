"""Temperature scaling in training: fitted at every validation, kept in the state."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from fusion_jax.calibration import NoTemperature, fit_temperature
from fusion_jax.cells import Cell
from fusion_jax.evaluation.grid import GridProgram, Place, decide_program, evaluate_grid
from fusion_jax.models import FusionModel
from fusion_jax.types import Batch, TrainState


class TemperatureScaling:
    """Fits the temperature of a model that has `temperature_scaling`.

    It changes the state's temperature alone, which training never reads: with and without it the
    parameters come out the same to the last bit. A fit takes one more pass over the clean examples.
    Losses and calibration errors of the validation split are then of the examples that it was
    fitted on.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599.
    """

    def __init__(
        self,
        model: FusionModel,
        grid: GridProgram,
        *,
        compiled: Callable[..., Callable[..., Any]],
        place: Place,
    ):
        """Build the program that gives logits; nothing is compiled before its first use.

        Args:
            model: the model.
            grid: its validation, whose encoders are used.
            compiled: as in `fusion_jax.evaluation.grid.make_grid_program`.
            place: puts a batch on the devices.
        """
        self._place = place
        logits = decide_program(model.clone(temperature_scaling=False), _Logits())
        self._program = grid._replace(decide=compiled(logits))

    def fit(
        self, state: TrainState, batches: Iterable[Batch], *, progress: float
    ) -> tuple[TrainState, str | None]:
        """The state with the temperature that is best for these examples, clean.

        Args:
            state: its parameters give the logits.
            batches: examples that are neither trained nor tested on: the validation split.
            progress: training fraction.

        Returns:
            The state; and why its temperature is 1, where none is best (every prediction is right,
            or the logits tell nothing yet).
        """
        [clean] = evaluate_grid(
            self._program,
            {"params": state.params, **state.collections},
            batches,
            cells=[Cell()],
            key=jax.random.key(0),
            progress=progress,
            place=self._place,
        )
        why = None
        try:
            temperature = fit_temperature(clean.records["logits"], clean.records["target"])
        except NoTemperature as error:
            temperature, why = 1.0, str(error)
        before = state.collections["calibration"]["temperature"]
        after = jax.make_array_from_callback(
            before.shape, before.sharding, lambda _: np.asarray(temperature, before.dtype)
        )
        calibration = state.collections["calibration"] | {"temperature": after}
        collections = state.collections | {"calibration": calibration}
        return dataclasses.replace(state, collections=collections), why


@dataclasses.dataclass
class _Logits:
    """A task whose records are the logits themselves."""

    def records(self, logits: Float[Array, "b k"], target: Int[Array, " b"]) -> dict[str, Any]:
        return {"logits": logits, "target": target}
