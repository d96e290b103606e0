"""Random streams: keys from names and numbers, nothing else."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.rng import example_keys, name_id, stream

PARTS = st.lists(st.one_of(st.text(max_size=8), st.integers(0, 2**32 - 1)), min_size=0, max_size=3)


def data(key) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize(
    # The check value of CRC-32/ISO-HDLC, the empty message, and one letter.
    ("name", "expected"),
    [("123456789", 0xCBF43926), ("", 0), ("a", 0xE8B7BE43)],
)
def test_name_id_is_the_crc32_of_the_name(name, expected):
    assert name_id(name) == expected


def test_name_id_tells_the_names_in_use_apart():
    names = ["noise", "dropout", "severity", "corruption", "modality_dropout", "audio", "image"]
    assert len({name_id(name) for name in names}) == len(names)


def test_stream_folds_in_its_parts_in_order(key):
    by_hand = jax.random.fold_in(jax.random.fold_in(key, 0xCBF43926), 3)
    np.testing.assert_array_equal(data(stream(key, "123456789", 3)), data(by_hand))
    assert (data(stream(key, 3, "123456789")) != data(by_hand)).any()
    np.testing.assert_array_equal(data(stream(key)), data(key))


@settings(max_examples=20, deadline=None)
@given(first=PARTS, second=PARTS)
def test_stream_can_be_taken_in_stages(first, second):
    root = jax.random.key(3)
    at_once = stream(root, *first, *second)
    np.testing.assert_array_equal(data(at_once), data(stream(stream(root, *first), *second)))


def test_stream_with_a_traced_step_is_the_stream_of_the_number(key):
    traced = jax.jit(lambda key, step: stream(key, "noise", step))(key, 41)
    np.testing.assert_array_equal(data(traced), data(stream(key, "noise", 41)))


def test_streams_of_different_parts_and_roots_differ(key):
    roots = [key, jax.random.key(8)]
    paths = [("noise",), ("dropout",), ("noise", 0), ("noise", 1), (0,), (1,), ("noise", "audio")]
    keys = [data(stream(root, *path)) for root, path in itertools.product(roots, paths)]
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_example_keys_do_not_depend_on_batch_position_or_size(key):
    ids = np.array([40, 7, 7_000_000, 0, 13, 99], np.int32)
    run = jax.jit(lambda key, ids: jax.random.key_data(example_keys(key, ids)))
    whole, order = np.asarray(run(key, ids)), np.array([5, 2, 0, 1, 4, 3])
    assert len(np.unique(whole, axis=0)) == 6
    np.testing.assert_array_equal(run(key, ids[order]), whole[order])
    np.testing.assert_array_equal(run(key, ids[3:4]), whole[3:4])
    np.testing.assert_array_equal(whole[1], data(jax.random.fold_in(key, 7)))
    assert (np.asarray(run(jax.random.key(8), ids)) != whole).any(axis=1).all()
