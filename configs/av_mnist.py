"""Audio-visual MNIST: MNIST images with Free Spoken Digit recordings, small convolutional encoders.

python train.py --config=configs/av_mnist.py --workdir=runs/av_mnist

Variants, after a colon: `udml` (default), `static` (equal weights, same augmentation),
`transformer` (the same with a late-fusion transformer), `audio` and `image` (one modality alone,
same encoder and augmentation); `mwam`, `ogm` and `fixed` are `static` with that balancer; `qmf`
(weights by confidence, with its rank loss). A seed takes 4 to 7 minutes on 2 CPU cores; results of
three seeds, without those of `qmf`: docs/results/av_mnist.md.

`resnet18` is `udml` with ResNet-18 encoders of half the usual width (2.8 million parameters each).
"""

import functools

from fusion_jax.balancing.fixed import FixedScales
from fusion_jax.balancing.mwam import MWAM
from fusion_jax.balancing.none import NoBalancer
from fusion_jax.balancing.ogm import OGM
from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.white_noise import WhiteNoise
from fusion_jax.data.av_mnist import AVMNIST
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.encoders.resnet import ResNetEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.fusion.transformer import TransformerFusion
from fusion_jax.models import FusionModel
from fusion_jax.objectives.ranked_confidence import RankedConfidence
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import AdamW
from fusion_jax.preprocess.log_mel import LogMel
from fusion_jax.preprocess.standardise import Standardise
from fusion_jax.schedulers.qmf import QMFScheduler
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.tasks.classification import ClassificationHead

# Mean and standard deviation of the training images, in 8-bit grey levels.
MEAN, DEVIATION = 33.3, 78.6

VARIANTS = {
    "udml": (UDMLScheduler, ("audio", "image")),
    "static": (StaticScheduler, ("audio", "image")),
    "transformer": (StaticScheduler, ("audio", "image")),
    "mwam": (StaticScheduler, ("audio", "image")),
    "ogm": (StaticScheduler, ("audio", "image")),
    "fixed": (StaticScheduler, ("audio", "image")),
    "qmf": (QMFScheduler, ("audio", "image")),
    "audio": (StaticScheduler, ("audio",)),
    "image": (StaticScheduler, ("image",)),
    "resnet18": (UDMLScheduler, ("audio", "image")),
}

# Sides that are no multiple of 8 are repeated at their edge for the frequency ratio.
BALANCERS = {
    "mwam": functools.partial(MWAM, padding="edge"),
    "ogm": OGM,
    "fixed": FixedScales,
}

# Each modality must also stand alone, in every variant (chosen on validation). QMF keeps a history
# of each example: ids are positions among the 70,000 images.
OBJECTIVES = {
    "qmf": functools.partial(RankedConfidence, unimodal_weight=1.0, num_examples=70000),
}


def get_config(variant: str = "udml") -> Config:
    """The experiment."""
    if variant not in VARIANTS:
        raise FusionError(f"unknown variant {variant!r}: choose one of {list(VARIANTS)}")
    scheduler, modalities = VARIANTS[variant]
    deep = variant == "resnet18"
    # The stem's quarter resolution: at full resolution a step would take 16 times as long.
    encoder = functools.partial(ResNetEncoder, width=32, stem="imagenet") if deep else CNNEncoder
    preprocess = {"audio": LogMel(), "image": Standardise(mean=MEAN, deviation=DEVIATION)}
    corruptions = {"audio": WhiteNoise(), "image": GaussianNoise(deviation=DEVIATION)}
    return Config(
        model=FusionModel(
            preprocess={name: preprocess[name] for name in modalities},
            encoders={name: encoder() for name in modalities},
            scheduler=scheduler(),
            fusion=TransformerFusion() if variant == "transformer" else SumFusion(),
            head=ClassificationHead(num_classes=10),
        ),
        data=AVMNIST(modalities=modalities),
        recipe=Recipe(corruptions={name: corruptions[name] for name in modalities}),
        objective=OBJECTIVES.get(variant, functools.partial(Supervised, unimodal_weight=1.0))(),
        balancer=BALANCERS.get(variant, NoBalancer)(),
        optimizer=AdamW(learning_rate=1e-3 if deep else 4e-3),
        num_steps=2000,
        batch_size=128,
        eval_every=500,
    )
