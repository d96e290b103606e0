"""A program of its own: train one model under the named strategies and write the losses.

python -m tests.training.strategy_run OUT SETTINGS, where SETTINGS is JSON: strategies, steps,
activation, x64, objective, and for several processes coordinator, num_processes and process_id.
"""

import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.balancing.none import NoBalancer
from fusion_jax.blocks.dropout import Dropout
from fusion_jax.blocks.norm import BatchNorm
from fusion_jax.config import Parallel, Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.fusion.concat import ConcatFusion
from fusion_jax.models import FusionModel, parameter_modality
from fusion_jax.objectives.ranked_confidence import RankedConfidence
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import AdamW
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training import hosts
from fusion_jax.training.parallel import DataParallel, make_strategy
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step
from fusion_jax.types import Batch, Features

NAMES = ("left", "right")
ROWS, VALID = 32, 21


class Encoder(nn.Module):
    """Batch statistics, dropout and an activation that is smooth or not."""

    activation: str = "gelu"
    features: int = 8

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        x = BatchNorm()(nn.Dense(16, use_bias=False)(x), train=train, mask=mask)
        x = Dropout(0.1)(getattr(nn, self.activation)(x), train=train)
        return Features(pooled=nn.Dense(self.features)(x))


def make_batch(seed: int, dtype: str) -> Batch:
    """32 rows, 21 of them valid, with missing modalities: whole devices hold padding only."""
    generator = np.random.default_rng(seed)
    present = generator.random((ROWS, 2)) > 0.2
    present[~present.any(axis=1), 0] = True
    return Batch(
        inputs={
            "left": generator.normal(size=(ROWS, 5)).astype(dtype),
            "right": generator.normal(size=(ROWS, 3)).astype(dtype),
        },
        present=present,
        target=generator.integers(0, 3, ROWS).astype(np.int32),
        mask=np.arange(ROWS) < VALID,
        example_id=np.arange(ROWS, dtype=np.int32) + 100,
    )


OBJECTIVES = {
    "supervised": Supervised(unimodal_weight=0.5),
    "ranked_confidence": RankedConfidence(num_examples=ROWS),
}


def parts(activation: str, steps: int, objective: str) -> dict:
    """What makes the step."""
    model = FusionModel(
        encoders={name: Encoder(activation) for name in NAMES},
        scheduler=UDMLScheduler(),
        fusion=ConcatFusion(),
        head=ClassificationHead(3),
    )
    tx = AdamW(learning_rate=3e-3).build(
        num_steps=steps,
        path_to_modality=lambda path: parameter_modality(path, NAMES),
        modalities=NAMES,
    )
    corruptions = {"left": GaussianNoise(deviation=1.0)}
    return {
        "model": model,
        "task": Classification(),
        "objective": OBJECTIVES[objective],
        "balancer": NoBalancer(),
        "recipe": Recipe(corruptions=corruptions, modality_dropout=0.3),
        "tx": tx,
        "num_steps": steps,
    }


def run(strategy: DataParallel, settings: dict) -> dict:
    """Losses, parameter sum, and what shows that the strategy is the one it claims to be."""
    dtype = "float64" if settings["x64"] else "float32"
    given = parts(settings["activation"], settings["steps"], settings["objective"])

    def init(key):
        state = create_state(
            model=given["model"],
            tx=given["tx"],
            balancer=given["balancer"],
            objective=given["objective"],
            example=make_batch(0, dtype),
            key=key,
        )
        wide = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
        return jax.tree.map(wide, state)

    state = strategy.create(init, jax.random.key(0))
    step = make_train_step(**given)
    compiled = strategy.compile(step, state)
    index, count = hosts.this_host()
    local = ROWS // count
    batches = [
        strategy.place_batch(
            jax.tree.map(lambda x: x[index * local : (index + 1) * local], make_batch(i, dtype))
        )
        for i in range(settings["steps"])
    ]
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    program = strategy.program(step, state)
    # A program with options for the compiler is traced by itself; a mapped one cannot be.
    trace = getattr(program, "trace", jax.make_jaxpr(program))
    traced = trace(state, batches[0])
    program = str(getattr(traced, "jaxpr", traced))
    losses = []
    given_away = jax.tree.leaves(state.params)
    for batch in batches:
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss"]))
    weight = float(metrics["weight"][0])
    total = float(
        jax.jit(lambda params: sum(x.sum() for x in jax.tree.leaves(params)))(state.params)
    )
    return {
        "losses": losses,
        "weight": weight,
        "parameter_sum": total,
        "dtype": str(jax.tree.leaves(state.params)[0].dtype),
        "split_parameters": split,
        "donated": all(leaf.is_deleted() for leaf in given_away),
        # Under pmap the mapped axis is bound by hand; under jit nothing is.
        "mapped": "shard_map[" in program and "psum[axes=('data',)" in program,
        "devices": strategy.mesh.size,
    }


def main(out: str, settings: dict) -> None:
    jax.config.update("jax_enable_x64", settings["x64"])
    hosts.start(**settings.get("hosts", {}))
    found = {}
    for name in settings["strategies"]:
        if name == "one":
            found[name] = run(DataParallel(jax.devices()[:1]), settings)
        else:
            found[name] = run(make_strategy(Parallel(name, min_shard_size=32)), settings)
    if hosts.is_lead():
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
