"""The robustness grid: the same examples under every condition, with noise keyed by example.

Modalities are encoded apart and fused after, so the grid is worked through in two steps: each
modality once under each of its conditions, then every combination of these that the cells ask for.
Combinations cost what fusing costs, not what encoding does. Each batch goes to the device once and
meets all cells there. Per-example records come back, so that nothing is a mean of batch means and
paired intervals can be computed afterwards.

A model that is only a function of all inputs at once has no such steps: there the first is
corrupting and the second the model.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from fusion_jax.cells import CLEAN, Cell, Condition
from fusion_jax.corruptions.batch import corrupt_batch
from fusion_jax.errors import FusionError
from fusion_jax.models import FusionModel
from fusion_jax.rng import example_keys, name_id, stream
from fusion_jax.types import Batch, ModelOutput

Place = Callable[[Batch], Batch]
# Evaluation corruptions of each modality, in an order that conditions refer to.
Corruptions = Mapping[str, Sequence[Any]]
# Cells that one call works through, one after the other: enough to hide what a call costs.
CELLS_PER_CALL = 32
# Bytes of encoded conditions that a device holds at once. More conditions are worked through in
# parts, so device memory does not grow with the grid.
FEATURE_MEMORY = 3 * 2**28
# Times that encoded conditions may be there at once: those that are swept, their copy in one array
# inside the sweep, and those of the next part.
COPIES = 3
# Stands in keys for all modalities at once, where a name stands for one.
ALL_MODALITIES = "all modalities"


@dataclasses.dataclass(frozen=True)
class CellRecords:
    """What one cell gave, for each example in the order of the source.

    Attributes:
        records: name -> [N], the task's per-example records.
        weights: [N, M] fusion weights; equal ones where the model has none.
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


class TracedCondition(NamedTuple):
    """A `fusion_jax.cells.Condition` as programs take it, all scalars.

    Attributes:
        number: of the corruption among the modality's, from 1; 0 is none.
        severity: in [0, 1].
        drawn: whether each example has a severity of its own.
        shared: whether that severity is the example's and not the modality's.
    """

    number: Any
    severity: Any
    drawn: Any = False
    shared: Any = False


class GridProgram(NamedTuple):
    """The compiled parts of the grid.

    Attributes:
        encode: modality -> program (variables, batch, TracedCondition, key) -> (features, noise
            level [B]).
        decide: program (variables, modality -> list of what encode gave, which of them Int[C, M],
            keep Bool[C, M], progress, batch) -> records [C, B, ...] of C cells, and "mask" [B].
        corruptions: modality -> class names, at number - 1.
    """

    encode: Mapping[str, Callable[..., Any]]
    decide: Callable[..., Any]
    corruptions: Mapping[str, Sequence[str]]


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
    known = _corruption_names(model.modalities, corruptions)
    return GridProgram(
        encode={
            modality: compiled(
                encode_program(model, modality, corruptions.get(modality, ())), keep_rows=True
            )
            for modality in model.modalities
        },
        decide=compiled(decide_program(model, task)),
        corruptions=known,
    )


def make_function_grid_program(
    predict: Callable[[dict[str, Array], Bool[Array, "b m"]], Float[Array, "b k"]],
    modalities: Sequence[str],
    task: Any,
    corruptions: Corruptions,
    *,
    compiled: Callable[..., Callable[..., Any]],
) -> GridProgram:
    """The programs of the grid of any model that is a function.

    Args:
        predict: (inputs by modality, present Bool[B, M] in the order of sorted names) -> logits [B,
            K], traceable by JAX, each row by itself. What stands in the inputs of an absent
            modality is 0.
        modalities: names of the inputs.
        task: gives the records of a prediction.
        corruptions: modality -> its evaluation corruptions, of different classes.
        compiled: as in `make_grid_program`.

    Raises:
        FusionError: for two corruptions of one class on one modality.
    """
    names = tuple(sorted(modalities))
    known = _corruption_names(names, corruptions)

    def untouched(variables: PyTree, x: Array, here: Array, mask: Array) -> Array:
        del variables, mask
        return jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)

    def decide(variables: PyTree, inputs: dict[str, Array], met: "_Met") -> dict[str, Array]:
        del variables
        cleared = {
            name: jnp.where(met.present[:, m].reshape(-1, *(1,) * (x.ndim - 1)), x, 0)
            for m, (name, x) in enumerate(sorted(inputs.items()))
        }
        return cast(dict, task.records(predict(cleared, met.present), met.batch.target))

    return GridProgram(
        encode={
            name: compiled(
                _corrupted_then(untouched, name, m, corruptions.get(name, ())), keep_rows=True
            )
            for m, name in enumerate(names)
        },
        decide=compiled(_cell_by_cell(decide, names)),
        corruptions=known,
    )


