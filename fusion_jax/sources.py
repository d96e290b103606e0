"""Data sources: random access over a split, in NumPy, with a stated specification.

A source is any object with `spec`, `__len__` and `__getitem__(indices) -> dict`. `ArraySource`
makes one from arrays in memory. There is no decoding and no augmentation here: raw waveforms and
8-bit images leave a source, and the compiled step does the rest.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fusion_jax.errors import FusionError


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape of one example and dtype name: `ArraySpec((28, 28, 1), "uint8")`."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What every split of a data set has in common.

    Attributes:
        modalities: name -> ArraySpec.
        num_classes: number of classes of the integer target.
        clusters: names of the grouping ids that records carry (for example "recording"): examples
            that share an id are not independent, and intervals resample them together.
    """

    modalities: Mapping[str, ArraySpec]
    num_classes: int
    clusters: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Modality names in the order of the M axis."""
        return tuple(sorted(self.modalities))


class Source(Protocol):
    """Random access to one split.

    `source[indices]` takes Int[B] and returns a dict of NumPy arrays:

    * "inputs": name -> [B, ...], matching `spec`,
    * "target": Int[B],
    * "example_id": Int[B], unique over all splits of the data set,
    * "present" (optional): Bool[B, M]; left out means everything is present,
    * one Int[B] for each name in `spec.clusters`.

    The same index gives the same bytes, always.
    """

    spec: DataSpec

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> dict[str, Any]: ...


class ArraySource:
    """A source over arrays in memory.

    Example:
        >>> import numpy as np
        >>> source = ArraySource(
        ...     inputs={"a": np.zeros((5, 3), np.float32), "b": np.zeros((5, 2), np.float32)},
        ...     target=np.arange(5) % 2, num_classes=2)
        >>> source[np.array([3, 1])]["target"]
        array([1, 1], dtype=int32)
    """

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        target: np.ndarray,
        *,
        num_classes: int,
        present: np.ndarray | None = None,
        example_id: np.ndarray | None = None,
        first_id: int = 0,
        clusters: Mapping[str, np.ndarray] | None = None,
    ):
        """Check and keep the arrays.

        Args:
            inputs: name -> [N, ...].
            target: Int[N], in [0, num_classes).
            num_classes: number of classes K.
            present: Bool[N, M] in the order of `sorted(inputs)`, or None for all present.
            example_id: Int[N], or None for `first_id + arange(N)`.
            first_id: first id where `example_id` is None; ids must be unique over the splits.
            clusters: name -> Int[N] grouping ids.

        Raises:
            FusionError: where lengths or shapes differ, or a target is not a class number.
        """
        num = len(target)
        if not np.issubdtype(np.asarray(target).dtype, np.integer):
            raise FusionError(
                f"the target has dtype {np.asarray(target).dtype}: give class numbers"
            )
        if present is not None and np.shape(present) != (num, len(inputs)):
            raise FusionError(
                f"present has shape {np.shape(present)}, expected {(num, len(inputs))}: "
                "one column per modality, in alphabetical order"
            )
        ids = np.arange(first_id, first_id + num) if example_id is None else example_id
        self._records = {
            "target": np.asarray(target, np.int32),
            "example_id": np.asarray(ids, np.int32),
        }
        if present is not None:
            self._records["present"] = np.asarray(present, bool)
        for name, values in (clusters or {}).items():
            self._records[name] = np.asarray(values)
        self._inputs = {name: np.asarray(inputs[name]) for name in sorted(inputs)}
        self.spec = DataSpec(
            {name: ArraySpec(x.shape[1:], x.dtype.name) for name, x in self._inputs.items()},
            num_classes,
            tuple(clusters or ()),
        )
        for name, values in {**self._inputs, **self._records}.items():
            if len(values) != num:
                raise FusionError(
                    f"{name!r} has {len(values)} examples, the target {num}: make them equal"
                )
        if (
            num
            and not 0
            <= self._records["target"].min()
            <= self._records["target"].max()
            < num_classes
        ):
            raise FusionError(
                f"a target lies outside 0..{num_classes - 1}: mend the labels or num_classes"
            )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._records["target"])

    def __getitem__(self, indices: np.ndarray) -> dict[str, Any]:
        """Records of the given indices; see `Source`."""
        record: dict[str, Any] = {name: values[indices] for name, values in self._records.items()}
        record["inputs"] = {name: values[indices] for name, values in self._inputs.items()}
        return record


def check_record(record: Mapping[str, Any], spec: DataSpec) -> None:
    """Refuse a batch of records that a model must not see.

    Raises:
        FusionError: naming the modality or example: a missing input, a shape that does not match
            `spec`, NaN or Inf in a present input, or an example with nothing present.
    """
    present = record.get("present")
    ids = record["example_id"]
    for m, name in enumerate(spec.names):
        if name not in record["inputs"]:
            raise FusionError(
                f"modality {name!r} is not among the inputs {sorted(record['inputs'])}"
            )
        x = record["inputs"][name]
        if x.shape[1:] != spec.modalities[name].shape:
            raise FusionError(
                f"modality {name!r} has shape {x.shape[1:]} per example, "
                f"expected {spec.modalities[name].shape}"
            )
        if np.issubdtype(x.dtype, np.floating):
            finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
            bad = ~finite if present is None else ~finite & present[:, m]
            if bad.any():
                raise FusionError(
                    f"modality {name!r} of example {ids[bad][0]} holds NaN or Inf: "
                    "mend the data, or mark the modality as missing in `present`"
                )
    if present is not None and not present.any(axis=1).all():
        bad_id = ids[~present.any(axis=1)][0]
        raise FusionError(f"example {bad_id} has no modality present: leave it out of the source")
