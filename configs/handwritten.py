"""Handwritten digits, six sets of features (the data set calls them views) as modalities.

python train.py --config=configs/handwritten.py --workdir=runs/handwritten

Variants, after a colon: `udml` (default), `static` (equal weights, same augmentation), `concat` and
`transformer` (the same with features side by side, or a late-fusion transformer), `average` (of the
modalities' own predictions), `qmf` (weights by confidence, with its rank loss), `probabilistic`
(`udml` with Gaussian codes and their divergence), `udml_official` (the released arithmetic),
`ma_afs` and `combined` (a learned gate over entropy and agreement, `combined` over UDML's signals
too), `combined_without_entropy`, `_agreement`, `_predicted_noise` and
`_dependence`, `static_two_views` and `transformer_two_views` (with the gates' objective), and
`fac`, `fou`, `kar`, `mor`, `pix` and `zer` (one modality alone). Controls of `udml`: `quality` (no
dependence), `constant` (weights that do not depend on the example), `permuted` (those of another
example), `true_severity` (told the noise). All have the same augmentation.

About a minute on 2 CPU cores, some of it for the 62 missing patterns of a validation. Accuracy of
`udml` on the 200 validation examples, one seed: clean 0.99, a modality at severities up to 0.4
0.988, a modality missing 0.958 in the mean over all patterns.
"""

import functools

from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.impulse_noise import ImpulseNoise
from fusion_jax.corruptions.misalignment import Misalignment
from fusion_jax.data.handwritten import MODALITIES, Handwritten, training_statistics
from fusion_jax.encoders.mlp import MLPEncoder
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
from fusion_jax.preprocess.standardise_features import StandardiseFeatures
from fusion_jax.schedulers.combined import SIGNALS, CombinedScheduler, combined_signals
from fusion_jax.schedulers.constant import ConstantScheduler
from fusion_jax.schedulers.ma_afs import MAAFSScheduler
from fusion_jax.schedulers.qmf import QMFScheduler
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.true_severity import TrueSeverityScheduler
from fusion_jax.schedulers.udml import UDMLScheduler, official_udml
from fusion_jax.signals.predicted_noise import PredictedNoise
from fusion_jax.tasks.classification import ClassificationHead


def _combined_without(name: str) -> CombinedScheduler:
    return CombinedScheduler(signals=combined_signals(without=name))


# Mean weights of `udml` on validation examples of mixed severity up to 0.4, in the order of names.
SHARES = (0.151, 0.170, 0.174, 0.190, 0.141, 0.174)
VARIANTS = {
    "udml": (UDMLScheduler, MODALITIES),
    "probabilistic": (lambda: UDMLScheduler(divergence_weight=1e-3), MODALITIES),
    "udml_official": (official_udml, MODALITIES),
    "static": (StaticScheduler, MODALITIES),
    "static_two_views": (StaticScheduler, MODALITIES),
    "transformer_two_views": (StaticScheduler, MODALITIES),
    "concat": (StaticScheduler, MODALITIES),
    "transformer": (StaticScheduler, MODALITIES),
    "average": (StaticScheduler, MODALITIES),
    "qmf": (QMFScheduler, MODALITIES),
    "ma_afs": (MAAFSScheduler, MODALITIES),
    "combined": (CombinedScheduler, MODALITIES),
    **{
        f"combined_without_{name}": (functools.partial(_combined_without, name), MODALITIES)
        for name in SIGNALS
    },
    # Controls of udml: what do adapting, dependence and knowing the noise contribute?
    "quality": (
        lambda: UDMLScheduler(signals=(PredictedNoise(),), exponents=(0.5,)),
        MODALITIES,
    ),
    "constant": (lambda: ConstantScheduler(shares=SHARES), MODALITIES),
    "permuted": (lambda: UDMLScheduler(permuted=True), MODALITIES),
    "true_severity": (TrueSeverityScheduler, MODALITIES),
    **{name: (StaticScheduler, (name,)) for name in MODALITIES},
}


# QMF keeps a history of each example: ids are positions among the 2,000 of all splits.
OBJECTIVES = {
    "qmf": functools.partial(RankedConfidence, num_examples=2000),
    "average": functools.partial(Supervised, fused_weight=0.0),
    "ma_afs": MAAFSObjective,
    **{
        name: MAAFSObjective
        for name in VARIANTS
        if name.startswith("combined") or name.endswith("_views")
    },
}
PROBABILISTIC = ("probabilistic", "udml_official")
FUSION = {
    "transformer": TransformerFusion,
    "transformer_two_views": TransformerFusion,
    "average": MeanFusion,
    "concat": ConcatFusion,
    "udml_official": ConcatFusion,
}


def get_config(variant: str = "udml") -> Config:
    """The experiment."""
    if variant not in VARIANTS:
        raise FusionError(f"unknown variant {variant!r}: choose one of {list(VARIANTS)}")
    scheduler, modalities = VARIANTS[variant]
    statistics = training_statistics()
    return Config(
        model=FusionModel(
            preprocess={name: StandardiseFeatures(*statistics[name]) for name in modalities},
            encoders={
                name: MLPEncoder(
                    hidden=(64,), dropout_rate=0.2, probabilistic=variant in PROBABILISTIC
                )
                for name in modalities
            },
            scheduler=scheduler(),
            fusion=FUSION.get(variant, SumFusion)(),
            head=ClassificationHead(num_classes=10),
        ),
        data=Handwritten(modalities=modalities),
        recipe=Recipe(
            # Every feature has a unit of its own: noise is in units of its standard deviation. Few
            # features have little redundancy: half of the default strengths spans the same range.
            corruptions={
                name: GaussianNoise(
                    deviations=statistics[name][1], strengths=(0.0, 0.8, 1.6, 2.4, 3.2, 4.0)
                )
                for name in modalities
            }
        ),
        # Each modality must also stand alone, in every variant.
        objective=OBJECTIVES.get(variant, Supervised)(unimodal_weight=1.0),
        unseen={
            name: (
                ImpulseNoise(means=statistics[name][0], deviations=statistics[name][1]),
                Misalignment(),
            )
            for name in modalities
        },
        optimizer=AdamW(learning_rate=2e-3),
        num_steps=500,
        batch_size=64,
        eval_batch_size=200,
        eval_every=250,
    )
