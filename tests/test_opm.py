"""OPM's rates against NumPy, and what a training step does with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.balancing.opm import OPM
from fusion_jax.config import Recipe
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import SGD
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.step import drop_for_balance, make_train_step
from fusion_jax.types import TrainState
from tests.conftest import make_batch
from tests.test_ogm import make_case, plain_scales


@pytest.mark.parametrize("num", [2, 3])
def test_rates_are_those_of_a_numpy_reference(num):
    batch, output = make_case(num)
    balancer = OPM(base=0.4, strength=0.7)
    losses, scale, state = balancer.observe(balancer.init(num), batch, output)
    scores, _ = plain_scales(batch, output, 1)
    others = [np.mean([scores[i] for i in range(num) if i != m]) for m in range(num)]
    ratios = np.divide(scores, others)
    expected = [0.4 * (1 + 0.7 * np.tanh(ratio - 1)) if ratio > 1 else 0 for ratio in ratios]
    np.testing.assert_allclose(state["rate"], expected, rtol=1e-4)
    assert state["rate"][0] > 0.4 and not state["rate"][1:].any()
    np.testing.assert_array_equal(losses, 1)
    np.testing.assert_array_equal(scale, 1)


def test_steps_outside_of_start_and_end_drop_nothing():
    batch, output = make_case()
    balancer, rates = OPM(start=2, end=4, probability=1.0), []
    state = balancer.init(2)
    for step in range(6):
        rates.append(float(balancer.drop_rates(state, jax.random.key(step))[0]))
        _, _, state = balancer.observe(state, batch, output)
    assert [rate > 0 for rate in rates] == [False, False, True, True, False, False]


def test_a_share_of_the_steps_is_modulated():
    balancer = OPM(probability=0.3)
    state = {**balancer.init(2), "rate": jnp.asarray([0.6, 0.0])}
    keys = jax.random.split(jax.random.key(0), 2000)
    rates = jax.vmap(lambda key: balancer.drop_rates(state, key))(keys)
    assert set(np.unique(rates[:, 0]).tolist()) == {0.0, float(np.float32(0.6))}
    assert abs(float((rates[:, 0] > 0).mean()) - 0.3) < 0.03
    assert not rates[:, 1].any()


def step_and_state(balancer):
    model = FusionModel(
        encoders={name: MLPEncoder((4,), 4) for name in ("left", "right")},
        scheduler=StaticScheduler(),
        fusion=SumFusion(),
        head=ClassificationHead(num_classes=3),
    )
    tx = SGD(learning_rate=0.1, weight_decay=0.0).build(
        num_steps=10, path_to_modality=lambda path: None, modalities=("left", "right")
    )
    batch = make_batch(rows=64, missing=False)
    params = model.init(jax.random.key(0), batch.inputs, batch.present, train=False)["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections={},
        opt_state=tx.init(params),
        balancer=balancer.init(2),
        objective={},
        key=jax.random.key(1),
    )
    step = make_train_step(
        model=model,
        task=Classification(),
        objective=Supervised(unimodal_weight=1.0),
        balancer=balancer,
        recipe=Recipe(modality_dropout=0.0),
        tx=tx,
        num_steps=10,
    )
    return jax.jit(step), state, batch


def test_a_dropped_modality_learns_nothing_in_that_step():
    step, state, batch = step_and_state(OPM(probability=1.0))
    state = state.replace(balancer={**state.balancer, "rate": jnp.asarray([1.0, 0.0])})
    first, _ = step(state, batch)  # The learning rate warms up from 0.
    after, _ = step(first.replace(balancer=state.balancer), batch)
    moved = {
        name: any(
            np.any(a != b)
            for a, b in zip(
                jax.tree.leaves(after.params[f"encoders_{name}"]),
                jax.tree.leaves(state.params[f"encoders_{name}"]),
                strict=True,
            )
        )
        for name in ("left", "right")
    }
    assert moved == {"left": False, "right": True}


def test_the_view_loses_each_modality_at_its_rate_and_never_all():
    balancer = OPM(probability=1.0)
    _, state, batch = step_and_state(balancer)
    state = state.replace(balancer={**state.balancer, "rate": jnp.asarray([0.5, 0.0])})
    present = np.ones((64, 2), bool)
    present[:32, 1] = False
    batch = batch.replace(present=jnp.asarray(present))
    dropped = np.array(
        [
            drop_for_balance(
                balancer, state.replace(step=jnp.int32(step)), batch, jnp.zeros((64, 2))
            )[0].present
            for step in range(40)
        ]
    )
    assert dropped.any(axis=-1).all()
    assert dropped[:, :32, 0].all()  # Nothing else is there.
    assert abs(dropped[:, 32:, 0].mean() - 0.5) < 0.05 and dropped[:, 32:, 1].all()


@pytest.mark.parametrize(
    "fields", [{"base": 1.5}, {"strength": -1.0}, {"probability": 2.0}, {"start": -1}]
)
def test_numbers_out_of_range_are_refused(fields):
    with pytest.raises(FusionError, match=r"config\.balancer\."):
        OPM(**fields).init(2)
