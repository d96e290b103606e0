"""From the folder of a run to predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fusion_jax.compiler import compiler_options
from fusion_jax.errors import FusionError
from fusion_jax.models import FusionModel
from fusion_jax.runs import load_config, restore_best, state_shapes
from fusion_jax.sources import DataSpec, check_record
from fusion_jax.types import ModelOutput

CHUNK = 256


class Prediction(NamedTuple):
    """What a predictor returns.

    Attributes:
        probabilities: [B, K], rows sum to 1.
        weights: [B, M] fusion weights in the order of sorted modality names, exactly 0 where
            absent.
    """

    probabilities: Float[np.ndarray, "b k"]
    weights: Float[np.ndarray, "b m"]


class Predictor:
    """A trained model on the device.

    Attributes:
        spec: modalities with the shape and dtype of one example, and the number of classes.
    """

    def __init__(
        self, model: FusionModel, variables: PyTree, spec: DataSpec, *, progress: float = 1.0
    ):
        """Keep the model and its variables, saved at this fraction of training."""
        self.spec = spec
        self._variables = variables

        def program(
            variables: PyTree, inputs: dict[str, Array], present: Array
        ) -> tuple[Array, Array]:
            output = model.apply(variables, inputs, present, train=False, progress=progress)
            output = cast(ModelOutput, output)
            return jax.nn.softmax(output.prediction), output.fusion.weights

        options = compiler_options(jax.default_backend())
        self._program = jax.jit(program, compiler_options=options)

    def __call__(
        self, inputs: Mapping[str, np.ndarray], present: Bool[np.ndarray, "b m"] | None = None
    ) -> Prediction:
        """Predict a batch.

        Args:
            inputs: modality name -> [B, ...] raw input; a modality that is left out is missing in
                every row.
            present: Bool[B, M] in the order of sorted names; None means what is given is present.

        Raises:
            FusionError: unknown modality, wrong shape, NaN or Inf, or a row with nothing present.
        """
        record = self._record(inputs, present)
        check_record(record, self.spec)
        rows = len(record["present"])
        parts = [
            self._chunk(record, start, min(start + CHUNK, rows)) for start in range(0, rows, CHUNK)
        ]
        if not parts:
            raise FusionError("the inputs hold no example")
        return Prediction(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _record(self, inputs: Mapping[str, np.ndarray], present: np.ndarray | None) -> dict:
        """The inputs as a record of all modalities, zeros where one is left out."""
        unknown = set(inputs) - set(self.spec.modalities)
        if unknown or not inputs:
            named = repr(sorted(unknown)[0]) if unknown else "nothing"
            raise FusionError(
                f"the inputs name {named}; the model's modalities are {list(self.spec.names)}"
            )
        rows = len(next(iter(inputs.values())))
        filled = {}
        for name in self.spec.names:
            wanted = self.spec.modalities[name]
            x = (
                np.asarray(inputs[name])
                if name in inputs
                else np.zeros((rows, *wanted.shape), wanted.dtype)
            )
            if len(x) != rows:
                raise FusionError(f"modality {name!r} has {len(x)} examples, another has {rows}")
            if not np.can_cast(x.dtype, wanted.dtype, "same_kind"):
                raise FusionError(
                    f"modality {name!r} has dtype {x.dtype}, the model takes {wanted.dtype}"
                )
            cast = x.astype(wanted.dtype, copy=False)
            if not np.issubdtype(cast.dtype, np.floating) and not np.array_equal(cast, x):
                raise FusionError(
                    f"modality {name!r} holds values out of the range of {wanted.dtype}, "
                    "which the model takes"
                )
            filled[name] = cast
        given = np.array([name in inputs for name in self.spec.names])
        here = np.broadcast_to(given, (rows, len(given)))
        if present is not None:
            if np.shape(present) != here.shape:
                raise FusionError(f"present has shape {np.shape(present)}, expected {here.shape}")
            here = here & np.asarray(present, bool)
        return {"inputs": filled, "present": here, "example_id": np.arange(rows)}

    def _chunk(self, record: dict, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Predict some rows, padded to a power of two so that few shapes are ever compiled."""
        size = 1 << (stop - start - 1).bit_length()

        def rows(x: np.ndarray) -> np.ndarray:
            return np.concatenate(
                [x[start:stop], np.repeat(x[start : start + 1], size - (stop - start), axis=0)]
            )

        result = self._program(
            self._variables, jax.tree.map(rows, record["inputs"]), rows(record["present"])
        )
        probabilities, weights = jax.device_get(result)
        return probabilities[: stop - start], weights[: stop - start]


def load(workdir: str | Path, *, seed_index: int = 0, allow: Sequence[str] = ()) -> Predictor:
    """A predictor from the best checkpoint of a run.

    Args:
        workdir: folder of the run.
        seed_index: which of the run's seeds.
        allow: top-level packages besides fusion_jax whose classes the run may name. No pickle is
            read and no code of the run is executed.

    Raises:
        FusionError: for a folder that is not a trained run.
    """
    config, spec, _ = load_config(workdir, allow=allow)
    state = restore_best(state_shapes(config, spec), workdir, seed_index)
    variables = jax.tree.map(jnp.asarray, {"params": state.params, **state.collections})
    progress = int(state.step) / config.num_steps
    return Predictor(config.model, variables, spec, progress=progress)
