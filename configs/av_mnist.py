"""Audio-visual MNIST: MNIST images with Free Spoken Digit recordings, small convolutional encoders.

python train.py --config=configs/av_mnist.py --workdir=runs/av_mnist

Variants, after a colon: `udml` (default), `static` (equal weights, same augmentation), `concat` and
`transformer` (the same with features side by side, or a late-fusion transformer), `average` (of the
modalities' own predictions), `qmf` (weights by confidence, with its rank loss), `arm` (more weight
to what tells less), `probabilistic` (`udml` with Gaussian codes and their divergence),
`udml_official` (the released arithmetic), `ma_afs` (a learned gate over entropy and agreement),
`combined` (over UDML's signals too, with encoders whose tokens are read by transformers),
`combined_without_entropy`, `_agreement`, `_predicted_noise` and `_dependence`, `static_pooled`
(equal weights with `combined`'s encoders) and `static_pooled_two_views` (and its objective),
`audio` and `image` (one modality alone). Controls of `udml`: `quality` (no dependence), `constant`
(weights that do not depend on the example), `permuted` (those of another example), `true_severity`
(told the noise). `mwam`, `ogm`, `opm` and `fixed` are `static` with that balancer. All have the
same augmentation. A seed of 2,000 steps takes 2 to 7 minutes on 2 CPU cores; results:
docs/results/udml_av_mnist.md and schedulers_av_mnist.md (600 steps), of an earlier version
docs/results/av_mnist.md.

`resnet18` is `udml` with ResNet-18 encoders of half the usual width (2.8 million parameters each).
"""

import functools

from fusion_jax.balancing.fixed import FixedScales
from fusion_jax.balancing.mwam import MWAM
from fusion_jax.balancing.none import NoBalancer
from fusion_jax.balancing.ogm import OGM
from fusion_jax.balancing.opm import OPM
from fusion_jax.blocks.attention import TransformerPooling
from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.coloured_noise import ColouredNoise
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.impulse_noise import ImpulseNoise
from fusion_jax.corruptions.misalignment import Misalignment
from fusion_jax.corruptions.white_noise import WhiteNoise
from fusion_jax.data.av_mnist import AVMNIST
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.encoders.resnet import ResNetEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.concat import ConcatFusion
from fusion_jax.fusion.mean import MeanFusion
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.fusion.transformer import TransformerFusion
from fusion_jax.models import FusionModel
from fusion_jax.objectives.ma_afs import MAAFSObjective
from fusion_jax.objectives.ranked_confidence import RankedConfidence
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import AdamW
from fusion_jax.preprocess.log_mel import LogMel
from fusion_jax.preprocess.standardise import Standardise
from fusion_jax.schedulers.arm import ARMScheduler
from fusion_jax.schedulers.combined import SIGNALS, CombinedScheduler, combined_signals
from fusion_jax.schedulers.constant import ConstantScheduler
from fusion_jax.schedulers.ma_afs import MAAFSScheduler
from fusion_jax.schedulers.qmf import QMFScheduler
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.true_severity import TrueSeverityScheduler
from fusion_jax.schedulers.udml import UDMLScheduler, official_udml
from fusion_jax.signals.predicted_noise import PredictedNoise
from fusion_jax.tasks.classification import ClassificationHead

# Mean and standard deviation of the training images, in 8-bit grey levels.
MEAN, DEVIATION = 33.3, 78.6


def _combined_without(name: str) -> CombinedScheduler:
    return CombinedScheduler(signals=combined_signals(noise="statistics", without=name))


