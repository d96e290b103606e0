"""UDML's released arithmetic, `official_udml`: what it keeps that the corrected mode does not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.blocks.gaussian import LOG_VARIANCE_LIMIT, GaussianCode, code_divergence
from fusion_jax.blocks.presence import gain, uniform_weights
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.concat import ConcatFusion
from fusion_jax.models import FusionModel
from fusion_jax.schedulers.udml import (
    UDMLScheduler,
    codes_divergence,
    official_udml,
    power_weights,
)
from fusion_jax.signals.dependence import Dependence
from fusion_jax.signals.predicted_noise import PredictedNoise
from fusion_jax.tasks.classification import ClassificationHead
from fusion_jax.types import Features, Signal
from tests.conftest import make_batch, make_features, make_scheduler_input

ROWS, MODALITIES = 12, 3


class Given(nn.Module):
    """A signal with the same given values in every row."""

    values: tuple[float, ...]

    @nn.compact
    def __call__(self, inputs, *, train):
        rows = jnp.broadcast_to(jnp.float32(self.values)[None], inputs.present.shape)
        return Signal(value=rows, aux_loss=jnp.zeros(rows.shape[0]))


class Leaning(Given):
    """A second one: signals of a scheduler are told apart by class."""


def coded_input(rows=ROWS, num=MODALITIES, seed=0):
    """A scheduler input whose features are Gaussian codes with one position."""
    inputs = make_scheduler_input(rows=rows, num=num, seed=seed)
    generator = np.random.default_rng(seed)
    features = {
        name: Features(
            pooled=value.pooled,
            log_variance=jnp.float32(generator.normal(size=value.pooled.shape)),
            second_moment=jnp.float32(generator.uniform(1, 3, value.pooled.shape)),
        )
        for name, value in inputs.features.items()
    }
    return inputs.replace(features=features)


def drawn(scheduler, inputs, seed=0):
    """Variables with drawn parameters: initial ones give equal scales."""
    variables = scheduler.init(jax.random.key(0), inputs, train=False)
    generator = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: x + 0.3 * generator.normal(size=x.shape).astype(np.float32),
        dict(variables).get("params", {}),
    )
    return {**variables, "params": params}


def run(scheduler, variables, inputs, *, train):
    """What a scheduler returns, with its collections."""
    return scheduler.apply(
        variables, inputs, train=train, mutable=True, rngs={"dropout": jax.random.key(1)}
    )


# Weights


@pytest.mark.parametrize("num", [2, 3])
def test_fusion_weights_carry_the_released_residual_gain(num):
    scale, lean = np.float64([1, 11, 4][:num]), np.float64([32, 10, 20][:num])
    inputs = coded_input(num=num)
    inputs = inputs.replace(present=jnp.ones((ROWS, num), bool))
    scheduler = official_udml(
        signals=(Given(tuple(scale)), Leaning(tuple(lean))), divergence_weight=0.0
    )
    found = scheduler.apply({}, inputs, train=False)
    share = scale**-2 / lean
    share /= share.sum()
    np.testing.assert_allclose(found.weights[0], (1 + num * share) / (2 * num), rtol=1e-5)
    # The operator's factors are in the ratio of the released 1 + w, whose w sums to M.
    factors = np.asarray(gain(found.weights, inputs.present))[0]
    np.testing.assert_allclose(factors * 2, 1 + num * share, rtol=1e-5)


def test_a_destroyed_modality_keeps_a_third_of_the_gain_of_a_clean_one():
    inputs = coded_input(num=2).replace(present=jnp.ones((ROWS, 2), bool))
    signals = (Given((1.0, 11.0)), Leaning((1.0, 1.0)))
    official = official_udml(signals=signals, divergence_weight=0.0)
    found = official.apply({}, inputs, train=False).weights[0]
    assert found[0] / found[1] == pytest.approx(2.94, abs=0.01)
    corrected = UDMLScheduler(signals=signals, exponents=(2.0, 1.0), learned=False)
    found = corrected.apply({}, inputs, train=False).weights[0]
    assert found[0] / found[1] == pytest.approx(121, rel=1e-4)


def test_exponents_are_fixed_in_official_mode_and_learned_in_corrected_mode():
    inputs = coded_input(num=2)
    variables = drawn(official_udml(), inputs)
    assert "exponents" not in variables["params"]
    assert official_udml().exponents == (2.0, 1.0) and UDMLScheduler().exponents == (0.5, 1.0)
    scheduler = UDMLScheduler(signals=(Given((1.0, 5.0)),), exponents=(0.5,))

    def first_weight(params):
        weights = scheduler.apply({"params": params}, inputs, train=True).weights
        return weights[jnp.argmax(inputs.present.all(axis=-1)), 0]

    params = scheduler.init(jax.random.key(0), inputs, train=False)["params"]
    value, gradient = jax.value_and_grad(first_weight)(params)
    # 1 / (1 + 5^-tau) at tau = 1/2, and its slope.
    assert value == pytest.approx(1 / (1 + 5**-0.5), rel=1e-5)
    assert gradient["exponents"][0] > 0


def test_wrong_modes_and_exponents_are_refused_in_one_line():
    inputs = coded_input(num=2)
    for scheduler, message in (
        (UDMLScheduler(mode="paper"), "scheduler.mode is 'paper': choose one of"),
        (UDMLScheduler(exponents=(1.0,)), "1 values for 2 signals: give one for each"),
        (UDMLScheduler(exponents=(0.5, 4.0)), r"each must lie in \(0, 4\)"),
        (UDMLScheduler(exponents=(0.0, 1.0)), r"each must lie in \(0, 4\)"),
        (UDMLScheduler(signals=(PredictedNoise(mode="x"),), exponents=(1.0,)), "mode is 'x'"),
        (UDMLScheduler(signals=(Dependence(mode="x"),), exponents=(1.0,)), "mode is 'x'"),
    ):
        with pytest.raises(FusionError, match=message) as error:
            scheduler.init(jax.random.key(0), inputs, train=False)
        assert "\n" not in str(error.value)
    with pytest.raises(FusionError, match=r"set encoders\.\w+\.probabilistic=True"):
        official_udml().init(jax.random.key(0), make_scheduler_input(), train=False)


def test_the_task_moves_the_estimator_through_the_weights_in_official_mode_alone():
    inputs = coded_input(num=2)
    coefficients = jnp.float32(np.random.default_rng(0).normal(size=(ROWS, 2)))

    def size(signals, mode):
        scheduler = official_udml(signals=signals, mode=mode, start=0.0, divergence_weight=0.0)
        variables = drawn(scheduler, inputs)

        def task(params):
            found, _ = run(scheduler, {**variables, "params": params}, inputs, train=True)
            return jnp.sum(coefficients * found.weights)

        gradient = jax.jit(jax.grad(task))(variables["params"])
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))

    signals = official_udml().signals
    assert size(signals, "official") > 1e-3
    assert size(signals, "corrected") == 0


@pytest.mark.parametrize("mode", ["official", "corrected"])
def test_weights_before_the_start_are_used_in_evaluation_in_official_mode_alone(mode):
    inputs = coded_input(num=2)
    scheduler = official_udml(mode=mode, divergence_weight=0.0)
    variables, equal = drawn(scheduler, inputs), uniform_weights(inputs.present)
    # progress, training, whether weights are equal
    cases = [(0.5, True, True), (0.7, True, False), (0.7, False, False)]
    cases.append((0.5, False, mode == "corrected"))
    for progress, train, same in cases:
        found, _ = run(scheduler, variables, inputs.replace(progress=progress), train=train)
        assert np.allclose(found.weights, equal, atol=1e-6) == same


def test_weights_are_finite_whatever_the_signals_say():
    # An overflow, a division by zero: the released code has no guard against what is not a number.
    values = jnp.float32([[[0.0, 0.0], [1e38, 1e-38]], [[0.0, 1e38], [1e-38, 0.0]]])
    for exponents in ([2.0, 1.0], [0.5, 1.0]):
        found = power_weights(values, jnp.float32(exponents), jnp.ones((2, 2), bool))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


# Losses


def test_official_estimator_is_affine_in_the_deviations_and_errs_in_standard_deviations():
    inputs = coded_input()
    signal = PredictedNoise(mode="official", hidden=8, loss_weight=0.1)
    variables = drawn(signal, inputs)
    found = signal.apply(variables, inputs, train=False)
    for m, name in enumerate(inputs.modalities):
        x = np.exp(np.float64(inputs.features[name].log_variance) / 2)
        for layer in (f"hidden_{name}", f"scale_{name}"):
            each = variables["params"][layer]
            x = x @ np.float64(each["kernel"]) + np.float64(each["bias"])
        np.testing.assert_allclose(found.value[:, m], np.exp(x[:, 0] / 2), rtol=1e-4)
    trained, _ = run(signal, variables, inputs, train=True)
    # A level of 1 is clean there: ours less 1.
    error = (np.float64(trained.value) - (1 + np.float64(inputs.noise_level))) ** 2
    expected = 0.1 * (error * np.asarray(inputs.present)).sum(axis=1)
    np.testing.assert_allclose(trained.aux_loss, expected, rtol=1e-4)
    assert (np.abs(trained.value - found.value) > 1e-4).any()  # dropout in training


def test_official_divergence_takes_the_level_as_a_variance_and_sums_over_positions():
    generator = np.random.default_rng(0)
    names, positions = sorted(make_features(ROWS, 2)), 5
    mean, log_variance = generator.normal(size=(2, 2, ROWS, positions, 4)).astype(np.float32)
    moment = mean**2 + np.exp(log_variance)
    features = {
        name: Features(
            pooled=jnp.asarray(mean[m].mean(axis=1)),
            tokens=jnp.asarray(mean[m]),
            log_variance=jnp.asarray(log_variance[m].mean(axis=1)),
            second_moment=jnp.asarray(moment[m].mean(axis=1)),
        )
        for m, name in enumerate(names)
    }
    inputs = make_scheduler_input(rows=ROWS, num=2).replace(features=features)
    level, present = np.asarray(inputs.noise_level), np.asarray(inputs.present)

    def divergence(prior):
        each = code_divergence(moment, log_variance, prior.T[:, :, None])  # [M, B, positions]
        return np.where(present.T[:, :, None], each, 0).sum(axis=0)

    official = divergence(1 + level).sum(axis=1)
    np.testing.assert_allclose(codes_divergence(inputs, mode="official"), official, rtol=1e-4)
    corrected = divergence(1 + level**2).mean(axis=1)
    np.testing.assert_allclose(codes_divergence(inputs), corrected, rtol=1e-4)
    scheduler = official_udml(signals=(Given((1.0, 1.0)),), exponents=(1.0,))
    added = scheduler.apply({}, inputs, train=True).aux_loss
    np.testing.assert_allclose(added, 1e-5 * official, rtol=1e-4)


def test_one_scale_in_the_corrected_mode():
    # What the estimator predicts is the deviation whose square is the prior variance of the code:
    # a code that matches that prior has no divergence, at any level.
    level = jnp.float32([[0.0], [0.7], [3.0]])
    variance = 1 + level**2
    features = {
        "m": Features(
            pooled=jnp.zeros((3, 4)),
            log_variance=jnp.broadcast_to(jnp.log(variance), (3, 4)),
            second_moment=jnp.broadcast_to(variance, (3, 4)),
        )
    }
    inputs = make_scheduler_input(rows=3, num=1).replace(
        features=features, noise_level=level, present=jnp.ones((3, 1), bool)
    )
    np.testing.assert_allclose(codes_divergence(inputs), 0, atol=1e-5)
    assert (np.asarray(codes_divergence(inputs, mode="official"))[1:] > 1e-2).all()


def test_code_variances_are_clamped_on_both_sides():
    x = jnp.float32([[[1e6, -1e6]], [[-1e6, 1e6]]])
    code = GaussianCode(2)
    params = {
        "mean": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
        "log_variance": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
    }
    found = code.apply({"params": params}, x, train=False)
    assert set(np.unique(found.log_variance)) == {-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT}
    assert np.isfinite(code_divergence(found.second_moment, found.log_variance, 11.0)).all()


# Dependence


def test_official_dependence_is_the_mean_unimodal_logit_size_of_the_last_batch():
    signal = Dependence(mode="official")

    def after(inputs, share):
        variables = {"scheduler": {"share": jnp.float32(share)}}
        return signal.apply(variables, inputs, train=True, mutable=True)[1]["scheduler"]["share"]

    inputs = make_scheduler_input(rows=ROWS, num=2)
    logits = [inputs.predict(jnp.eye(2, dtype=bool)[m][None, None])[0] for m in range(2)]
    size = np.abs(np.float64(logits)).sum(axis=-1)  # [M, B]
    rows = np.asarray(inputs.mask & inputs.present.all(axis=-1))
    assert (np.asarray(inputs.noise_level)[rows] > 0).any()  # noisy rows count too
    mean = size[:, rows].mean(axis=1)
    expected = mean / mean.mean()
    # Whatever was stored before: there is no average over steps, and no clipping.
    for share in ([1.0, 1.0], [0.3, 1.7]):
        np.testing.assert_allclose(after(inputs, share), expected, rtol=1e-5)
    corrected = Dependence().apply(
        {"scheduler": {"share": jnp.float32([0.3, 1.7])}}, inputs, train=True, mutable=True
    )[1]["scheduler"]["share"]
    np.testing.assert_allclose(corrected, [0.3, 1.7], atol=0.02)  # 1 % of a step


@pytest.mark.parametrize("mode", ["official", "corrected"])
@pytest.mark.slow
def test_dependence_is_measured_on_features_that_are_not_weighted(mode):
    # The released feedback, weights of a step that enter its dependence, is in neither mode.
    batch = make_batch(32, missing=False)
    shares, weights = [], []
    for scale in (1.0, 9.0):
        model = FusionModel(
            encoders={name: MLPEncoder(hidden=(8,), features=6) for name in ("left", "right")},
            scheduler=UDMLScheduler(
                signals=(Given((1.0, scale)), Dependence(mode=mode, decay=0.0)), learned=False
            ),
            fusion=ConcatFusion(),
            head=ClassificationHead(num_classes=3),
        )
        variables = model.init(jax.random.key(0), batch.inputs, batch.present, train=False)
        output, changed = model.apply(
            variables, batch.inputs, batch.present, train=True, mutable=["scheduler"]
        )
        shares.append(np.asarray(jax.tree.leaves(changed["scheduler"])[0]))
        weights.append(float(output.fusion.weights[0, 0]))
    assert weights[1] > weights[0] + 0.1
    assert np.abs(shares[0] - 1).max() > 1e-3
    np.testing.assert_array_equal(*shares)
