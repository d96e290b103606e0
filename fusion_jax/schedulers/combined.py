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


def _default_signals() -> tuple[nn.Module, ...]:
    return tuple(kind() for kind in SIGNALS.values())


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


def combined_without(signal: str) -> CombinedScheduler:
    """The combined scheduler without one of its signals, to measure what the signal is worth.

    Args:
        signal: "entropy", "agreement", "predicted_noise" or "dependence".

    Raises:
        FusionError: for another one.
    """
    if signal not in SIGNALS:
        raise FusionError(f"there is no signal {signal!r}: choose one of {list(SIGNALS)}")
    rest = tuple(kind() for name, kind in SIGNALS.items() if name != signal)
    return CombinedScheduler(signals=rest)
