"""Sums and means over the data axis: the same numbers for any layout over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fusion_jax.axes import (
    DATA_AXIS,
    all_rows,
    data_axis_index,
    masked_mean,
    mean_share,
    next_row,
    psum,
    row_ids,
)

DEVICES, LOCAL = 8, 3
ROWS = DEVICES * LOCAL


def uneven_mask() -> np.ndarray:
    """Between 0 and 3 valid rows per device; devices 2 and 7 hold padding only."""
    valid = [3, 1, 0, 2, 3, 1, 2, 0]
    return np.concatenate([np.arange(LOCAL) < count for count in valid])


def make_rows(width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, (ROWS, width)).astype(np.float32)


def statistics(x, mask):
    return {
        "sum": psum(jnp.sum(jnp.where(mask[:, None], x, 0), axis=0)),
        "count": psum({"valid": jnp.sum(mask)}),
        "share": mean_share(x, mask),
        "mean": masked_mean(x, mask),
        "row_mean": masked_mean(x[:, 0], mask),
        "ids": row_ids(x.shape[0]),
    }


def split(x: np.ndarray) -> np.ndarray:
    return x.reshape(DEVICES, -1, *x.shape[1:])


def under_jit(function, *args):
    return jax.jit(function)(*args)


def under_sharded_jit(function, *args):
    mesh = jax.make_mesh((DEVICES,), (DATA_AXIS,), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    with jax.set_mesh(mesh):
        return jax.jit(function)(*jax.device_put(args, rows))


@pytest.mark.parametrize("run", [under_jit, under_sharded_jit])
def test_statistics_under_jit_are_those_of_the_whole_batch(run):
    x, mask = make_rows(), uneven_mask()
    found, valid = run(statistics, x, mask), x[mask].astype(np.float64)
    np.testing.assert_allclose(found["sum"], valid.sum(axis=0), rtol=1e-6)
    assert found["count"]["valid"] == 12
    # There is one share, the whole mean.
    np.testing.assert_allclose(found["share"], valid.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["mean"], valid.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["row_mean"], valid[:, 0].mean(), rtol=1e-6)
    np.testing.assert_array_equal(found["ids"], np.arange(ROWS))


def test_statistics_under_pmap_are_those_of_the_whole_batch():
    x, mask = make_rows(), uneven_mask()
    found = jax.pmap(statistics, axis_name=DATA_AXIS)(split(x), split(mask))
    valid = x[mask].astype(np.float64)
    for device in range(DEVICES):
        np.testing.assert_allclose(found["sum"][device], valid.sum(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found["mean"][device], valid.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found["row_mean"][device], valid[:, 0].mean(), rtol=1e-6)
    np.testing.assert_array_equal(found["count"]["valid"], np.full(DEVICES, 12))
    # A share is the device's own sum over the global count, so the shares add up to the mean.
    own = np.where(mask[:, None], x, 0).reshape(DEVICES, LOCAL, -1).sum(axis=1) / 12
    np.testing.assert_allclose(found["share"], own, atol=1e-6)
    assert not found["share"][2].any() and not found["share"][7].any()
    # The global position of a row, whichever device holds it.
    np.testing.assert_array_equal(np.ravel(found["ids"]), np.arange(ROWS))


def with_next_row(x, mask):
    following = next_row({"x": x, "mask": mask})
    # The gradient of the sum of x_i^2 x_j: row i has 2 x_i x_j as itself, x_before^2 as the next.
    gradient = jax.grad(lambda x: jnp.sum(x**2 * next_row(x)))(x)
    return {**following, "gradient": gradient}


def assert_next_rows(found, x, mask):
    np.testing.assert_array_equal(np.reshape(found["x"], x.shape), np.roll(x, -1, axis=0))
    np.testing.assert_array_equal(np.reshape(found["mask"], mask.shape), np.roll(mask, -1))
    wide = x.astype(np.float64)
    expected = 2 * wide * np.roll(wide, -1, axis=0) + np.roll(wide, 1, axis=0) ** 2
    np.testing.assert_allclose(np.reshape(found["gradient"], x.shape), expected, rtol=1e-5)


@pytest.mark.parametrize("run", [under_jit, under_sharded_jit])
def test_next_row_under_jit_is_of_the_whole_batch(run):
    x, mask = make_rows(), uneven_mask()
    assert_next_rows(run(with_next_row, x, mask), x, mask)


@pytest.mark.parametrize("local", [LOCAL, 1])
def test_next_row_under_pmap_is_of_the_whole_batch(local):
    x, mask = make_rows()[: DEVICES * local], uneven_mask()[: DEVICES * local]
    found = jax.pmap(with_next_row, axis_name=DATA_AXIS)(split(x), split(mask))
    assert_next_rows(found, x, mask)


def test_all_rows_are_in_order_on_every_device():
    x, mask = make_rows(), uneven_mask()
    for run in (under_jit, under_sharded_jit):
        found = run(lambda x, mask: all_rows((x, mask)), x, mask)
        np.testing.assert_array_equal(found[0], x)
        np.testing.assert_array_equal(found[1], mask)
    found = jax.pmap(lambda x, mask: all_rows((x, mask)), axis_name=DATA_AXIS)(
        split(x), split(mask)
    )
    for device in range(DEVICES):
        np.testing.assert_array_equal(found[0][device], x)
        np.testing.assert_array_equal(found[1][device], mask)


def test_data_axis_index_is_none_unless_the_axis_of_that_name_is_bound():
    seen = []

    def look(x):
        seen.append(data_axis_index())
        return x if seen[-1] is None else x + seen[-1]

    assert jax.jit(look)(0) == 0 and seen == [None]
    zeros = np.zeros(DEVICES, np.int32)
    np.testing.assert_array_equal(jax.pmap(look, axis_name="other")(zeros), zeros)
    assert seen == [None, None]
    found = jax.pmap(look, axis_name=DATA_AXIS)(zeros)
    np.testing.assert_array_equal(found, np.arange(DEVICES))


def test_gradients_of_the_shares_sum_to_the_gradient_of_the_global_mean():
    x, mask = make_rows(seed=1), uneven_mask()
    w = np.array([0.5, -1.0, 0.25, 2.0], np.float32)

    def share(w, x, mask):
        return mean_share((x @ w) ** 2, mask)

    # d/dw of the mean of (x.w)^2 is the mean of 2 (x.w) x, over valid rows.
    valid = x[mask].astype(np.float64)
    expected = (2 * (valid @ w)[:, None] * valid).mean(axis=0)
    whole = jax.jit(jax.grad(share))(w, x, mask)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    gradient = jax.pmap(jax.grad(share), axis_name=DATA_AXIS, in_axes=(None, 0, 0))
    parts = np.asarray(gradient(w, split(x), split(mask)))
    np.testing.assert_allclose(parts.sum(axis=0), expected, rtol=1e-5)
    assert not parts[2].any() and not parts[7].any()


def test_masked_rows_leak_neither_nan_nor_gradient():
    x, mask = make_rows(), uneven_mask()
    broken = np.where(mask[:, None], x, np.nan).astype(np.float32)
    broken[2 * LOCAL] = np.inf

    def value_and_gradient(x, mask):
        gradient = jax.grad(lambda x: mean_share(x, mask).sum())(x)
        return masked_mean(x, mask), gradient

    mean, gradient = jax.jit(value_and_gradient)(broken, mask)
    np.testing.assert_allclose(mean, x[mask].mean(axis=0), rtol=1e-5)
    # Each of the 12 valid rows counts 1/12, the others nothing.
    expected = np.broadcast_to(mask[:, None] / 12, x.shape)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    found = jax.pmap(value_and_gradient, axis_name=DATA_AXIS)(split(broken), split(mask))
    np.testing.assert_allclose(found[0][5], x[mask].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.reshape(found[1], x.shape), expected, atol=1e-6)


def test_mean_over_no_rows_is_zero():
    nothing, broken = np.zeros(ROWS, bool), np.full((ROWS, 2), np.nan, np.float32)
    np.testing.assert_array_equal(jax.jit(masked_mean)(broken, nothing), np.zeros(2))
    found = jax.pmap(masked_mean, axis_name=DATA_AXIS)(split(broken), split(nothing))
    np.testing.assert_array_equal(found, np.zeros((DEVICES, 2)))


def test_means_of_half_precision_are_summed_in_single():
    # In bfloat16 a running sum of ones stops at 256.
    found = jax.jit(masked_mean)(jnp.ones(1000, jnp.bfloat16), np.arange(1000) < 999)
    assert found.dtype == jnp.float32 and found == 1
