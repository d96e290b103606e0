"""Which other example lends an input, for corruptions that need one."""

import numpy as np
from jaxtyping import Bool, Int

from fusion_jax.errors import FusionError
from fusion_jax.rng import name_id


def donor_indices(
    example_id: Int[np.ndarray, " n"],
    target: np.ndarray,
    present: Bool[np.ndarray, " n"],
    *,
    name: str,
) -> Int[np.ndarray, " n"]:
    """Position of each example's donor for one modality: another example that has it.

    Where targets are classes, the donor is of another class, each such example with the same
    probability; where there is one class, or targets are no classes, it is any other example. The
    draw depends on the modality, the example's id and who there is to choose from, and on nothing
    else.

    Args:
        example_id: [N] of the split.
        target: [N, ...]; integers [N] are classes.
        present: Bool[N], where the modality is present.
        name: of the modality.

    Returns:
        Int[N], positions in the split.

    Raises:
        FusionError: where fewer than two examples have the modality.
    """
    pool = np.flatnonzero(present)
    if len(pool) < 2:
        raise FusionError(
            f"misalignment of {name!r} needs at least two examples that have it: there are "
            f"{len(pool)}"
        )
    classes = np.asarray(target)
    grouped = classes.ndim == 1 and np.issubdtype(classes.dtype, np.integer)
    if not grouped or len(np.unique(classes[pool])) < 2:
        # Each by itself: all others are of another class. Those outside the pool share none.
        classes = np.where(present, np.asarray(example_id), -1)
    # Members of a class stand side by side, so that the others are one run that wraps around.
    order = pool[np.lexsort((np.asarray(example_id)[pool], classes[pool]))]
    sorted_classes = classes[order]
    first = np.searchsorted(sorted_classes, classes, side="left")
    last = np.searchsorted(sorted_classes, classes, side="right")
    others = len(order) - (last - first)
    salt = np.uint64(name_id(name))
    draw = _mixed(np.asarray(example_id).astype(np.uint64) ^ (salt << np.uint64(32)))
    return order[(last + (draw % others.astype(np.uint64)).astype(np.int64)) % len(order)]


def _mixed(x: np.ndarray) -> np.ndarray:
    """A well-mixed 64-bit number of each 64-bit number.

    References:
        Steele et al., Fast splittable pseudorandom number generators, OOPSLA 2014 (SplitMix64).
    """
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