BOTH = ("audio", "image")
# Mean weights of `udml` on validation examples of mixed severity up to 0.4.
SHARES = (0.44, 0.56)
VARIANTS = {
    "udml": (UDMLScheduler, BOTH),
    "probabilistic": (lambda: UDMLScheduler(divergence_weight=1e-3), BOTH),
    "udml_official": (official_udml, BOTH),
    "static": (StaticScheduler, BOTH),
    "static_pooled": (StaticScheduler, BOTH),
    "static_pooled_two_views": (StaticScheduler, BOTH),
    "concat": (StaticScheduler, BOTH),
    "transformer": (StaticScheduler, BOTH),
    "average": (StaticScheduler, BOTH),
    "qmf": (QMFScheduler, BOTH),
    "arm": (ARMScheduler, BOTH),
    "ma_afs": (MAAFSScheduler, BOTH),
    "combined": (lambda: CombinedScheduler(signals=combined_signals(noise="statistics")), BOTH),
    **{
        f"combined_without_{name}": (functools.partial(_combined_without, name), BOTH)
        for name in SIGNALS
    },
    # Controls of udml: what do adapting, dependence and knowing the noise contribute?
    "quality": (lambda: UDMLScheduler(signals=(PredictedNoise(),), exponents=(0.5,)), BOTH),
    "constant": (lambda: ConstantScheduler(shares=SHARES), BOTH),
    "permuted": (lambda: UDMLScheduler(permuted=True), BOTH),
    "true_severity": (TrueSeverityScheduler, BOTH),
    "mwam": (StaticScheduler, BOTH),
    "ogm": (StaticScheduler, BOTH),
    "opm": (StaticScheduler, BOTH),
    "fixed": (StaticScheduler, BOTH),
    "audio": (StaticScheduler, ("audio",)),
    "image": (StaticScheduler, ("image",)),
    "resnet18": (UDMLScheduler, BOTH),
}

# QMF keeps a history of each example: ids are positions among the 70,000 images.
OBJECTIVES = {
    "qmf": functools.partial(RankedConfidence, num_examples=70000),
    "average": functools.partial(Supervised, fused_weight=0.0),
    "ma_afs": MAAFSObjective,
    **{
        name: MAAFSObjective
        for name in VARIANTS
        if name.startswith("combined") or name.endswith("_views")
    },
}
PROBABILISTIC = ("probabilistic", "udml_official")
# Each modality's tokens are read by a transformer of its own, in the place of their mean.
POOLED = ("combined", "static_pooled")
FUSION = {
    "transformer": TransformerFusion,
    "average": MeanFusion,
    "concat": ConcatFusion,
    "udml_official": ConcatFusion,
}

# Sides that are no multiple of 8 are repeated at their edge for the frequency ratio.
BALANCERS = {
    "mwam": functools.partial(MWAM, padding="edge"),
    "ogm": OGM,
    "opm": OPM,
    "fixed": FixedScales,
}


def get_config(variant: str = "udml") -> Config:
    """The experiment."""
    if variant not in VARIANTS:
        raise FusionError(f"unknown variant {variant!r}: choose one of {list(VARIANTS)}")
    scheduler, modalities = VARIANTS[variant]
    deep = variant == "resnet18"
    # The stem's quarter resolution: at full resolution a step would take 16 times as long.
    encoder = functools.partial(ResNetEncoder, width=32, stem="imagenet") if deep else CNNEncoder
    encoder = functools.partial(encoder, probabilistic=variant in PROBABILISTIC)
    preprocess = {"audio": LogMel(), "image": Standardise(mean=MEAN, deviation=DEVIATION)}
    corruptions = {"audio": WhiteNoise(), "image": GaussianNoise(deviation=DEVIATION)}
    unseen = {
        "audio": (ColouredNoise(), Misalignment()),
        "image": (ImpulseNoise(), Misalignment()),
    }
    return Config(
        model=FusionModel(
            preprocess={name: preprocess[name] for name in modalities},
            encoders={
                # Each modality has a reader of its own.
                name: encoder(pooling=TransformerPooling())
                if variant.startswith(POOLED)
                else encoder()
                for name in modalities
            },
            scheduler=scheduler(),
            fusion=FUSION.get(variant, SumFusion)(),
            head=ClassificationHead(num_classes=10),
        ),
        data=AVMNIST(modalities=modalities),
        unseen={name: unseen[name] for name in modalities},
        recipe=Recipe(corruptions={name: corruptions[name] for name in modalities}),
        # Each modality must also stand alone, in every variant (chosen on validation).
        objective=OBJECTIVES.get(variant, Supervised)(unimodal_weight=1.0),
        balancer=BALANCERS.get(variant, NoBalancer)(),
        optimizer=AdamW(learning_rate=1e-3 if deep else 4e-3),
        num_steps=2000,
        batch_size=128,
        eval_every=500,
    )
