"""Checkpoints: the only file that knows Orbax.

Kept are the best on validation and the last two. Each holds two items: the training state, and a
record with the state's digest, its metrics and the arrays it consists of. The digest is there
because a flipped bit in an array file would otherwise be restored without a word; a checksum in the
record does the same for the record.
"""

import dataclasses
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, PyTree, UInt32

from fusion_jax.errors import FusionError, first_line, writing
from fusion_jax.types import TrainState

SELECTION = "selection"
logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    Saving is asynchronous: `save` returns when the state is copied, and a failure to write shows at
    the next call. A failed save never touches the checkpoints before it.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        """Open or create a folder of checkpoints."""
        self.folder = Path(folder).absolute()
        self._read_only = read_only
        if read_only and not self.folder.is_dir():
            raise FusionError(f"{self.folder} is missing: train the run first")
        self._scores: dict[int, float | None] = {}
        self._warned: set[int] = set()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_BestAndLastTwo(self._scores),
            # Reads no metadata now: one damaged checkpoint must not hide the others.
            lightweight_initialize=True,
            # Where a folder cannot be made, the threads that wait for it wait for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        with writing(f"cannot open {self.folder}", Exception):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_names=("state", "record")
            )
        for step in self._manager.all_steps():
            self._scores[step] = self.metrics(step).get(SELECTION)

    def save(self, state: TrainState, *, metrics: Mapping[str, float] | None) -> None:
        """Begin to save the state under its step.

        Args:
            state: the state after a finished step.
            metrics: validation metrics with "selection" (higher is better), or None for a state
                that was not validated, which can be the last one but never the best.

        Raises:
            FusionError: where this or the save before it could not be written.
        """
        step = int(state.step)
        record: dict[str, Any] = {
            "digest": int(digest(state)),
            "metrics": dict(metrics or {}),
            "arrays": dict(_arrays(state)),
        }
        self._scores[step] = record["metrics"].get(SELECTION)
        with self._saving(f"the checkpoint of step {step}"):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    record=ocp.args.JsonSave(record | {"crc32": _crc32(record)}),
                ),
            )
        if not saved:
            raise FusionError(
                f"{self.folder} holds a checkpoint of step {step} or later already: "
                "does another process train in this folder?"
            )

    def wait(self) -> None:
        """Wait until what was begun is on disk; raises like `save`."""
        with self._saving("a checkpoint"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Wait like `wait`, then release the folder."""
        with self._saving("a checkpoint"):
            self._manager.close()

    def restore_last(self, template: TrainState) -> TrainState | None:
        """The newest intact state, or None where there is none at all.

        Unless read-only, damaged checkpoints after it are deleted: the run goes on from the state
        that is returned and saves those steps anew.

        Args:
            template: a state of the expected structure, shapes and placement; shapes and types
                are enough.

        Raises:
            FusionError: for checkpoints of another model, or where all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            return None
        state = self._first_intact(steps, template)
        for step in steps:
            if step > int(state.step) and not self._read_only:
                with writing(f"cannot delete the damaged checkpoint of step {step}", Exception):
                    self._manager.delete(step)
        return state

    def restore_best(self, template: TrainState) -> TrainState:
        """The best state on validation (the later of equals); raises like `restore_last`."""
        known = {
            step: score
            for step in self._manager.all_steps()
            if (score := self._scores[step]) is not None
        }
        if not known:
            raise FusionError(f"{self.folder} holds no validated checkpoint: train the run first")
        ranked = sorted(known, key=lambda step: (known[step], step), reverse=True)
        return self._first_intact(ranked, template)

    def metrics(self, step: int) -> dict[str, float]:
        """Validation metrics that were saved with a step; {} for a damaged or unvalidated one."""
        try:
            return self._record(step)["metrics"]
        except _Damaged as error:
            self._warn(step, error)
            return {}

    def _first_intact(self, steps: Sequence[int], template: TrainState) -> TrainState:
        """The first of the steps that restores and whose digest agrees."""
        for step in steps:
            try:
                record = self._record(step)
                self._compare_arrays(record["arrays"], template)
                state = self._restore(step, template)
                if int(digest(state)) == record["digest"]:
                    return state
                raise _Damaged("its contents do not match its digest")
            except _Damaged as error:
                self._warn(step, error)
        raise FusionError(
            f"every checkpoint in {self.folder} is damaged: restore the folder or train again"
        )

    def _record(self, step: int) -> dict[str, Any]:
        """What `save` recorded beside the state."""
        try:
            arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = dict(self._manager.restore(step, args=arguments)["record"])
            if record.pop("crc32") == _crc32(record):
                return record
        # Orbax raises many kinds for damaged files; so does TensorStore.
        except Exception as error:
            raise _Damaged(f"its record cannot be read: {first_line(error)}") from error
        raise _Damaged("its record does not match its checksum")

    def _restore(self, step: int, template: TrainState) -> TrainState:
        """The state of a step."""
        try:
            # Orbax reads all arrays at once and, where one is damaged, prints pages about the
            # others. So each is read alone first.
            for spec in _stored_arrays(self.folder / str(step) / "state"):
                tensorstore.open(spec).result().read().result()
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(template)))
            return self._manager.restore(step, args=arguments)["state"]
        except Exception as error:
            raise _Damaged(first_line(error)) from error

    def _compare_arrays(self, saved: Mapping[str, str], template: TrainState) -> None:
        """Refuse a checkpoint of another model, naming the first differing path."""
        wanted = dict(_arrays(template))
        for path in [*wanted, *saved]:
            if saved.get(path) != wanted.get(path):
                raise FusionError(
                    f"the checkpoint in {self.folder} is of another model: {path} is "
                    f"{saved.get(path, 'absent')} there, {wanted.get(path, 'absent')} in this model"
                )

    def _saving(self, what: str) -> Any:
        """One line about whatever fails while writing."""
        return writing(
            f"cannot save {what} in {self.folder}",
            Exception,
            note="the checkpoints before it are intact",
        )

    def _warn(self, step: int, error: Exception) -> None:
        """Say once that a checkpoint is damaged."""
        if step not in self._warned:
            logger.warning("checkpoint of step %d in %s is damaged (%s)", step, self.folder, error)
        self._warned.add(step)


