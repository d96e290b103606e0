"""Batches from a source: Grain orders, shuffles, slices and prefetches indices; the source gathers.

The position in the data is the step, so there is no iterator to save: batch k of a seed is the same
whether the run started at 0 or was resumed at k, and does not depend on the number of hosts.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import grain
import numpy as np

from fusion_jax.errors import FusionError
from fusion_jax.sources import DataSpec, Source, check_record
from fusion_jax.types import Batch

# Two reader threads and four batches ahead: measured ahead of the library's default of 16 threads
# here.
READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class Watched(Iterator[Any]):
    """Batches read by a thread, so that a source that hangs can be told from one that is slow.

    The thread also puts them in their place, so that the next one lies on the devices when a step
    ends; one and no more, besides that of the step.
    """

    def __init__(
        self, batches: grain.DatasetIterator, timeout: float, place: Callable[[Batch], Any]
    ):
        """Begin to read."""
        self._timeout, self._place = timeout, place
        self._ready: queue.Queue[Any] = queue.Queue()
        self._room, self._closed = threading.Semaphore(1), threading.Event()
        # A daemon: a read that hangs for ever must not keep the process alive.
        self._thread = threading.Thread(target=self._read, args=(batches,), daemon=True)
        self._thread.start()

    def _read(self, batches: grain.DatasetIterator) -> None:
        """Hand on batch after batch, and what ends them."""
        try:
            while not self._closed.is_set():
                batch = next(batches)
                self._room.acquire()
                if not self._closed.is_set():
                    self._ready.put((self._place(batch), None))
        except Exception as error:  # Raised again in the thread that trains.
            self._ready.put((None, error))
        batches.close()

    def close(self) -> None:
        """Stop reading, and end the processes that read."""
        self._closed.set()
        self._room.release()  # The thread may wait for it.
        self._thread.join(timeout=10)

    def __next__(self) -> Any:
        """The next batch in its place; raises like `train_batches`."""
        try:
            batch, error = self._ready.get(timeout=self._timeout)
        except queue.Empty:
            raise FusionError(
                f"no training data came for {self._timeout:g} s: look at the disk and the reading "
                "processes, or raise config.data_timeout; the same command goes on"
            ) from None
        if error is None:
            self._room.release()
            return batch
        if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
            raise FusionError(
                f"a process that reads training data died ({str(error).partition('. ')[0]}): "
                "look at its memory (config.num_workers); the same command goes on"
            ) from error
        raise error


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    host: tuple[int, int] = (0, 1),
    num_workers: int = 0,
    timeout: float = 600.0,
    place: Callable[[Batch], Any] = lambda batch: batch,
) -> Watched:
    """Endless shuffled batches, from step `first_step` on; each epoch has its own order.

    Args:
        source: the training split.
        batch_size: examples over all hosts.
        seed: of the order.
        first_step: position to start from.
        host: (index, count) of this host; it gets its slice of each batch.
        num_workers: processes that read; 0 for threads of this one. The batches are the same.
        timeout: seconds to wait for a batch.
        place: puts a batch on the devices, in the thread that reads; by default it stays here.

    Returns:
        An iterator to be closed after use.

    Raises:
        FusionError: while iterating, for a record that a model must not see, a batch that does not
            come in time, or a reading process that died.
    """
    local = _local_rows(batch_size, host)
    order = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat().batch(batch_size)
    batches = order[first_step:].map(
        lambda indices: make_batch(source, indices[local], size=local.stop - local.start)
    )
    read = batches.to_iter_dataset(READ)
    if num_workers:
        read = read.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return Watched(iter(read), timeout, place)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    first: int = 0,
    host: tuple[int, int] = (0, 1),
    donors: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Batch]:
    """Each example once, in order, from example `first` on; the last batch is padded and masked.

    Args:
        source: the split.
        batch_size: examples over all hosts.
        first: the first example.
        host: (index, count) of this host; it gets its slice of each batch.
        donors: modality -> position [N] of each example's donor
            (`fusion_jax.data.donors.donor_indices`).
    """
    local, total = _local_rows(batch_size, host), len(source)
    starts = range(first, total, batch_size)
    order = grain.MapDataset.source(list(starts)).map(
        lambda start: make_batch(
            source,
            np.arange(start, min(start + batch_size, total))[local],
            size=local.stop - local.start,
            donors=donors,
        )
    )
    return iter(order.to_iter_dataset(READ))


def _local_rows(batch_size: int, host: tuple[int, int]) -> slice:
    """The rows of each batch that a host loads."""
    index, count = host
    if batch_size % count:
        raise FusionError(f"batch_size {batch_size} does not divide over {count} hosts")
    local = batch_size // count
    return slice(index * local, (index + 1) * local)


def make_batch(
    source: Source,
    indices: np.ndarray,
    *,
    size: int,
    donors: Mapping[str, np.ndarray] | None = None,
) -> Batch:
    """Gather, check and pad one batch to `size` rows; padding is a masked repeat of its first row.

    Without any index it is padding only, of the source's first example.
    """
    valid = len(indices)
    read = indices if valid else np.zeros(1, np.int64)
    record = source[read]
    check_record(record, source.spec)
    lent = {}
    for name, positions in (donors or {}).items():
        lender = source[positions[read]]
        check_record(lender, source.spec)
        lent[name] = lender["inputs"][name]

    def pad(x: np.ndarray) -> Any:
        missing = size - len(x)
        return np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x

    names = source.spec.names
    present = record.get("present", np.ones((len(record["target"]), len(names)), bool))
    return Batch(
        inputs={name: pad(record["inputs"][name]) for name in names},
        present=pad(present),
        target=pad(record["target"]),
        mask=cast(Any, np.arange(size) < valid),
        example_id=pad(record["example_id"]),
        donors={name: pad(x) for name, x in lent.items()} or None,
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
