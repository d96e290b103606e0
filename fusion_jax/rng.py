"""Random streams: named, keyed by step and by example id, never split.

The root key lives in the training state and never changes. A key is derived by folding in a name
(as its crc32), then numbers. Nothing is carried from step to step, so a resumed run draws what an
uninterrupted one draws, and an example gets the same draw in any batch, order, host or device.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key


def name_id(name: str) -> int:
    """The number that stands for a name in keys: its crc32, the same in every process."""
    return zlib.crc32(name.encode())


def stream(key: Key[Array, ""], *parts: str | int | Array) -> Key[Array, ""]:
    """The key reached from `key` by folding in names (as crc32) and integers, in order.

    Example:
        >>> import jax
        >>> root = jax.random.key(0)
        >>> bool(stream(root, "noise", "audio") == stream(stream(root, "noise"), "audio"))
        True
    """
    for part in parts:
        key = jax.random.fold_in(key, name_id(part) if isinstance(part, str) else part)
    return key


def example_keys(key: Key[Array, ""], example_id: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key per example: `key` with the example's id folded in."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_id)