class _Damaged(Exception):
    """A checkpoint that cannot be used, and why."""


@dataclasses.dataclass(frozen=True)
class _BestAndLastTwo:
    """Orbax's preservation policy for a run: the last two steps, and the best (later of equals).

    Attributes:
        scores: step -> selection score, None where it was not validated or cannot be read. Orbax's
            own policies lose the scores when a folder is reopened with damaged metadata in it.
    """

    scores: Mapping[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each checkpoint stays."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        ranked = sorted(
            (score, step) for step in steps if (score := self.scores.get(step)) is not None
        )
        kept = {*steps[-2:], *(step for _, step in ranked[-1:])}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def digest(tree: PyTree) -> UInt32[Array, ""]:
    """A 32-bit number that changes when any bit of any leaf changes.

    Integer sums modulo 2^32 of bits times odd position weights: the same for any sharding and
    order.
    """
    return _digest(jax.tree.map(_raw, tree))


@jax.jit
def _digest(tree: PyTree) -> UInt32[Array, ""]:
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = _as_bits(leaf).ravel().astype(jnp.uint32)
        weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        total += jnp.uint32(2 * number + 1) * jnp.sum(bits * weights, dtype=jnp.uint32)
    return total


def _as_bits(leaf: Array) -> Array:
    """An array's bits as unsigned integers of at most 32 bits."""
    if leaf.dtype == bool:
        return leaf.astype(jnp.uint8)
    width = min(leaf.dtype.itemsize, 4)
    return jax.lax.bitcast_convert_type(leaf, f"uint{8 * width}")


def _raw(leaf: Any) -> Any:
    """Random keys as their numbers, other leaves as they are."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _abstract(template: TrainState) -> TrainState:
    """Shapes, types and placements of a state; what has no placement goes to the first device."""
    here = SingleDeviceSharding(jax.local_devices()[0])

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here)

    return jax.tree.map(abstract, template)


def _arrays(tree: PyTree) -> Iterator[tuple[str, str]]:
    """Dotted path, and type and shape such as "float32[3, 4]", of each array of a state."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path]
        yield ".".join(names), f"{leaf.dtype}{list(leaf.shape)}"


def _stored_arrays(folder: Path) -> Iterator[dict[str, Any]]:
    """TensorStore's specification of each array in a saved state."""
    base = {"driver": "ocdbt", "base": f"file://{folder}/"}
    for key in tensorstore.KvStore.open(base).result().list().result():
        name, _, file = key.decode().rpartition("/")
        if file == ".zarray":
            yield {"driver": "zarr", "kvstore": base | {"path": f"{name}/"}}


def _crc32(record: Mapping[str, Any]) -> int:
    """Checksum of a record as JSON."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
