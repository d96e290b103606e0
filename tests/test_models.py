"""FusionModel: any number of modalities, presence everywhere, one head for every subset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.blocks.presence import uniform_weights
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.concat import ConcatFusion
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel, parameter_modality
from fusion_jax.preprocess.standardise import Standardise
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.signals.dependence import Dependence
from fusion_jax.tasks.classification import ClassificationHead
from tests.conftest import NAMES, make_present


def make_model(num, fusion=None, scheduler=None):
    return FusionModel(
        encoders={name: MLPEncoder(hidden=(8,), features=6) for name in NAMES[:num]},
        scheduler=scheduler or UDMLScheduler(),
        fusion=fusion or SumFusion(),
        head=ClassificationHead(4),
    )


def make_inputs(num, rows=20, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=(rows, 5)).astype(np.float32) for name in NAMES[:num]}


def init(model, inputs, present):
    return jax.jit(lambda key: model.init(key, inputs, present, train=False))(jax.random.key(0))


@pytest.mark.parametrize("fusion", [SumFusion(), ConcatFusion()], ids=["sum", "concat"])
@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_absent_inputs_have_no_influence_even_as_nan(num, fusion):
    model, inputs = make_model(num, fusion), make_inputs(num, rows=40)
    present = jnp.asarray(make_present(40, num))
    variables = init(model, inputs, present)
    run = jax.jit(lambda inputs: model.apply(variables, inputs, present, train=False))
    broken = {
        name: np.where(present[:, [m]], x, np.nan)
        for m, (name, x) in enumerate(sorted(inputs.items()))
    }
    plain, with_nan = run(inputs), run(broken)
    np.testing.assert_array_equal(plain.prediction, with_nan.prediction)
    np.testing.assert_array_equal(plain.fusion.weights, with_nan.fusion.weights)
    assert plain.unimodal.shape == (40, num, 4)


def test_unimodal_is_the_prediction_with_one_modality_present():
    # With a static scheduler the model given modality m alone predicts the m-th unimodal logits.
    model, inputs = make_model(3, scheduler=StaticScheduler()), make_inputs(3)
    everything = jnp.ones((20, 3), bool)
    variables = init(model, inputs, everything)
    whole = model.apply(variables, inputs, everything, train=False)
    for m in range(3):
        alone = jnp.broadcast_to(jnp.arange(3)[None, :] == m, (20, 3))
        single = model.apply(variables, inputs, alone, train=False)
        np.testing.assert_allclose(single.prediction, whole.unimodal[:, m], atol=1e-6)


class Spy(Dependence):
    """Calls `predict` on stacked subsets and hands the logits out as a signal's value."""

    def __call__(self, inputs, *, train):
        num = len(inputs.modalities)
        subsets = jnp.stack([jnp.ones((20, num), bool), jnp.zeros((20, num), bool)])
        subsets = subsets.at[1, :, 0].set(True)
        logits = inputs.predict(subsets)
        assert logits.shape == (2, 20, 4)
        self.sow("seen", "logits", logits)
        return super().__call__(inputs, train=train)


def test_predict_is_the_models_own_head_on_a_subset_without_gradient():
    model = make_model(2, scheduler=StaticScheduler(signals=(Spy(),)))
    inputs, present = make_inputs(2), jnp.ones((20, 2), bool)
    variables = {k: v for k, v in init(model, inputs, present).items() if k != "seen"}
    _, seen = model.apply(variables, inputs, present, train=False, mutable=["seen"])
    logits = jax.tree.leaves(seen)[0]
    full = model.apply(variables, inputs, present, train=False).prediction
    np.testing.assert_allclose(logits[0], full, atol=1e-6)
    first_only = jnp.broadcast_to(jnp.array([[True, False]]), (20, 2))
    np.testing.assert_allclose(
        logits[1], model.apply(variables, inputs, first_only, train=False).prediction, atol=1e-6
    )

    def leak(params):
        _, seen = model.apply(
            {**variables, "params": params}, inputs, present, train=False, mutable=["seen"]
        )
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(seen))

    grads = jax.jit(jax.grad(leak))(variables["params"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_nothing_present_gives_zero_weights_and_finite_logits():
    model, inputs = make_model(2), make_inputs(2)
    present = jnp.zeros((20, 2), bool)
    output = model.apply(init(model, inputs, present), inputs, present, train=False)
    assert not np.any(output.fusion.weights) and np.isfinite(output.prediction).all()


def test_preprocessing_leaves_absent_rows_at_zero():
    model = FusionModel(
        preprocess={"acoustic": Standardise(mean=3.0, deviation=2.0)},
        encoders={name: MLPEncoder(hidden=(8,)) for name in NAMES[:2]},
        scheduler=StaticScheduler(),
        fusion=SumFusion(),
        head=ClassificationHead(4),
    )
    inputs, present = make_inputs(2), jnp.asarray(make_present(20, 2))
    prepared = model.apply({}, inputs, present, train=False, method="prepare")
    expected = np.where(present[:, :1], (inputs["acoustic"] - 3) / 2, 0)
    np.testing.assert_allclose(prepared["acoustic"], expected, atol=1e-6)
    assert not prepared["depth"][~np.asarray(present[:, 1])].any()


def test_uniform_weights_do_not_depend_on_the_scheduler_at_the_start():
    inputs, present = make_inputs(3), jnp.asarray(make_present(20, 3))
    model = make_model(3)
    output = model.apply(init(model, inputs, present), inputs, present, train=False)
    np.testing.assert_allclose(output.fusion.weights, uniform_weights(present), atol=1e-6)


def test_left_out_modality_is_refused_by_name():
    model, inputs = make_model(2), make_inputs(2)
    del inputs["depth"]
    with pytest.raises(FusionError, match="needs the modality 'depth'"):
        model.init(jax.random.key(0), inputs, jnp.ones((20, 2), bool), train=False)


def test_parameter_modality_names_the_owner():
    assert parameter_modality(("encoders_depth", "Dense_0", "kernel"), NAMES) == "depth"
    assert parameter_modality(("head", "Dense_0", "kernel"), NAMES) is None
    assert parameter_modality(("scheduler", "exponents"), NAMES) is None
