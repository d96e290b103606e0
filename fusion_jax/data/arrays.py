"""Bring your own data: NumPy arrays, or any random-access source, per split."""

from typing import ClassVar

from fusion_jax.errors import FusionError
from fusion_jax.sources import Source


class ArrayData:
    """A data set from one source per split.

    Such data lives in this process only: a saved run remembers its specification, not the data, and
    its evaluation is given the data again.

    Example:
        >>> import numpy as np
        >>> from fusion_jax.sources import ArraySource
        >>> def split(n, first_id):
        ...     return ArraySource({"left": np.ones((n, 4)), "right": np.ones((n, 2))},
        ...                        np.arange(n) % 3, num_classes=3, first_id=first_id)
        >>> data = ArrayData(train=split(60, 0), validation=split(20, 60), test=split(20, 80))
        >>> len(data.source("validation"))
        20
    """

    name: ClassVar[str] = "arrays"
    in_memory: ClassVar[bool] = True

    def __init__(self, *, train: Source, validation: Source, test: Source):
        """Keep the sources; all three must have one specification."""
        self._sources = {"train": train, "validation": validation, "test": test}
        for split, source in self._sources.items():
            if source.spec != train.spec:
                raise FusionError(
                    f"split {split!r} has another specification than 'train': {source.spec}"
                )

    def source(self, split: str) -> Source:
        """The source of "train", "validation" or "test"."""
        if split not in self._sources:
            raise FusionError(f"unknown split {split!r}: choose one of {list(self._sources)}")
        return self._sources[split]
