"""What is timed and counted: UDML over two ResNet-18 at the published and at small shapes."""

import dataclasses
import runpy
from pathlib import Path

from fusion_jax.config import Config
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.encoders.resnet import ResNetEncoder
from fusion_jax.models import FusionModel
from fusion_jax.preprocess.standardise import Standardise
from fusion_jax.sources import ArraySpec, DataSpec
from fusion_jax.tasks.classification import ClassificationHead

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("audio", "image")
SPECS = {
    "av_mnist": DataSpec(
        {"audio": ArraySpec((8000,), "int16"), "image": ArraySpec((28, 28, 1), "uint8")}, 10
    ),
    "published": DataSpec(
        {"audio": ArraySpec((257, 188, 1), "float32"), "image": ArraySpec((224, 224, 3), "uint8")},
        6,
    ),
}


def experiment(shape: str, dtype: str = "float32") -> Config:
    """What is trained: `configs/av_mnist.py:resnet18`, or its recipe at the published shapes."""
    config = runpy.run_path(str(ROOT / "configs" / "av_mnist.py"))["get_config"]("resnet18")
    encoders = {name: each.clone(dtype=dtype) for name, each in config.model.encoders.items()}
    if shape == "av_mnist":
        return dataclasses.replace(config, model=config.model.clone(encoders=encoders))
    model = FusionModel(
        preprocess={"image": Standardise()},
        encoders={name: ResNetEncoder(width=64, stem="imagenet", dtype=dtype) for name in NAMES},
        scheduler=config.model.scheduler,
        fusion=config.model.fusion,
        head=ClassificationHead(num_classes=SPECS["published"].num_classes),
    )
    noise = {"audio": GaussianNoise(deviation=1.0), "image": GaussianNoise()}
    recipe = dataclasses.replace(config.recipe, corruptions=noise)
    return dataclasses.replace(config, model=model, recipe=recipe)
