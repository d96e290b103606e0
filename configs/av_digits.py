"""Robust audio-visual digits on the embedded data set: what `make train` runs.

python train.py --config=configs/av_digits.py --workdir=runs/av_digits

Variants: `configs/av_digits.py:static` weighs all modalities equally, with the same augmentation.
"""

from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.white_noise import WhiteNoise
from fusion_jax.data.av_digits import AVDigits
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.preprocess.log_mel import LogMel
from fusion_jax.preprocess.standardise import Standardise
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.tasks.classification import ClassificationHead

SCHEDULERS = {"udml": UDMLScheduler, "static": StaticScheduler}


def get_config(variant: str = "udml") -> Config:
    """The experiment; `variant` is the scheduler."""
    if variant not in SCHEDULERS:
        raise FusionError(f"unknown variant {variant!r}: choose one of {list(SCHEDULERS)}")
    return Config(
        model=FusionModel(
            preprocess={"audio": LogMel(), "image": Standardise(mean=77.8, deviation=95.9)},
            encoders={"audio": CNNEncoder(), "image": MLPEncoder()},
            scheduler=SCHEDULERS[variant](),
            fusion=SumFusion(),
            head=ClassificationHead(num_classes=10),
        ),
        data=AVDigits(),
        recipe=Recipe(
            # An 8x8 image has little redundancy: a quarter of the default strengths spans the same
            # range.
            corruptions={
                "audio": WhiteNoise(),
                "image": GaussianNoise(
                    deviation=95.9, strengths=(0.0, 0.4, 0.8, 1.2, 1.6, 2.0), reference=0.25
                ),
            },
        ),
        num_steps=1000,
        batch_size=64,
        eval_batch_size=300,
        eval_every=200,
    )
