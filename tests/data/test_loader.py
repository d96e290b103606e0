"""Batches: which examples, in which order, and what is refused."""

import itertools

import numpy as np
import pytest

from fusion_jax.data.arrays import ArrayData
from fusion_jax.data.loader import eval_batches, first_batch, make_batch, train_batches
from fusion_jax.errors import FusionError
from fusion_jax.sources import ArraySource, ArraySpec, DataSpec


def make_source(num=10, first_id=100, **fields):
    """Two modalities whose values tell the example: left holds its id, right twice that."""
    ids = np.arange(first_id, first_id + num)
    given = {
        "inputs": {
            "right": np.tile(2.0 * ids[:, None], 2).astype(np.float32),
            "left": ids[:, None].astype(np.uint8),
        },
        "target": ids % 3,
        "num_classes": 3,
        "first_id": first_id,
        **fields,
    }
    return ArraySource(**given)


def take(batches, count):
    return list(itertools.islice(batches, count))


def ids_of(batches):
    return np.concatenate([batch.example_id for batch in batches])


def assert_same(batch, other):
    for name in ("present", "target", "mask", "example_id"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(other, name))
    for name in ("left", "right"):
        np.testing.assert_array_equal(batch.inputs[name], other.inputs[name])


# Training


def test_train_batches_show_every_example_once_per_epoch():
    # 15 batches of 4 are 6 epochs of 10: batches reach over the ends of epochs.
    batches = take(train_batches(make_source(), batch_size=4, seed=0), 15)
    epochs = ids_of(batches).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(100, 110), (6, 1)))
    assert len(np.unique(epochs, axis=0)) == 6
    for batch in batches:
        assert batch.mask.all() and batch.present.all() and batch.present.shape == (4, 2)
        # The fields of a row belong to one example.
        np.testing.assert_array_equal(batch.inputs["left"][:, 0], batch.example_id)
        np.testing.assert_array_equal(batch.inputs["right"][:, 1], 2 * batch.example_id)
        np.testing.assert_array_equal(batch.target, batch.example_id % 3)