def encode_program(
    model: FusionModel, modality: str, corruptions: Sequence[Any]
) -> Callable[..., tuple[PyTree, Array]]:
    """The function that `GridProgram.encode` describes, not compiled."""

    def encode(variables: PyTree, x: Array, here: Array, mask: Array) -> PyTree:
        return model.apply(
            variables, modality, x, here, mask, train=False, method="encode_modality"
        )

    return _corrupted_then(encode, modality, model.modalities.index(modality), corruptions)


def decide_program(model: FusionModel, task: Any) -> Callable[..., dict[str, Array]]:
    """The function that `GridProgram.decide` describes, not compiled."""

    def decide(variables: PyTree, features: dict[str, PyTree], met: _Met) -> dict[str, Array]:
        # Only a control that says so may see what no model in use can know.
        known = getattr(model.scheduler, "reads_noise_level", False)
        output = model.apply(
            variables,
            features,
            met.present,
            met.batch.mask,
            train=False,
            progress=met.progress,
            noise_level=met.noise_level if known else None,
            method="decide",
        )
        output = cast(ModelOutput, output)
        return {
            **task.records(output.prediction, met.batch.target),
            "weights": output.fusion.weights,
            **{f"signal/{name}": value for name, value in output.fusion.signals.items()},
        }

    return _cell_by_cell(decide, model.modalities)


class _Met(NamedTuple):
    """What the model meets in one cell, besides its features."""

    batch: Batch
    present: Bool[Array, "b m"]
    noise_level: Float[Array, "b m"]
    progress: Float[Array, ""]


def _corrupted_then(
    encode: Callable[..., PyTree], modality: str, m: int, corruptions: Sequence[Any]
) -> Callable[..., tuple[PyTree, Array]]:
    """A program that corrupts a modality in one of several ways, and encodes it."""

    def corrupted(corruption: Any) -> Callable[..., tuple[Array, Array]]:
        def function(
            x: Array, severities: Array, example_id: Array, key: Array, donor: Array | None
        ) -> tuple[Array, Array]:
            noisy = corrupted_inputs(
                corruption, x, severities, example_id, key, donor, modality=modality
            )
            return noisy, corruption.noise_level(severities)

        return function

    def program(
        variables: PyTree, batch: Batch, condition: TracedCondition, key: Array
    ) -> tuple[PyTree, Float[Array, " b"]]:
        severities = example_severities(condition, batch.example_id, key, modality=modality)
        x = batch.inputs[modality]
        # A switch, outside any vmap, computes the chosen corruption only.
        x, level = jax.lax.switch(
            condition.number,
            [_untouched, *map(corrupted, corruptions)],
            x,
            severities,
            batch.example_id,
            key,
            (batch.donors or {}).get(modality),
        )
        return encode(variables, x, batch.present[:, m], batch.mask), level

    return program


def example_severities(
    condition: TracedCondition | Condition,
    example_id: Int[Array, " b"],
    key: Array,
    *,
    modality: str,
) -> Float[Array, " b"]:
    """The severity of each example of a modality under a condition: [B]."""
    own, common = np.uint32(name_id(modality)), np.uint32(name_id(ALL_MODALITIES))
    whose = jnp.where(condition.shared, common, own)
    share = jax.vmap(jax.random.uniform)(example_keys(stream(key, "severity", whose), example_id))
    return jnp.asarray(condition.severity, jnp.float32) * jnp.where(condition.drawn, share, 1)


def corrupted_inputs(
    corruption: Any,
    x: Array,
    severities: Float[Array, " b"],
    example_id: Int[Array, " b"],
    key: Array,
    donor: Array | None,
    *,
    modality: str,
) -> Array:
    """Inputs [B, ...] of a modality as the grid with this root key corrupts them."""
    keys = example_keys(stream(key, type(corruption).__name__, modality), example_id)
    return corrupt_batch(corruption, x, keys=keys, severity=severities, donor=donor)


def _untouched(
    x: Array, severities: Array, example_id: Array, key: Array, donor: Array | None
) -> tuple[Array, Float[Array, " b"]]:
    """A clean input and its noise levels."""
    del example_id, key, donor
    return x, jnp.zeros(severities.shape)


