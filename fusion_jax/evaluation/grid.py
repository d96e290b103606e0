"""The robustness grid: the same examples under every condition, with noise keyed by example.

Modalities are encoded apart and fused after, so the grid is worked through in two steps: each
modality once under each of its conditions, then every combination of these that the cells ask for.
Combinations cost what fusing costs, not what encoding does. Each batch goes to the device once and
meets all cells there. Per-example records come back, so that nothing is a mean of batch means and
paired intervals can be computed afterwards.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fusion_jax.corruptions.batch import corrupt_batch
from fusion_jax.errors import FusionError
from fusion_jax.models import FusionModel
from fusion_jax.rng import example_keys, stream
from fusion_jax.types import Batch, Features, ModelOutput

Place = Callable[[Batch], Batch]
# Evaluation corruptions of each modality, in an order that conditions refer to.
Corruptions = Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Condition:
    """What is done to one modality.

    Attributes:
        corruption: class name of one of the modality's corruptions, "" for none.
        severity: in [0, 1].
        drawn: each example has a severity of its own, uniform in [0, severity].
    """

    corruption: str = ""
    severity: float = 0.0
    drawn: bool = False


CLEAN = Condition()


@dataclasses.dataclass(frozen=True)
class Cell:
    """One condition of the grid.

    Attributes:
        noise: modality and what is done to it, for those that are not clean.
        missing: the modalities taken away.
    """

    noise: tuple[tuple[str, Condition], ...] = ()
    missing: tuple[str, ...] = ()

    def condition(self, modality: str) -> Condition:
        """What is done to a modality."""
        return dict(self.noise).get(modality, CLEAN)

    @property
    def several(self) -> bool:
        """Whether more than one modality is corrupted, or examples differ in severity."""
        return len(self.noise) > 1 or any(condition.drawn for _, condition in self.noise)


@dataclasses.dataclass(frozen=True)
class CellRecords:
    """What one cell gave, for each example in the order of the source.

    Attributes:
        records: name -> [N], the task's per-example records.
        weights: [N, M] fusion weights.
        noise_level: [N, M] injected noise in units of the corruption's reference, 0 where clean or
            absent.
        present: Bool[N, M], what was given to the model.
        signals: name -> [N, M], of no meaning where absent.
    """

    records: dict[str, np.ndarray]
    weights: np.ndarray
    noise_level: np.ndarray
    present: np.ndarray
    signals: dict[str, np.ndarray]


class GridProgram(NamedTuple):
    """The compiled parts of the grid.

    Attributes:
        encode: modality -> program (variables, batch, number of the corruption, severity, drawn,
            key) -> (Features, noise level [B]); number 0 is no corruption.
        decide: program (variables, modality -> what encode gave, keep Bool[M], progress, batch) ->
            records.
        corruptions: modality -> class names, at number - 1.
    """

    encode: Mapping[str, Callable[..., Any]]
    decide: Callable[..., Any]
    corruptions: Mapping[str, Sequence[str]]


def robustness_cells(
    modalities: Sequence[str],
    *,
    corrupted: Mapping[str, str],
    severities: Sequence[float],
) -> list[Cell]:
    """The clean cell, every corruptible modality at every severity, and every missing pattern.

    Args:
        modalities: all names, in order.
        corrupted: modality -> class name of its corruption.
        severities: in (0, 1].

    Returns:
        Cells, the clean one first. A missing pattern leaves at least one modality.
    """
    cells = [Cell()]
    cells += single_cells(corrupted, severities)
    patterns = range(1, 2 ** len(modalities) - 1)
    missing = [
        tuple(name for m, name in enumerate(modalities) if pattern >> m & 1) for pattern in patterns
    ]
    return cells + [
        Cell(missing=names) for names in sorted(missing, key=lambda names: (len(names), names))
    ]


def single_cells(corrupted: Mapping[str, str], severities: Sequence[float]) -> list[Cell]:
    """Each modality alone corrupted, at every severity."""
    return [
        Cell(((name, Condition(corrupted[name], severity)),))
        for name in sorted(corrupted)
        for severity in severities
    ]


def joint_cells(
    corrupted: Mapping[str, str], *, severities: Sequence[float], mixed: Sequence[float]
) -> list[Cell]:
    """All modalities corrupted at once.

    Args:
        corrupted: modality -> class name of its corruption; with fewer than two there are no cells.
        severities: two modalities meet at every pair of these; more than two, where the pairs
            would be powers, all at the same severity.
        mixed: upper ends of severities that differ from example to example and modality to
            modality, one cell each.
    """
    names = sorted(corrupted)
    if len(names) < 2:
        return []
    together = (
        itertools.product(severities, repeat=2)
        if len(names) == 2
        else [(severity,) * len(names) for severity in severities]
    )
    cells = [
        Cell(tuple((n, Condition(corrupted[n], s)) for n, s in zip(names, each, strict=True)))
        for each in together
    ]
    return cells + [
        Cell(tuple((name, Condition(corrupted[name], limit, drawn=True)) for name in names))
        for limit in mixed
    ]


def make_grid_program(
    model: FusionModel,
    task: Any,
    corruptions: Corruptions,
    *,
    compiled: Callable[..., Callable[..., Any]],
) -> GridProgram:
    """The programs of a model's grid.

    Examples with nothing left present are predicted from nothing (uniform logits in effect); they
    count, since a model in use would have to answer them too.

    Args:
        model: the model.
        task: gives the records of a prediction.
        corruptions: modality -> its evaluation corruptions, of different classes.
        compiled: (function, keep_rows=) -> compiled function, such as
            `fusion_jax.training.parallel.DataParallel().evaluation`.

    Raises:
        FusionError: for two corruptions of one class on one modality.
    """
    names = {}
    for modality in model.modalities:
        names[modality] = [type(each).__name__ for each in corruptions.get(modality, ())]
        if len(set(names[modality])) < len(names[modality]):
            raise FusionError(
                f"modality {modality!r} has the corruptions {names[modality]}: their classes must "
                "differ, since tables are named after them"
            )
    return GridProgram(
        encode={
            modality: compiled(
                encode_program(model, modality, corruptions.get(modality, ())), keep_rows=True
            )
            for modality in model.modalities
        },
        decide=compiled(decide_program(model, task)),
        corruptions=names,
    )


def encode_program(
    model: FusionModel, modality: str, corruptions: Sequence[Any]
) -> Callable[..., tuple[Features, Array]]:
    """The function that `GridProgram.encode` describes, not compiled."""
    m = model.modalities.index(modality)

    def corrupted(corruption: Any) -> Callable[..., tuple[Array, Array]]:
        def function(
            x: Array, severities: Array, example_id: Array, key: Array, donor: Array | None
        ) -> tuple[Array, Array]:
            keys = example_keys(stream(key, type(corruption).__name__, modality), example_id)
            noisy = corrupt_batch(corruption, x, keys=keys, severity=severities, donor=donor)
            return noisy, corruption.noise_level(severities)

        return function

    def encode(
        variables: PyTree, batch: Batch, number: Array, severity: Array, drawn: Array, key: Array
    ) -> tuple[Features, Float[Array, " b"]]:
        share = jax.vmap(jax.random.uniform)(
            example_keys(stream(key, "severity", modality), batch.example_id)
        )
        severities = severity * jnp.where(drawn, share, 1)
        x = batch.inputs[modality]
        # A switch, outside any vmap, computes the chosen corruption only.
        x, level = jax.lax.switch(
            number,
            [_untouched, *map(corrupted, corruptions)],
            x,
            severities,
            batch.example_id,
            key,
            (batch.donors or {}).get(modality),
        )
        features = model.apply(
            variables,
            modality,
            x,
            batch.present[:, m],
            batch.mask,
            train=False,
            method="encode_modality",
        )
        return cast(Features, features), level

    return encode


def _untouched(
    x: Array, severities: Array, example_id: Array, key: Array, donor: Array | None
) -> tuple[Array, Float[Array, " b"]]:
    """A clean input and its noise levels."""
    del example_id, key, donor
    return x, jnp.zeros(severities.shape)


def decide_program(model: FusionModel, task: Any) -> Callable[..., dict[str, Array]]:
    """The function that `GridProgram.decide` describes, not compiled."""

    def decide(
        variables: PyTree,
        encoded: dict[str, tuple[Features, Float[Array, " b"]]],
        keep: Bool[Array, " m"],
        progress: Float[Array, ""],
        batch: Batch,
    ) -> dict[str, Array]:
        features = {name: part[0] for name, part in encoded.items()}
        present = batch.present & keep[None, :]
        level = jnp.stack([encoded[name][1] for name in model.modalities], axis=-1)
        noise_level = jnp.where(present, level, 0)
        # Only a control that says so may see what no model in use can know.
        known = getattr(model.scheduler, "reads_noise_level", False)
        output = model.apply(
            variables,
            features,
            present,
            batch.mask,
            train=False,
            progress=progress,
            noise_level=noise_level if known else None,
            method="decide",
        )
        output = cast(ModelOutput, output)
        return {
            **task.records(output.prediction, batch.target),
            "mask": batch.mask,
            "weights": output.fusion.weights,
            "noise_level": noise_level,
            "present": present,
            **{f"signal/{name}": value for name, value in output.fusion.signals.items()},
        }

    return decide


def evaluate_grid(
    program: GridProgram,
    variables: PyTree,
    batches: Iterable[Batch],
    *,
    cells: Sequence[Cell],
    key: Array,
    progress: float = 1.0,
    place: Place = jax.device_put,
) -> list[CellRecords]:
    """Run every cell on every batch.

    Args:
        program: from `make_grid_program`.
        variables: {"params": ..., other collections}.
        batches: each example once; padding rows are left out exactly.
        cells: the conditions.
        key: root of the evaluation noise. Not severity: curves over severity are paired.
        progress: training fraction at which the variables were saved.
        place: puts a batch on the devices.

    Returns:
        One CellRecords per cell.
    """
    modalities = sorted(program.encode)
    _check_cells(program, cells)
    # Not a set: its order differs from process to process, and all hosts must start the same
    # programs in the same order.
    wanted = dict.fromkeys((name, cell.condition(name)) for cell in cells for name in modalities)
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in cells]
    for batch in batches:
        placed = place(batch)
        # All is dispatched before any result is fetched, so the device never waits for the host.
        encoded = {
            (name, condition): _settled(
                program.encode[name](variables, placed, *_arguments(program, name, condition), key)
            )
            for name, condition in wanted
        }
        results = []
        for cell in cells:
            met = {name: encoded[name, cell.condition(name)] for name in modalities}
            keep = np.array([name not in cell.missing for name in modalities])
            found = program.decide(variables, met, keep, np.float32(progress), placed)
            results.append(_settled(found))
        for part, result in zip(parts, jax.device_get(results), strict=True):
            # The mask of the whole batch: this host may have loaded a part of it.
            valid = result.pop("mask")
            part.append({name: value[valid] for name, value in result.items()})
    if not parts or not parts[0]:
        raise FusionError("there is nothing to evaluate: give at least one cell and one example")
    return [_join(part) for part in parts]


def _settled(x: PyTree) -> PyTree:
    """`x`, waited for where several virtual CPU devices would have to meet in several programs.

    They share few threads, which can wait for each other for ever. Elsewhere nothing waits.
    """
    several = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    return jax.block_until_ready(x) if several else x


def _check_cells(program: GridProgram, cells: Sequence[Cell]) -> None:
    """Refuse names that would make a cell another one than it says."""
    known = sorted(program.encode)
    for cell in cells:
        named = [name for name, _ in cell.noise]
        for name in (*named, *cell.missing):
            if name not in known:
                raise FusionError(f"a cell names the modality {name!r}: there are {known}")
        if len(set(named)) < len(named):
            raise FusionError(f"a cell corrupts one modality twice: {named}")
        for name, condition in cell.noise:
            kinds = ["", *program.corruptions[name]]
            if condition.corruption not in kinds:
                raise FusionError(
                    f"a cell names the corruption {condition.corruption!r} of {name!r}: there are "
                    f"{kinds[1:]}"
                )


def _arguments(
    program: GridProgram, modality: str, condition: Condition
) -> tuple[np.int32, np.float32, np.bool_]:
    """Number of the corruption, severity and drawn, as `GridProgram.encode` takes them."""
    known = program.corruptions[modality]
    number = known.index(condition.corruption) + 1 if condition.corruption else 0
    return np.int32(number), np.float32(condition.severity), np.bool_(condition.drawn)


def _join(parts: list[dict[str, np.ndarray]]) -> CellRecords:
    """The records of all batches of one cell as one."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    weights, level, present = (whole.pop(name) for name in ("weights", "noise_level", "present"))
    signals = {
        name.removeprefix("signal/"): whole.pop(name)
        for name in list(whole)
        if name.startswith("signal/")
    }
    return CellRecords(whole, weights, level, present, signals)
