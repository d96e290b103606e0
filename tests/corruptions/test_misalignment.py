"""Misalignment: whose input is lent, and to whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.corruptions.batch import corrupt_batch
from fusion_jax.corruptions.misalignment import Misalignment
from fusion_jax.data.donors import donor_indices
from fusion_jax.errors import FusionError


def test_donors_are_of_another_class_and_have_the_modality():
    generator = np.random.default_rng(0)
    target, present = generator.integers(0, 5, 400), generator.random(400) < 0.7
    donors = donor_indices(np.arange(400), target, present, name="audio")
    assert (target[donors] != target).all() and present[donors].all()


def test_donors_are_drawn_evenly():
    # 3000 borrowers of one class, 10 lenders: 300 each, with a standard deviation of 16.4.
    target = np.repeat([0, 1, 2], [3000, 6, 4])
    donors = donor_indices(np.arange(3010), target, np.ones(3010, bool), name="audio")[:3000]
    counts = np.bincount(donors - 3000, minlength=10)
    assert counts.sum() == 3000 and abs(counts - 300).max() < 5 * 16.4


def test_donors_depend_on_the_modality_and_the_id():
    target, here = np.arange(300) % 3, np.ones(300, bool)
    audio = donor_indices(np.arange(300), target, here, name="audio")
    np.testing.assert_array_equal(audio, donor_indices(np.arange(300), target, here, name="audio"))
    assert (audio != donor_indices(np.arange(300), target, here, name="image")).mean() > 0.9
    assert (audio != donor_indices(np.arange(300) + 300, target, here, name="audio")).mean() > 0.9


def test_donors_do_not_depend_on_the_order_of_the_split():
    generator = np.random.default_rng(1)
    ids, target, here = (
        np.arange(100) + 7,
        generator.integers(0, 4, 100),
        generator.random(100) < 0.8,
    )
    order = generator.permutation(100)
    before = ids[donor_indices(ids, target, here, name="audio")]
    after = ids[order][donor_indices(ids[order], target[order], here[order], name="audio")]
    np.testing.assert_array_equal(after, before[order])
    one = np.zeros(100, int)
    before = ids[donor_indices(ids, one, here, name="audio")]
    after = ids[order][donor_indices(ids[order], one, here[order], name="audio")]
    np.testing.assert_array_equal(after, before[order])


@pytest.mark.parametrize("target", [np.zeros(50, int), np.linspace(0, 1, 50), np.zeros((50, 2))])
def test_without_other_classes_a_donor_is_any_other_example(target):
    donors = donor_indices(np.arange(50), target, np.ones(50, bool), name="audio")
    assert (donors != np.arange(50)).all() and len(np.unique(donors)) > 25
    # An example without the modality may borrow from all who have it, which matters to nobody.
    here = np.arange(50) >= 2
    assert here[donor_indices(np.arange(50), target, here, name="audio")].all()


def test_too_few_donors_are_refused():
    with pytest.raises(FusionError, match="'audio' needs at least two examples that have it"):
        donor_indices(np.arange(3), np.arange(3), np.array([True, False, False]), name="audio")


def test_as_many_are_replaced_as_the_severity_says_and_whole():
    x, donor = jnp.zeros((4000, 3)), jnp.arange(1.0, 4001.0)[:, None] * jnp.ones((1, 3))
    keys = jax.random.split(jax.random.key(0), 4000)
    before = np.zeros(4000, bool)
    for severity in (0.0, 0.3, 0.6, 1.0):
        found = np.asarray(
            corrupt_batch(
                Misalignment(), x, keys=keys, severity=jnp.full(4000, severity), donor=donor
            )
        )
        replaced = found[:, 0] > 0
        np.testing.assert_array_equal(found, np.where(replaced[:, None], donor, 0))
        assert abs(replaced.mean() - severity) < 0.03 and (replaced >= before).all()
        before = replaced
    assert before.all()


def test_without_donors_it_is_refused():
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(FusionError, match="needs inputs of other examples"):
        corrupt_batch(Misalignment(), jnp.zeros((2, 3)), keys=keys, severity=jnp.ones(2))
    with pytest.raises(FusionError, match="needs a donor"):
        Misalignment()(jax.random.key(0), jnp.zeros(3), jnp.float32(1))