def _cell_by_cell(
    decide: Callable[..., dict[str, Array]], modalities: Sequence[str]
) -> Callable[..., dict[str, Array]]:
    """A program that decides in many cells, one after the other: their memory is that of one."""

    def program(
        variables: PyTree,
        encoded: dict[str, list[tuple[PyTree, Float[Array, " b"]]]],
        which: Int[Array, "c m"],
        keep: Bool[Array, "c m"],
        progress: Float[Array, ""],
        batch: Batch,
    ) -> dict[str, Array]:
        stacked = {
            name: jax.tree.map(lambda *parts: jnp.stack(parts), *encoded[name])
            for name in modalities
        }

        def one_cell(cell: tuple[Array, Array]) -> dict[str, Array]:
            numbers, kept = cell
            met = {
                name: jax.tree.map(lambda part, n=numbers[m]: part[n], stacked[name])
                for m, name in enumerate(modalities)
            }
            features = {name: part[0] for name, part in met.items()}
            present = batch.present & kept[None, :]
            level = jnp.stack([met[name][1] for name in modalities], axis=-1)
            level = jnp.where(present, level, 0)
            found = decide(variables, features, _Met(batch, present, level, progress))
            return {**found, "noise_level": level, "present": present}

        return {**jax.lax.map(one_cell, (which, keep)), "mask": batch.mask}

    return program


def evaluate_grid(
    program: GridProgram,
    variables: PyTree,
    batches: Iterable[Batch],
    *,
    cells: Sequence[Cell],
    key: Array,
    progress: float = 1.0,
    place: Place = jax.device_put,
    memory: int = FEATURE_MEMORY,
) -> list[CellRecords]:
    """Run every cell on every batch and keep all records in memory; see `grid_chunks`.

    Returns:
        One CellRecords per cell.
    """
    chunks = list(
        grid_chunks(
            program,
            variables,
            batches,
            cells=cells,
            key=key,
            progress=progress,
            place=place,
            memory=memory,
        )
    )
    if not chunks or not cells:
        raise FusionError("there is nothing to evaluate: give at least one cell and one example")
    whole = {name: np.concatenate([part[name] for part in chunks], axis=1) for name in chunks[0]}
    return [cell_records(whole, number) for number in range(len(cells))]


def grid_chunks(
    program: GridProgram,
    variables: PyTree,
    batches: Iterable[Batch],
    *,
    cells: Sequence[Cell],
    key: Array,
    progress: float = 1.0,
    place: Place = jax.device_put,
    memory: int = FEATURE_MEMORY,
) -> Iterator[dict[str, np.ndarray]]:
    """Run every cell on every batch, batch by batch.

    Args:
        program: from `make_grid_program`.
        variables: {"params": ..., other collections}.
        batches: each example once; padding rows are left out exactly.
        cells: the conditions.
        key: root of the evaluation noise. Not severity: curves over severity are paired.
        progress: training fraction at which the variables were saved.
        place: puts a batch on the devices.
        memory: bytes of encoded conditions that a device may hold at once.

    Yields:
        For each batch, name -> [cells, rows, ...]; see `cell_records`.

    Raises:
        FusionError: for a cell that names what the program does not know.
    """
    modalities = tuple(sorted(program.encode))
    _check_cells(program, cells)
    plan: list[_Tile] = []
    for batch in batches:
        placed = place(batch)

        def encode(name: str, condition: Condition, placed: Batch = placed) -> PyTree:
            traced = _traced(program, name, condition)
            return _settled(program.encode[name](variables, placed, traced, key))

        plan = plan or _plan(
            cells, {name: _room(encode(name, CLEAN), memory, modalities) for name in modalities}
        )
        found = _Chunk(len(cells))
        held: dict[tuple[str, tuple[Condition, ...]], list[PyTree]] = {}
        for tile in plan:
            wanted = {(name, tile.conditions[name]) for name in modalities}
            held = {each: parts for each, parts in held.items() if each in wanted}
            # In the order of names: all hosts must start the same programs in the same order.
            for name in modalities:
                if (name, tile.conditions[name]) not in held:
                    held[name, tile.conditions[name]] = [
                        encode(name, condition) for condition in tile.conditions[name]
                    ]
            encoded = {name: held[name, tile.conditions[name]] for name in modalities}
            for call in tile.calls:
                # The next call is under way before the results of the last are fetched.
                found.add(
                    call.cells,
                    _settled(
                        program.decide(
                            variables, encoded, call.which, call.keep, np.float32(progress), placed
                        )
                    ),
                )
        yield found.whole()


def cell_records(whole: Mapping[str, np.ndarray], number: int) -> CellRecords:
    """The records of one cell, of all cells' records name -> [cells, N, ...]."""
    parts = {name: value[number] for name, value in whole.items()}
    level, present = parts.pop("noise_level"), parts.pop("present")
    count = np.maximum(present.sum(axis=1, keepdims=True), 1)
    weights = parts.pop("weights", present / count)
    prefix = "signal/"
    signals = {
        name.removeprefix(prefix): parts.pop(name)
        for name in sorted(parts)
        if name.startswith(prefix)
    }
    return CellRecords(parts, weights, level, present, signals)


class _Call(NamedTuple):
    """Cells that are decided in one call: where they are, which conditions, what is kept."""

    cells: list[int]
    which: Int[np.ndarray, "c m"]
    keep: Bool[np.ndarray, "c m"]