def test_train_batches_depend_on_the_seed():
    first, again, other = (
        ids_of(take(train_batches(make_source(), batch_size=10, seed=seed), 1))
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("first_step", [1, 5, 7])
def test_train_batches_continue_where_a_run_stopped(first_step):
    whole = take(train_batches(make_source(), batch_size=4, seed=3), 9)
    rest = take(
        train_batches(make_source(), batch_size=4, seed=3, first_step=first_step), 9 - first_step
    )
    for batch, other in zip(whole[first_step:], rest, strict=True):
        assert_same(batch, other)


def test_train_batches_of_two_hosts_are_the_halves_of_one():
    whole = take(train_batches(make_source(), batch_size=6, seed=0, first_step=2), 4)
    halves = [
        take(train_batches(make_source(), batch_size=6, seed=0, first_step=2, host=(i, 2)), 4)
        for i in range(2)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert all(len(part.mask) == 3 for part in parts)
        np.testing.assert_array_equal(batch.example_id, ids_of(parts))
        joined = np.concatenate([part.inputs["right"] for part in parts])
        np.testing.assert_array_equal(batch.inputs["right"], joined)


def test_train_batches_may_be_larger_than_the_source():
    batch = next(train_batches(make_source(3), batch_size=8, seed=0))
    counts = np.bincount(batch.example_id - 100, minlength=3)
    assert sorted(counts) == [2, 3, 3] and batch.mask.all()


def test_train_batches_refuse_a_size_that_does_not_divide_over_the_hosts():
    with pytest.raises(FusionError, match="batch_size 10 does not divide over 4 hosts"):
        train_batches(make_source(), batch_size=10, seed=0, host=(0, 4))


# Evaluation


@pytest.mark.parametrize(("num", "size"), [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_eval_batches_show_every_example_once_in_order(num, size):
    batches = list(eval_batches(make_source(num), batch_size=size))
    assert len(batches) == -(-num // size)
    assert all(len(batch.mask) == len(batch.inputs["left"]) == size for batch in batches)
    mask = np.concatenate([batch.mask for batch in batches])
    np.testing.assert_array_equal(ids_of(batches)[mask], np.arange(100, 100 + num))
    # Padding stands at the end only, and repeats the batch's first row.
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < num)
    last = batches[-1]
    assert (last.example_id[~last.mask] == last.example_id[0]).all()
    assert (last.inputs["right"][~last.mask] == last.inputs["right"][0]).all()


def test_eval_batches_can_start_later():
    found = list(eval_batches(make_source(10), batch_size=4, first=5))
    mask = np.concatenate([batch.mask for batch in found])
    np.testing.assert_array_equal(ids_of(found)[mask], np.arange(105, 110))


def test_batches_carry_what_is_present():
    present = np.array([[1, 1], [0, 1], [1, 0], [1, 1], [0, 1]], bool)
    batches = list(eval_batches(make_source(5, present=present), batch_size=4))
    np.testing.assert_array_equal(batches[0].present, present[:4])
    np.testing.assert_array_equal(batches[1].present, np.tile(present[4], (4, 1)))


def test_first_batch_looks_like_a_batch():
    source = make_source()
    blank, batch = first_batch(source.spec, size=4), next(eval_batches(source, batch_size=4))
    for name in ("left", "right"):
        assert blank.inputs[name].shape == batch.inputs[name].shape
        assert blank.inputs[name].dtype == batch.inputs[name].dtype
    assert blank.present.shape == batch.present.shape and blank.target.shape == batch.target.shape
    assert blank.target.dtype == batch.target.dtype and blank.mask.all()


# What is refused


def with_values(value, present=None):
    """A source whose example 103 holds `value` in its right input."""
    right = np.ones((5, 2), np.float32)
    right[3, 1] = value
    inputs = {"left": np.ones((5, 1), np.float32), "right": right}
    return make_source(5, inputs=inputs, present=present)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_present_input_that_is_not_finite_is_refused(value):
    here = np.ones((5, 2), bool)
    for present in (None, here):
        source = with_values(value, present)
        next(eval_batches(source, batch_size=3))
        with pytest.raises(FusionError, match=r"'right' of example 103 holds NaN or Inf"):
            list(eval_batches(source, batch_size=3))
        with pytest.raises(FusionError, match=r"'right' of example 103"):
            take(train_batches(source, batch_size=5, seed=0), 1)


def test_an_absent_input_may_hold_anything():
    present = np.ones((5, 2), bool)
    present[3, 1] = False
    batch = next(eval_batches(with_values(np.nan, present), batch_size=5))
    np.testing.assert_array_equal(batch.present, present)
    present[3] = [False, True]
    with pytest.raises(FusionError, match="example 103"):
        next(eval_batches(with_values(np.nan, present), batch_size=5))


def test_an_example_with_nothing_present_is_refused():
    present = np.ones((5, 2), bool)
    present[2] = False
    with pytest.raises(FusionError, match="example 102 has no modality present"):
        list(eval_batches(make_source(5, present=present), batch_size=4))


class Other:
    """A source that promises one thing and gives another."""

    def __init__(self, source, **shapes):
        self._source = source
        specs = {name: ArraySpec(shape, "float32") for name, shape in shapes.items()}
        self.spec = DataSpec(specs, num_classes=3)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, indices):
        return self._source[indices]


def test_a_record_that_does_not_match_the_specification_is_refused():
    indices = np.arange(2)
    with pytest.raises(FusionError, match=r"'right' has shape \(2,\) per example, expected \(3,\)"):
        make_batch(Other(make_source(), left=(1,), right=(3,)), indices, size=2)
    with pytest.raises(FusionError, match=r"'middle' is not among the inputs"):
        make_batch(Other(make_source(), left=(1,), middle=(2,)), indices, size=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": np.arange(9) % 3}, "'left' has 10 examples, the target 9"),
        ({"present": np.ones((8, 2), bool)}, r"present has shape \(8, 2\), expected \(10, 2\)"),
        ({"present": np.ones((10, 3), bool)}, r"present has shape \(10, 3\), expected \(10, 2\)"),
        ({"target": np.full(10, 0.5)}, "the target has dtype float64: give class numbers"),
        ({"example_id": np.arange(11)}, "'example_id' has 11 examples, the target 10"),
        ({"clusters": {"speaker": np.arange(3)}}, "'speaker' has 3 examples, the target 10"),
        ({"target": np.full(10, 3)}, r"a target lies outside 0\.\.2"),
        ({"target": np.arange(10) % 3 - 1}, r"a target lies outside 0\.\.2"),
    ],
)
def test_array_source_refuses_what_does_not_fit(fields, message):
    with pytest.raises(FusionError, match=message):
        make_source(**fields)


def test_array_source_states_its_specification_and_gives_records():
    source = make_source(6, clusters={"speaker": np.arange(6) // 2})
    assert source.spec == DataSpec(
        {"left": ArraySpec((1,), "uint8"), "right": ArraySpec((2,), "float32")}, 3, ("speaker",)
    )
    assert source.spec.names == ("left", "right") and len(source) == 6
    record = source[np.array([4, 0])]
    np.testing.assert_array_equal(record["speaker"], [2, 0])
    np.testing.assert_array_equal(record["example_id"], [104, 100])
    np.testing.assert_array_equal(record["inputs"]["right"], [[208, 208], [200, 200]])


def test_array_data_refuses_splits_that_differ_and_unknown_names():
    small, ids = make_source(4), np.arange(4)
    wide = ArraySource({"left": ids[:, None], "right": np.ones((4, 3))}, ids % 3, num_classes=3)
    more = make_source(4, num_classes=4)
    for odd in (wide, more):
        with pytest.raises(FusionError, match="split 'test' has another specification"):
            ArrayData(train=small, validation=make_source(2), test=odd)
    data = ArrayData(train=small, validation=make_source(2), test=make_source(3))
    assert [len(data.source(split)) for split in ("train", "validation", "test")] == [4, 2, 3]
    with pytest.raises(FusionError, match="unknown split 'dev'"):
        data.source("dev")
