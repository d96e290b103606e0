"""Noise in training: severities of a grid, independent modalities, and all kinds of input."""

import functools

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from fusion_jax.balancing.none import NoBalancer
from fusion_jax.config import Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.white_noise import WhiteNoise
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import SGD
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step, make_view
from fusion_jax.types import Batch, TrainState
from tests.conftest import make_batch

GRID = (0.1, 0.2, 0.4)
# Strength and noise level are the severity itself.
PLAIN = GaussianNoise(deviation=1.0, strengths=(0.0, 1.0))
BOTH = {"left": PLAIN, "right": PLAIN}

# Every kind of input with its noise. Axes: time, frequency, token, channel.
KINDS = {
    "image": ((9, 7, 3), np.uint8, GaussianNoise(deviation=64.0)),
    "series": ((11, 3), np.float32, GaussianNoise(deviations=(0.1, 1.0, 20.0))),
    "spectrogram": ((13, 5), np.float32, GaussianNoise(deviation=2.0)),
    "tokens": ((6, 8), np.float32, GaussianNoise(deviation=1.0)),
    "waveform": ((160,), np.int16, WhiteNoise()),
}


def make_state(step=3):
    """What a view reads of a state."""
    return TrainState(
        step=np.int32(step),
        params={},
        collections={},
        opt_state=(),
        balancer=(),
        objective=(),
        key=jax.random.key(0),
    )


@functools.cache
def view_program(kinds, severities):
    corruptions = {name: kind[2] for name, kind in KINDS.items()} if kinds else BOTH
    recipe = Recipe(corruptions=corruptions, severities=severities, modality_dropout=0.0)
    return jax.jit(lambda batch, step: make_view("corrupted", batch, recipe, step, 1.0))


def corrupted_view(batch, *, kinds=False, severities=GRID, step=3):
    view, level = view_program(kinds, severities)(batch, make_state(step))
    return jax.device_get((view.inputs, level))


def rows_of(batch, rows):
    return jax.tree.map(lambda x: x[rows], batch)


@pytest.fixture(scope="module")
def levels():
    """Severities [4000, 2]: with plain noise they are the noise levels."""
    return corrupted_view(make_batch(4000, missing=False))[1]


def test_severities_are_drawn_from_the_grid_each_as_often(levels):
    assert set(np.unique(levels)) == {0.0, *map(np.float32, GRID)}
    for column in levels.T:
        counts = [(column == np.float32(severity)).sum() for severity in GRID]
        assert chisquare(counts).pvalue > 1e-3
        assert (column == 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(4000))


def test_which_modality_is_clean_and_how_strong_the_others_are_is_independent(levels):
    # A correlation of 4000 (flags) or about 1000 (severities) pairs has standard error 1/sqrt(n).
    clean = levels == 0
    assert abs(np.corrcoef(clean.T)[0, 1]) < 4 / np.sqrt(4000)
    noisy = levels[~clean.any(axis=1)]
    assert 900 < len(noisy) < 1100
    assert abs(np.corrcoef(noisy.T)[0, 1]) < 4 / np.sqrt(len(noisy))


@pytest.mark.parametrize("severities", [(), GRID])
def test_severities_belong_to_the_example_and_not_to_its_place(severities):
    batch = make_batch(50, missing=False)
    inputs, level = corrupted_view(batch, severities=severities)
    order = np.random.default_rng(0).permutation(50)
    for rows in (order, order[:7]):
        part, part_level = corrupted_view(rows_of(batch, rows), severities=severities)
        np.testing.assert_array_equal(part_level, level[rows])
        for name in inputs:
            np.testing.assert_array_equal(part[name], inputs[name][rows])
    assert (corrupted_view(batch, severities=severities, step=4)[1] != level).any()


def test_without_a_grid_severities_fill_the_range():
    level = corrupted_view(make_batch(4000, missing=False), severities=())[1]
    noisy = level[level > 0]
    assert len(np.unique(noisy)) > 0.95 * len(noisy)
    assert noisy.min() < 0.001 and 0.399 < noisy.max() <= np.float32(0.4)
    assert noisy.mean() == pytest.approx(0.2, abs=4 * 0.4 / np.sqrt(12 * len(noisy)))


def batch_of_all_kinds(rows=24):
    generator = np.random.default_rng(0)
    inputs = {}
    for name, (shape, dtype, _) in KINDS.items():
        x = generator.normal(size=(rows, *shape))
        scale, offset = {"uint8": (40, 128), "int16": (2000, 0), "float32": (1, 0)}[
            np.dtype(dtype).name
        ]
        inputs[name] = (scale * x + offset).clip(0 if dtype == np.uint8 else None).astype(dtype)
    return Batch(
        inputs=inputs,
        present=np.ones((rows, len(KINDS)), bool),
        target=generator.integers(0, 3, rows).astype(np.int32),
        mask=np.ones(rows, bool),
        example_id=np.arange(rows, dtype=np.int32) + 100,
    )


def test_noise_reaches_every_kind_of_input_and_belongs_to_the_example():
    batch = batch_of_all_kinds()
    inputs, level = corrupted_view(batch, kinds=True)
    for m, name in enumerate(sorted(KINDS)):
        x = batch.inputs[name]
        assert inputs[name].dtype == x.dtype and inputs[name].shape == x.shape
        changed = (inputs[name] != x).reshape(len(x), -1).any(axis=1)
        np.testing.assert_array_equal(changed, level[:, m] > 0)
        assert 0 < changed.sum() < len(x)
    order = np.random.default_rng(1).permutation(24)
    for rows in (order, order[:9]):
        part, part_level = corrupted_view(rows_of(batch, rows), kinds=True)
        np.testing.assert_array_equal(part_level, level[rows])
        for name in KINDS:
            np.testing.assert_array_equal(part[name], inputs[name][rows], err_msg=name)


@pytest.mark.slow
def test_a_compiled_step_trains_on_every_kind_of_input_with_noise():
    batch = batch_of_all_kinds()
    model = FusionModel(
        encoders={name: MLPEncoder(hidden=(8,), features=6) for name in KINDS},
        scheduler=StaticScheduler(),
        fusion=SumFusion(),
        head=ClassificationHead(3),
    )
    recipe = Recipe(
        corruptions={name: kind[2] for name, kind in KINDS.items()},
        noise_rate=1.0,
        severities=GRID,
        noise_start=0.5,
        modality_dropout=0.0,
    )
    parts = {"model": model, "balancer": NoBalancer(), "objective": Supervised()}
    parts["tx"] = SGD().build(
        num_steps=10, path_to_modality=lambda path: None, modalities=tuple(sorted(KINDS))
    )
    state = create_state(**parts, example=batch, key=jax.random.key(0))
    step = jax.jit(make_train_step(**parts, task=Classification(), recipe=recipe, num_steps=10))

    def loss_at(number):
        after, metrics = step(state.replace(step=np.int32(number)), batch)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
        return float(metrics["loss"])

    # The same parameters and batch: before noise starts, steps have one loss, then each its own.
    clean = loss_at(0)
    assert loss_at(4) == clean
    noisy = [loss_at(5), loss_at(6)]
    assert loss_at(5) == noisy[0] and len({clean, *noisy}) == 3
