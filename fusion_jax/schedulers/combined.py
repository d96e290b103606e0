"""The combined scheduler: MA-AFS's gate over its own signals and UDML's."""

import dataclasses

import flax.linen as nn

from fusion_jax.errors import FusionError
from fusion_jax.gate import Gate, GatedScheduler
from fusion_jax.signals.agreement import Agreement
from fusion_jax.signals.dependence import Dependence
from fusion_jax.signals.entropy import Entropy
from fusion_jax.signals.predicted_noise import PredictedNoise

SIGNALS: dict[str, type[nn.Module]] = {
    "entropy": Entropy,
    "agreement": Agreement,
    "predicted_noise": PredictedNoise,
    "dependence": Dependence,
}


def combined_signals(*, noise: str = "corrected", without: str = "") -> tuple[nn.Module, ...]:
    """The signals of the combined scheduler.

    Args:
        noise: mode of `PredictedNoise`: "corrected" reads encoders' features; "statistics" reads
            statistics of images, sound and series, which carry on where encoders saturate under
            noise beyond training.
        without: one of `SIGNALS` to leave out, to measure what it is worth.

    Raises:
        FusionError: for another name.
    """
    if without and without not in SIGNALS:
        raise FusionError(f"there is no signal {without!r}: choose one of {list(SIGNALS)}")
    return tuple(
        PredictedNoise(mode=noise) if kind is PredictedNoise else kind()
        for name, kind in SIGNALS.items()
        if name != without
    )


class CombinedScheduler(GatedScheduler):
    """Weights by a learned gate over entropy, agreement, predicted noise and dependence.

    Predicted noise says how noisy an input is by the noise trained on, entropy whether the
    modality still decides, agreement whether it stands against the others.

    Attributes:
        signals: what the gate reads, from `combined_signals`.
        gate: the network; see `fusion_jax.gate.Gate`.

    References:
        The signals of Bennett et al., MA-AFS, arXiv 2506.12733, and Wei et al., UDML, arXiv
        2603.19681; their combination is ours.
    """

    signals: tuple[nn.Module, ...] = dataclasses.field(default_factory=combined_signals)

    @classmethod
    def example(cls) -> "CombinedScheduler":
        """A small instance for the conformance tests."""
        return cls(
            signals=(Entropy(), Agreement(), PredictedNoise(hidden=4), Dependence()),
            gate=Gate(hidden=(8,), warmup=0.0, ramp=0.0),
        )
