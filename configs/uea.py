"""Racket sports from the wrist: accelerometer and gyroscope, 120 training examples.

python train.py --config=configs/uea.py --workdir=runs/uea

Variants, after a colon: `udml` (default), `static` (equal weights, same augmentation),
`accelerometer` and `gyroscope` (one sensor alone, same encoder and augmentation); `mwam` and `ogm`
are `static` with that balancer.

Under 2 minutes on 2 CPU cores shared with other work. Accuracy of `udml` on the 31 validation
examples, one seed: 0.84 at the kept checkpoint, 0.68 to 0.84 along the way (one example is 0.03).
"""

import functools

from fusion_jax.balancing.mwam import MWAM
from fusion_jax.balancing.none import NoBalancer
from fusion_jax.balancing.ogm import OGM
from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.data.uea import UEA
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import AdamW
from fusion_jax.preprocess.chain import Chain
from fusion_jax.preprocess.series_as_image import SeriesAsImage
from fusion_jax.preprocess.standardise_features import StandardiseFeatures
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.tasks.classification import ClassificationHead

# Mean and standard deviation of the three axes over the training examples and their time steps.
STATISTICS = {
    "accelerometer": ((2.66, -0.11, -1.91), (7.72, 6.67, 6.92)),
    "gyroscope": ((-0.24, -0.08, -0.33), (4.80, 4.16, 3.99)),
}

VARIANTS = {
    "udml": (UDMLScheduler, ("accelerometer", "gyroscope")),
    "static": (StaticScheduler, ("accelerometer", "gyroscope")),
    "mwam": (StaticScheduler, ("accelerometer", "gyroscope")),
    "ogm": (StaticScheduler, ("accelerometer", "gyroscope")),
    "accelerometer": (StaticScheduler, ("accelerometer",)),
    "gyroscope": (StaticScheduler, ("gyroscope",)),
}

# Sides that are no multiple of 8 are repeated at their edge for the frequency ratio.
BALANCERS = {"mwam": functools.partial(MWAM, padding="edge"), "ogm": OGM}


def get_config(variant: str = "udml") -> Config:
    """The experiment."""
    if variant not in VARIANTS:
        raise FusionError(f"unknown variant {variant!r}: choose one of {list(VARIANTS)}")
    scheduler, modalities = VARIANTS[variant]
    return Config(
        model=FusionModel(
            preprocess={
                name: Chain(stages=(StandardiseFeatures(*STATISTICS[name]), SeriesAsImage()))
                for name in modalities
            },
            encoders={name: CNNEncoder(widths=(16, 32), features=32) for name in modalities},
            scheduler=scheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(num_classes=4),
        ),
        data=UEA(problem="racket_sports", modalities=modalities),
        recipe=Recipe(
            # Thirty steps have little redundancy: a quarter of the default strengths spans the same
            # range.
            corruptions={
                name: GaussianNoise(
                    deviations=STATISTICS[name][1],
                    strengths=(0.0, 0.4, 0.8, 1.2, 1.6, 2.0),
                    reference=0.25,
                )
                for name in modalities
            }
        ),
        # Each sensor must also stand alone, in every variant.
        objective=Supervised(unimodal_weight=1.0),
        balancer=BALANCERS.get(variant, NoBalancer)(),
        optimizer=AdamW(learning_rate=2e-3),
        num_steps=600,
        batch_size=32,
        eval_batch_size=32,
        eval_every=100,
    )
