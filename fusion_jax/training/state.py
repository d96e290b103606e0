"""The state before the first step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fusion_jax.models import FusionModel
from fusion_jax.rng import stream
from fusion_jax.types import Batch, TrainState


def create_state(
    *,
    model: FusionModel,
    tx: optax.GradientTransformation,
    balancer: Any,
    objective: Any,
    example: Batch,
    key: jax.Array,
) -> TrainState:
    """Initialise parameters, collections, optimiser, balancer and objective.

    Args:
        model: the model.
        tx: the optimiser.
        balancer: its `init(M)` gives its state.
        objective: its `init(M)` gives its state.
        example: a batch of the right shapes; its values do not matter.
        key: root key, kept in the state.
    """

    def init(root: jax.Array) -> TrainState:
        rngs = {"params": stream(root, "params"), "dropout": stream(root, "init_dropout")}
        variables = dict(model.init(rngs, example.inputs, example.present, train=False))
        params = variables.pop("params")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections=variables,
            opt_state=tx.init(params),
            balancer=balancer.init(len(model.modalities)),
            objective=objective.init(len(model.modalities)),
            key=root,
        )

    return jax.jit(init)(key)