class _Tile(NamedTuple):
    """Cells whose conditions are held at once; every tile has the same number of conditions."""

    conditions: dict[str, tuple[Condition, ...]]
    calls: list[_Call]


def _plan(cells: Sequence[Cell], room: Mapping[str, int]) -> list[_Tile]:
    """How the cells are worked through, holding at most `room` conditions of each modality."""
    modalities = tuple(sorted(room))
    blocks: dict[str, list[tuple[Condition, ...]]] = {}
    for name in modalities:
        # Not a set: its order differs from process to process.
        conditions = list(dict.fromkeys(cell.condition(name) for cell in cells))
        size = _even(len(conditions), room[name])
        filled = conditions + conditions[:1] * (-len(conditions) % size)
        blocks[name] = [tuple(filled[i : i + size]) for i in range(0, len(filled), size)]
    places = {
        name: {
            condition: (number, where)
            for number, block in reversed(list(enumerate(blocks[name])))
            for where, condition in reversed(list(enumerate(block)))
        }
        for name in modalities
    }
    grouped: dict[tuple[int, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        tile = tuple(places[name][cell.condition(name)][0] for name in modalities)
        grouped.setdefault(tile, []).append(index)
    most = max((len(members) for members in grouped.values()), default=1)
    per_call = _even(most, CELLS_PER_CALL)
    tiles = []
    for tile, members in sorted(grouped.items()):
        calls = []
        for start in range(0, len(members), per_call):
            chosen = members[start : start + per_call]
            padded = chosen + chosen[:1] * (per_call - len(chosen))
            which = [
                [places[name][cells[index].condition(name)][1] for name in modalities]
                for index in padded
            ]
            keep = [[name not in cells[index].missing for name in modalities] for index in padded]
            calls.append(_Call(chosen, np.array(which, np.int32), np.array(keep)))
        held = {name: blocks[name][number] for name, number in zip(modalities, tile, strict=True)}
        tiles.append(_Tile(held, calls))
    return tiles


def _even(count: int, most: int) -> int:
    """The size of equal parts of at most `most`, so that little of the last is padding."""
    return max(1, math.ceil(count / math.ceil(max(count, 1) / most)))


def _room(encoded: PyTree, memory: int, modalities: Sequence[str]) -> int:
    """How many conditions of a modality a device can hold, from what one of them takes."""
    taken = sum(leaf.nbytes // len(leaf.sharding.device_set) for leaf in jax.tree.leaves(encoded))
    return max(1, memory // (COPIES * len(modalities) * max(taken, 1)))


class _Chunk:
    """The records of one batch, filled call by call; the device is one call ahead of the host."""

    def __init__(self, num_cells: int):
        self._num_cells = num_cells
        self._whole: dict[str, np.ndarray] = {}
        self._waiting: tuple[list[int], Any] | None = None

    def add(self, cells: list[int], found: dict[str, Array]) -> None:
        """Take the results of a call, and fetch those of the one before."""
        self._fetch()
        self._waiting = (cells, found)

    def whole(self) -> dict[str, np.ndarray]:
        """Name -> [cells, rows, ...], of the rows that are no padding."""
        self._fetch()
        return self._whole

    def _fetch(self) -> None:
        if self._waiting is None:
            return
        cells, found = self._waiting[0], jax.device_get(self._waiting[1])
        # The mask of the whole batch: this host may have loaded a part of it.
        valid = found.pop("mask")
        for name, values in found.items():
            kept = values[: len(cells)][:, valid]
            if name not in self._whole:
                self._whole[name] = np.empty((self._num_cells, *kept.shape[1:]), kept.dtype)
            self._whole[name][cells] = kept
        self._waiting = None


def _settled(x: PyTree) -> PyTree:
    """`x`, waited for where several virtual CPU devices would have to meet in several programs.

    They share few threads, which can wait for each other for ever. Elsewhere nothing waits.
    """
    several = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    return jax.block_until_ready(x) if several else x


def _corruption_names(modalities: Sequence[str], corruptions: Corruptions) -> dict[str, list[str]]:
    """Modality -> class names of its corruptions, which conditions are named after."""
    names = {}
    for modality in modalities:
        names[modality] = [type(each).__name__ for each in corruptions.get(modality, ())]
        if len(set(names[modality])) < len(names[modality]):
            raise FusionError(
                f"modality {modality!r} has the corruptions {names[modality]}: their classes must "
                "differ, since tables are named after them"
            )
    return names


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


def _traced(program: GridProgram, modality: str, condition: Condition) -> TracedCondition:
    """A condition as the program of its modality takes it."""
    known = program.corruptions[modality]
    number = known.index(condition.corruption) + 1 if condition.corruption else 0
    return TracedCondition(
        np.int32(number),
        np.float32(condition.severity),
        np.bool_(condition.drawn),
        np.bool_(condition.shared),
    )
