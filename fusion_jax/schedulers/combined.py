"""The combined scheduler: MA-AFS's gate over its own signals and UDML's."""

import dataclasses

import flax.linen as nn

from fusion_jax.gate import Gate, GatedScheduler
from fusion_jax.signals.agreement import Agreement
from fusion_jax.signals.dependence import Dependence
from fusion_jax.signals.entropy import Entropy
from fusion_jax.signals.predicted_noise import PredictedNoise


def _default_signals() -> tuple[nn.Module, ...]:
    return (Entropy(), Agreement(), PredictedNoise(), Dependence())


class CombinedScheduler(GatedScheduler):
    """Weights by a learned gate over entropy, agreement, predicted noise and dependence.

    Predicted noise says how noisy an input is by the noise trained on, entropy whether the
    modality still decides, agreement whether it stands against the others.

    Attributes:
        signals: what the gate reads.
        gate: the network; see `fusion_jax.gate.Gate`.

    References:
        The signals of Bennett et al., MA-AFS, arXiv 2506.12733, and Wei et al., UDML, arXiv
        2603.19681; their combination is ours.
    """

    signals: tuple[nn.Module, ...] = dataclasses.field(default_factory=_default_signals)

    @classmethod
    def example(cls) -> "CombinedScheduler":
        """A small instance for the conformance tests."""
        return cls(
            signals=(Entropy(), Agreement(), PredictedNoise(hidden=4), Dependence()),
            gate=Gate(hidden=(8,), warmup=0.0, ramp=0.0),
        )
