"""SIGTERM at the worst moment: during the last validation, when no step comes that would ask."""

import os
import signal

import pytest

from fusion_jax.config import Config, Recipe
from fusion_jax.data.arrays import ArrayData
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import Stopped
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.tasks.classification import ClassificationHead
from fusion_jax.training.loop import train
from tests.test_evaluate import make_split


class StoppedWhileRead:
    """A source of which reading sends SIGTERM, as a machine does that is taken away."""

    def __init__(self, source):
        self.source, self.spec = source, source.spec

    def __len__(self):
        return len(self.source)

    def __getitem__(self, indices):
        os.kill(os.getpid(), signal.SIGTERM)
        return self.source[indices]


@pytest.mark.slow
def test_sigterm_during_the_last_validation_stops_what_comes_after(tmp_path):
    splits = {name: make_split(40, 40 * i, i) for i, name in enumerate(("train", "test"))}
    validation = make_split(20, 80, 2)
    config = Config(
        model=FusionModel(
            encoders={name: MLPEncoder((4,), 4) for name in ("left", "right")},
            scheduler=StaticScheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(3),
        ),
        data=ArrayData(**splits, validation=StoppedWhileRead(validation)),
        recipe=Recipe(),
        num_steps=2,
        num_seeds=2,
        batch_size=8,
        eval_batch_size=24,
        compilation_cache="",
    )
    with pytest.raises(Stopped, match=r"stopped by SIGTERM after step 2: saved"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "seed_1").exists()
    config.data = ArrayData(**splits, validation=validation)
    assert int(train(config, tmp_path / "run").step) == 2
    assert (tmp_path / "run" / "seed_1").exists()
