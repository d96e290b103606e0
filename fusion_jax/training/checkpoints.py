"""Checkpoints: the only file that knows Orbax.

Kept are the best on validation and the last two. A checkpoint is the whole training state with an
integer digest: a flipped bit in an array file would otherwise be restored without a word.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree, UInt32
from orbax.checkpoint import checkpoint_managers as policies

from fusion_jax.errors import FusionError
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
        if read_only and not self.folder.is_dir():
            raise FusionError(f"{self.folder} is missing: train the run first")
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(
                    get_metric_fn=_selection, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        # best_fn is what makes Orbax write the metrics next to a checkpoint, so that the policy
        # still knows them after a restart.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=_selection,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        with _one_line(f"cannot open {self.folder}"):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
            )

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
        with _one_line(f"cannot save the checkpoint of step {step} in {self.folder}"):
            self._manager.save(
                step,
                args=ocp.args.StandardSave(state),
                metrics=None if metrics is None else dict(metrics),
                custom_metadata={"digest": int(digest(state)), "metrics": dict(metrics or {})},
            )

    def wait(self) -> None:
        """Wait until what was begun is on disk; raises like `save`."""
        with _one_line(f"cannot save a checkpoint in {self.folder}"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Release the folder; nothing is waited for."""
        self._manager.close()

    def restore_last(self, template: TrainState) -> TrainState | None:
        """The newest intact state, or None where there is none at all.

        Args:
            template: a state of the expected structure, shapes and placement.

        Raises:
            FusionError: for checkpoints of another model, or where all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        return self._first_intact(steps, template) if steps else None

    def restore_best(self, template: TrainState) -> TrainState:
        """The best state on validation (the later of equals); raises like `restore_last`."""
        scores = {step: self.metrics(step).get(SELECTION) for step in self._manager.all_steps()}
        known = {step: score for step, score in scores.items() if score is not None}
        if not known:
            raise FusionError(f"{self.folder} holds no validated checkpoint: train the run first")
        ranked = sorted(known, key=lambda step: (known[step], step), reverse=True)
        return self._first_intact(ranked, template)

    def metrics(self, step: int) -> dict[str, float]:
        """Validation metrics that were saved with a step; {} for a damaged or unvalidated one."""
        try:
            saved = self._manager.metadata(step).custom_metadata or {}
        except (OSError, ValueError, KeyError):
            return {}
        return dict(saved.get("metrics", {}))

    def _first_intact(self, steps: list[int], template: TrainState) -> TrainState:
        """The first of the steps that restores and whose digest agrees."""
        for step in steps:
            try:
                self._compare_structure(step, template)
                state = self._manager.restore(
                    step, args=ocp.args.StandardRestore(_abstract(template))
                )
                expected = (self._manager.metadata(step).custom_metadata or {}).get("digest")
                if int(digest(state)) == expected:
                    return state
                reason = "its contents do not match its digest"
            except FusionError:
                raise
            # Orbax and TensorStore raise many kinds for damaged files; all mean: take the one
            # before.
            except Exception as error:
                reason = _first_line(error)
            logger.warning("checkpoint of step %d in %s is damaged (%s)", step, self.folder, reason)
        raise FusionError(
            f"every checkpoint in {self.folder} is damaged: restore the folder or train again"
        )

    def _compare_structure(self, step: int, template: TrainState) -> None:
        """Refuse a checkpoint of another model, naming the first differing path."""
        saved = dict(_shapes(self._manager.item_metadata(step).tree))
        wanted = dict(_shapes(template))
        for path in [*wanted, *saved]:
            if saved.get(path) != wanted.get(path):
                raise FusionError(
                    f"the checkpoint in {self.folder} is of another model: {path} is "
                    f"{saved.get(path, 'absent')} there, {wanted.get(path, 'absent')} in this model"
                )


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
    """Shapes, types and placements of a state."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, template)


def _shapes(tree: PyTree) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Dotted path and shape of each array of a state or of a checkpoint's metadata."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path]
        yield ".".join(names), tuple(_raw(leaf).shape)


def _selection(metrics: Mapping[str, float]) -> float:
    return metrics[SELECTION]


def _first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _one_line:
    """Turns whatever fails while writing into one FusionError with the cause and the cure."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, FusionError):
            text = str(error)
            full = "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text
            cure = "the disk is full: free space" if full else f"{_first_line(error)}; mend that"
            raise FusionError(
                f"{self.what}: {cure} and run the same command again; "
                "the checkpoints before it are intact"
            ) from error
