"""UDML's arithmetic against numbers of the authors' code."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.balancing.none import NoBalancer
from fusion_jax.blocks.gaussian import GaussianCode, code_divergence
from fusion_jax.blocks.presence import uniform_weights
from fusion_jax.config import Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.encoders.resnet import ResNetEncoder
from fusion_jax.encoders.vit import ViTEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel, parameter_modality
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import AdamW
from fusion_jax.schedulers.udml import UDMLScheduler, codes_divergence, quality_weights
from fusion_jax.signals.predicted_noise import PredictedNoise, noise_cues
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step, make_view
from fusion_jax.types import Features
from tests.conftest import ROOT, make_batch, make_scheduler_input


@pytest.fixture(scope="module")
def golden():
    return np.load(ROOT / "tests" / "golden" / "udml_weights.npz")


def test_official_weights_are_the_released_ones(golden):
    with jax.enable_x64():
        scale = jnp.concatenate([golden["std_audio"], golden["std_visual"]], axis=1)
        found = quality_weights(scale, jnp.asarray(golden["dependence"]), mode="official")
        assert found.dtype == jnp.float64
        # Theirs sum to the number of modalities.
        np.testing.assert_allclose(2 * found[:, :1], golden["weight_audio"], rtol=1e-9)
        np.testing.assert_allclose(2 * found[:, 1:], golden["weight_visual"], rtol=1e-9)


def test_published_examples():
    weights = quality_weights(jnp.asarray([[1.0, 11.0]]), jnp.ones(2), mode="official")
    np.testing.assert_allclose(2 * weights[0], [1.984, 0.016], atol=1e-3)
    weights = quality_weights(jnp.full((1, 2), 3.0), jnp.asarray([32.0, 10.0]), mode="official")
    np.testing.assert_allclose(2 * weights[0], [0.476, 1.524], atol=1e-3)


def test_corrected_weights():
    even = quality_weights(jnp.full((4, 3), 2.0), jnp.ones(3))
    np.testing.assert_allclose(even, 1 / 3, rtol=1e-6)
    # Less where it is noisier, and less for the modality that the model leans on.
    noisy = quality_weights(jnp.asarray([[1.0, 4.0]]), jnp.ones(2))
    np.testing.assert_allclose(noisy[0, 0] / noisy[0, 1], 2, rtol=1e-5)  # 4^0.5
    leaning = quality_weights(jnp.ones((1, 2)), jnp.asarray([3.0, 1.0]))
    np.testing.assert_allclose(leaning[0], [0.25, 0.75], rtol=1e-5)
    present = jnp.asarray([[True, False], [False, False]])
    found = quality_weights(jnp.ones((2, 2)), jnp.ones(2), present=present)
    np.testing.assert_array_equal(found, [[1, 0], [0, 0]])
    with pytest.raises(FusionError, match="mode is 'paper'"):
        quality_weights(jnp.ones((1, 2)), jnp.ones(2), mode="paper")


def test_divergence_is_the_released_regulariser(golden):
    with jax.enable_x64():
        mu, std, level = (jnp.asarray(golden[name]) for name in ("mu", "std", "level"))
        found = code_divergence(mu**2 + std**2, jnp.log(std**2), level).mean()
        # The released code adds 1e-8 inside the logarithm.
        np.testing.assert_allclose(found, golden["kl"], rtol=1e-7)
        added = code_divergence(mu**2 + std**2, jnp.log(std**2 + 1e-8), level).mean()
        np.testing.assert_allclose(added, golden["kl"], rtol=1e-9)


def test_divergence_of_a_map_is_the_mean_over_its_positions():
    generator = np.random.default_rng(0)
    mu, log_variance = generator.normal(size=(2, 5, 7, 3))  # [positions, B, D]
    second = mu**2 + np.exp(log_variance)
    each = np.stack([code_divergence(second[i], log_variance[i], 1.7) for i in range(5)])
    pooled = code_divergence(second.mean(axis=0), log_variance.mean(axis=0), 1.7)
    np.testing.assert_allclose(pooled, each.mean(axis=0), rtol=1e-5)
    assert (each > 0).all()


# The probabilistic encoder


def test_code_is_drawn_in_training_and_its_mean_in_evaluation():
    x = np.random.default_rng(0).normal(size=(4000, 3, 5)).astype(np.float32)
    x[:] = x[:1]  # one input, many draws
    code = GaussianCode(2)
    variables = code.init(jax.random.key(0), x[:1], train=False)
    calm = code.apply(variables, x, train=False)
    drawn = code.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(calm.tokens[0], calm.tokens[-1])
    params = jax.tree.map(np.asarray, variables["params"]["log_variance"])
    deviation = np.exp(0.5 * (x[0] @ params["kernel"] + params["bias"]))
    np.testing.assert_allclose(drawn.tokens.mean(axis=0), calm.tokens[0], atol=0.1)
    np.testing.assert_allclose(drawn.tokens.std(axis=0), deviation, rtol=0.06)
    # The statistics are of the code, not of the draw.
    for one in (calm, drawn):
        np.testing.assert_allclose(
            one.log_variance[0], np.log(deviation**2).mean(axis=0), rtol=1e-4, atol=1e-5
        )
        second = (np.asarray(calm.tokens[0]) ** 2 + deviation**2).mean(axis=0)
        np.testing.assert_allclose(one.second_moment[0], second, rtol=1e-4)


def test_code_stays_finite_whatever_comes():
    huge = jnp.full((2, 3, 4), 1e6)
    code = GaussianCode(5)
    variables = code.init(jax.random.key(0), huge, train=False)
    found = code.apply(variables, huge, train=True, rngs={"dropout": jax.random.key(1)})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "kind",
    [CNNEncoder, MLPEncoder, pytest.param(ResNetEncoder, marks=pytest.mark.slow), ViTEncoder],
)
def test_every_encoder_can_be_probabilistic(kind):
    encoder, shape = kind.example()
    encoder = encoder.clone(probabilistic=True)
    x = jax.random.normal(jax.random.key(0), (3, *shape))

    def run(key):
        variables = encoder.init({"params": key, "dropout": key}, x, train=False)
        calm = encoder.apply(variables, x, train=False)
        drawn, _ = encoder.apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return calm, drawn

    calm, drawn = jax.jit(run)(jax.random.key(1))
    for found in (calm, drawn):
        assert found.pooled.shape == found.log_variance.shape == found.second_moment.shape
    assert (calm.pooled != drawn.pooled).any()
    # The estimator sees the same in training and in evaluation.
    np.testing.assert_allclose(noise_cues(calm), noise_cues(drawn), rtol=1e-5, atol=1e-6)
    assert (calm.grid is None) == (calm.tokens is None)


# The scheduler's stages and regulariser


def with_codes(inputs, seed=0):
    generator = np.random.default_rng(seed)
    features = {
        name: Features(
            pooled=value.pooled,
            log_variance=jnp.asarray(generator.normal(size=value.pooled.shape), jnp.float32),
            second_moment=jnp.asarray(generator.uniform(1, 3, value.pooled.shape), jnp.float32),
        )
        for name, value in inputs.features.items()
    }
    return inputs.replace(features=features)


def test_divergence_counts_present_modalities_against_their_total_noise():
    inputs = with_codes(make_scheduler_input(rows=12, num=3))
    expected = np.zeros(12)
    for m, name in enumerate(inputs.modalities):
        code = inputs.features[name]
        prior = 1 + np.asarray(inputs.noise_level[:, m]) ** 2
        each = code_divergence(code.second_moment, code.log_variance, prior)
        expected += np.where(inputs.present[:, m], each, 0)
    np.testing.assert_allclose(codes_divergence(inputs), expected, rtol=1e-5)
    with pytest.raises(FusionError, match=r"set encoders\.\w+\.probabilistic=True"):
        codes_divergence(make_scheduler_input())


def apply_scheduler(scheduler, inputs, *, train):
    variables = scheduler.init(jax.random.key(0), inputs, train=False)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + generator.normal(size=x.shape).astype(np.float32), variables["params"]
    )
    found, _ = scheduler.apply({**variables, "params": params}, inputs, train=train, mutable=True)
    return found


def test_weights_are_equal_before_the_start_in_training_and_evaluation():
    inputs = make_scheduler_input()
    scheduler = UDMLScheduler(signals=(PredictedNoise(hidden=4),), exponents=(0.5,), start=0.6)
    equal = uniform_weights(inputs.present)
    cases = itertools.product(((0.5, True), (0.7, False)), (True, False))
    for (progress, same), train in cases:
        found = apply_scheduler(scheduler, inputs.replace(progress=progress), train=train)
        assert np.allclose(found.weights, equal, atol=1e-6) == same
        assert np.any(found.aux_loss) == train  # the estimator learns from the first step


def test_regulariser_is_added_in_training_alone():
    inputs = with_codes(make_scheduler_input())
    fields = {"signals": (PredictedNoise(hidden=4),), "exponents": (0.5,)}
    plain = apply_scheduler(UDMLScheduler(**fields), inputs, train=True)
    scheduler = UDMLScheduler(**fields, divergence_weight=0.5)
    found = apply_scheduler(scheduler, inputs, train=True)
    added = 0.5 * codes_divergence(inputs)
    np.testing.assert_allclose(found.aux_loss, plain.aux_loss + added, rtol=1e-5)
    assert not np.any(apply_scheduler(scheduler, inputs, train=False).aux_loss)


NAMES = ("left", "right")


def make_parts(recipe):
    """A full UDML model for the batches of `make_batch`, and its state."""
    parts = {
        "model": FusionModel(
            encoders={
                name: MLPEncoder(hidden=(16,), features=6, probabilistic=True) for name in NAMES
            },
            scheduler=UDMLScheduler(start=0.5, divergence_weight=1e-3),
            fusion=SumFusion(),
            head=ClassificationHead(num_classes=3),
        ),
        "objective": Supervised(unimodal_weight=0.5),
        "balancer": NoBalancer(),
        "tx": AdamW(learning_rate=1e-2).build(
            num_steps=60,
            path_to_modality=lambda path: parameter_modality(path, NAMES),
            modalities=NAMES,
        ),
    }
    state = create_state(**parts, example=make_batch(2, missing=False), key=jax.random.key(0))
    step = make_train_step(**parts, task=Classification(), recipe=recipe, num_steps=60)
    return jax.jit(step), state


@pytest.mark.slow
def test_noise_begins_at_its_start():
    recipe = Recipe(
        corruptions={"left": GaussianNoise(deviation=1.0)}, noise_rate=1.0, noise_start=0.5
    )
    _, state = make_parts(recipe)
    batch = make_batch(16, missing=False)
    for progress, noisy in ((0.0, False), (0.49, False), (0.5, True), (1.0, True)):
        view, level = make_view("corrupted", batch, recipe, state, progress)
        assert (np.asarray(level[:, 0]) > 0).all() == noisy and not np.any(level[:, 1])
        assert (view.inputs["left"] != batch.inputs["left"]).any() == noisy


@pytest.mark.slow
def test_two_stages_train_in_one_program():
    recipe = Recipe(corruptions={"left": GaussianNoise(deviation=1.0)}, noise_start=0.5)
    step, state = make_parts(recipe)
    losses = []
    for number in range(60):
        state, metrics = step(state, make_batch(32, seed=number % 4))
        losses.append(float(metrics["task_loss"]))
        assert np.isfinite(list(map(float, (metrics["loss"], metrics["gradient_norm"])))).all()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert int(state.step) == 60
