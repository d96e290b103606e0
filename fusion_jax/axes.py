"""Sums over the data axis that are right under `jit`, under `pmap` and on one device.

Every batch statistic of the library goes through `psum`. Under `pmap` the data axis has a name that
is bound while tracing and each device sees its own rows; under `jit` arrays are global and there is
nothing to sum. One function covers both, so there is one training step and not one for each
strategy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fusion_jax.precision import at_least_float32

DATA_AXIS = "data"


def data_axis_index() -> Array | None:
    """Index of this device on the data axis, or None where that axis is not bound."""
    try:
        return jax.lax.axis_index(DATA_AXIS)
    except NameError:  # what JAX raises for an axis name that no enclosing map binds
        return None


def psum(x: PyTree) -> PyTree:
    """Sum over the data axis where it is bound, `x` itself elsewhere."""
    return x if data_axis_index() is None else jax.lax.psum(x, DATA_AXIS)


def map_rows(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of rows, run by each device on its own rows.

    Under automatic sharding XLA gathers the whole batch on every device for some operations
    (`lax.map`, FFT). Under `pmap` and on one device there is nothing to do.

    Args:
        function: takes and returns arrays with the rows of the batch on their first axis; a row of
            the result depends on that row alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if data_axis_index() is not None or dict(mesh.shape).get(DATA_AXIS, 1) == 1:
        return function
    rows = jax.sharding.PartitionSpec(DATA_AXIS)
    return jax.shard_map(function, in_specs=rows, out_specs=rows)


def row_ids(num_rows: int) -> Int[Array, " b"]:
    """Position of each local row in the global batch: the same ids under every strategy."""
    index = data_axis_index()
    rows = jnp.arange(num_rows, dtype=jnp.uint32)
    return rows if index is None else rows + jnp.uint32(num_rows) * index.astype(jnp.uint32)


def next_row(x: PyTree) -> PyTree:
    """For each local row, the row that follows it in the global batch; after the last, the first.

    It passes gradients, to the device that holds the row.

    Args:
        x: pytree of arrays with the rows of the batch on their first axis.
    """
    if data_axis_index() is None:
        return jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), x)
    devices = jax.lax.axis_size(DATA_AXIS)
    to_previous = [(device, (device - 1) % devices) for device in range(devices)]

    def shift(leaf: Array) -> Array:
        following = jax.lax.ppermute(leaf[:1], DATA_AXIS, to_previous)
        return jnp.concatenate([leaf[1:], following])

    return jax.tree.map(shift, x)


def all_rows(x: PyTree) -> PyTree:
    """The rows of the global batch, in order, on every device.

    What is scattered into an array that is on every device goes through here first: otherwise
    XLA, under automatic sharding, sums the whole array over the devices.

    Args:
        x: pytree of arrays with the local rows on their first axis.
    """
    if data_axis_index() is not None:
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, DATA_AXIS, tiled=True), x)
    if dict(jax.sharding.get_abstract_mesh().shape).get(DATA_AXIS, 1) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec())


def total(x: Float[Array, "b ..."], mask: Bool[Array, " b"]) -> Float[Array, "..."]:
    """Sum of `x` over the unmasked local rows; padding never counts, whatever value it holds."""
    rows = mask.reshape(mask.shape + (1,) * (x.ndim - 1))
    return jnp.sum(at_least_float32(jnp.where(rows, x, 0)), axis=0)


def count(mask: Bool[Array, " b"]) -> Float[Array, ""]:
    """Number of unmasked rows of the global batch, at least 1."""
    return jnp.maximum(psum(jnp.sum(mask, dtype=jnp.float32)), 1)


def any_row(mask: Bool[Array, " b"]) -> Bool[Array, ""]:
    """Whether any row of the global batch is unmasked."""
    return psum(jnp.sum(mask, dtype=jnp.float32)) > 0


def mean_share(
    x: Float[Array, "b ..."], mask: Bool[Array, " b"], *, rows: Float[Array, ""] | None = None
) -> Float[Array, "..."]:
    """This device's share of the mean of `x` over the unmasked rows of the global batch.

    The shares of all devices sum to the mean. A loss must be a share: the gradient of the global
    mean is then the sum of the devices' gradients. An empty batch gives 0.

    Args:
        x: [B, ...] one value per row.
        mask: Bool[B], False on padding rows, which never count, whatever value they hold.
        rows: number of rows that the mean is over, where these are a part of them; None counts
            the unmasked rows of the global batch.
    """
    return total(x, mask) / (count(mask) if rows is None else rows)


def masked_mean(x: Float[Array, "b ..."], mask: Bool[Array, " b"]) -> Float[Array, "..."]:
    """Mean of `x` over the unmasked rows of the global batch; the same value on every device."""
    return psum(mean_share(x, mask))
