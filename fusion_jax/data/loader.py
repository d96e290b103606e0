"""Batches from a source: Grain orders, shuffles, slices and prefetches indices; the source gathers.

The position in the data is the step, so there is no iterator to save: batch k of a seed is the same
whether the run started at 0 or was resumed at k, and does not depend on the number of hosts.
"""

from collections.abc import Iterator
from typing import Any, cast

import grain
import numpy as np

from fusion_jax.errors import FusionError
from fusion_jax.sources import DataSpec, Source, check_record
from fusion_jax.types import Batch

# Two reader threads and four batches ahead: measured ahead of the library's default of 16 threads
# here.
READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    host: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless shuffled batches, from step `first_step` on; each epoch has its own order.

    Args:
        source: the training split.
        batch_size: examples over all hosts.
        seed: of the order.
        first_step: position to start from.
        host: (index, count) of this host; it gets its slice of each batch.

    Raises:
        FusionError: while iterating, for a record that a model must not see.
    """
    index, count = host
    if batch_size % count:
        raise FusionError(f"batch_size {batch_size} does not divide over {count} hosts")
    local = batch_size // count
    order = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat().batch(batch_size)
    batches = order[first_step:].map(
        lambda indices: make_batch(source, indices[index * local : (index + 1) * local], size=local)
    )
    return iter(batches.to_iter_dataset(READ))


def eval_batches(source: Source, *, batch_size: int, first: int = 0) -> Iterator[Batch]:
    """Each example once, in order, from example `first` on; the last batch is padded and masked."""
    starts = range(first, len(source), batch_size)
    order = grain.MapDataset.source(list(starts)).map(
        lambda start: make_batch(
            source, np.arange(start, min(start + batch_size, len(source))), size=batch_size
        )
    )
    return iter(order.to_iter_dataset(READ))


def make_batch(source: Source, indices: np.ndarray, *, size: int) -> Batch:
    """Gather, check and pad one batch to `size` rows; padding is a masked repeat of row 0."""
    record = source[indices]
    check_record(record, source.spec)
    valid = len(indices)

    def pad(x: np.ndarray) -> Any:
        return np.concatenate([x, np.repeat(x[:1], size - valid, axis=0)]) if valid < size else x

    names = source.spec.names
    present = record.get("present", np.ones((valid, len(names)), bool))
    return Batch(
        inputs={name: pad(record["inputs"][name]) for name in names},
        present=pad(present),
        target=pad(record["target"]),
        mask=cast(Any, np.arange(size) < valid),
        example_id=pad(record["example_id"]),
    )


def first_batch(spec: DataSpec, *, size: int = 1) -> Batch:
    """A batch of zeros of the right shapes and types, for initialisation."""
    arrays: dict[str, Any] = {
        "present": np.ones((size, len(spec.names)), bool),
        "target": np.zeros(size, np.int32),
        "mask": np.ones(size, bool),
        "example_id": np.arange(size, dtype=np.int32),
    }
    inputs = {
        name: np.zeros((size, *spec.modalities[name].shape), spec.modalities[name].dtype)
        for name in spec.names
    }
    return Batch(inputs=inputs, **arrays)
