"""A data set and a model that train in a second."""

import functools

import numpy as np

from fusion_jax.config import Config, Parallel
from fusion_jax.data.arrays import ArrayData
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.optimizers import AdamW
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.sources import ArraySource
from fusion_jax.tasks.classification import ClassificationHead


@functools.cache
def make_data(separable=False):
    """Three classes seen through noise that small encoders learn by heart, or without noise."""

    def split(seed, rows):
        generator = np.random.default_rng(seed)
        target = np.arange(rows) % 3
        noise = 0 if separable else 1.5
        inputs = {
            name: np.float32(np.eye(3)[target] + noise * generator.normal(size=(rows, 3)))
            for name in ("left", "right")
        }
        return ArraySource(inputs, target, num_classes=3, first_id=1000 * seed)

    return ArrayData(train=split(0, 128), validation=split(1, 200), test=split(2, 200))


def make_config(*, data, scaling=False, strategy="jit", num_steps=60):
    return Config(
        model=FusionModel(
            encoders={name: MLPEncoder(hidden=(32,), features=8) for name in ("left", "right")},
            scheduler=StaticScheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(num_classes=3),
            temperature_scaling=scaling,
        ),
        data=data,
        optimizer=AdamW(learning_rate=3e-2),
        parallel=Parallel(strategy=strategy, min_shard_size=64),
        num_steps=num_steps,
        eval_every=30,
        batch_size=64,
        eval_batch_size=200,
        compilation_cache="",
    )
