"""Suites: every corruption belongs to one, and all that are chosen for an input run on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.legacy_noise import LegacyNoise
from fusion_jax.corruptions.misalignment import Misalignment
from fusion_jax.sources import ArraySpec
from fusion_jax.suites import FEATURES, IMAGES, SERIES, SOUNDS, further_corruptions, kind_of
from tests.members import members

SPECS = {
    "image": (ArraySpec((16, 12, 3), "uint8"), None),
    "grey": (ArraySpec((16, 12, 1), "uint8"), None),
    "video": (ArraySpec((4, 16, 12, 1), "uint8"), None),
    "sound": (ArraySpec((2000,), "int16"), 8000),
    "floating sound": (ArraySpec((2000,), "float32"), 8000),
    "series": (ArraySpec((50, 3), "float32"), None),
    "features": (ArraySpec((7,), "float32"), None),
}


def test_every_corruption_is_in_a_suite():
    suites = {*IMAGES, *SOUNDS, *SERIES, *FEATURES, Misalignment}
    # The released noise is for comparison with published rows, not for a report.
    assert set(members("fusion_jax.corruptions")) - suites == {LegacyNoise}
    assert len(IMAGES) >= 19 and len(SOUNDS) >= 10


@pytest.mark.parametrize("name", SPECS)
def test_what_is_chosen_runs_on_the_input_and_keeps_its_shape(name):
    spec, rate = SPECS[name]
    found = further_corruptions(spec, (), sample_rate=rate)
    assert len({type(each) for each in found}) == len(found) > 4
    x = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    for corruption in found:
        made = jax.eval_shape(corruption, jax.random.key(0), x, jnp.float32(0.5), x)
        assert (made.shape, made.dtype) == (spec.shape, spec.dtype), type(corruption)
        assert corruption.describe(0.5)


def test_kinds_are_told_by_shape_and_dtype():
    kinds = {name: kind_of(spec, sample_rate=rate) for name, (spec, rate) in SPECS.items()}
    assert kinds["grey"] == kinds["video"] == "image"
    assert kinds["floating sound"] == "sound"
    assert (kinds["series"], kinds["features"]) == ("series", "features")
    unknown = ArraySpec((5, 4, 3, 2), "float32")
    assert kind_of(unknown, sample_rate=None) == ""
    [only] = further_corruptions(unknown, ())
    assert isinstance(only, Misalignment)


def test_known_corruptions_are_not_chosen_again_and_lend_their_units():
    known = (GaussianNoise(deviations=(1.0, 2.0, 3.0)),)
    found = further_corruptions(SPECS["series"][0], known)
    assert GaussianNoise not in {type(each) for each in found}
    drift = next(each for each in found if type(each).__name__ == "Drift")
    assert drift.deviations == (1.0, 2.0, 3.0)
    sounds = further_corruptions(SPECS["sound"][0], (), sample_rate=8000)
    assert {each.sample_rate for each in sounds if hasattr(each, "sample_rate")} == {8000}
    # A grey image has no saturation, and no other kind of unit is mistaken for the data's.
    grey = {type(each).__name__: each for each in further_corruptions(SPECS["grey"][0], known)}
    assert "Saturation" not in grey
    np.testing.assert_array_less(grey["Fog"].deviations, 1)
