"""MA-AFS: a light scheduler that weighs modalities by entropy and agreement."""

import dataclasses

import flax.linen as nn

from fusion_jax.gate import Gate, GatedScheduler
from fusion_jax.signals.agreement import Agreement
from fusion_jax.signals.availability import Availability
from fusion_jax.signals.entropy import Entropy


def _default_signals() -> tuple[nn.Module, ...]:
    return (Entropy(), Agreement(), Availability())


class MAAFSScheduler(GatedScheduler):
    """Weights by a learned gate over signals, by default entropy, agreement and availability.

    Only the abstract of the paper is public: that weights are per instance, that a lightweight
    network gives them, and that it reads entropies and agreement. What the entropies are of, the
    agreement, the network, the losses and every constant are ours (docs/methods.md).

    Attributes:
        signals: what the gate reads.
        gate: the network; see `fusion_jax.gate.Gate`.

    References:
        Bennett et al., MA-AFS, arXiv 2506.12733, abstract.
    """

    signals: tuple[nn.Module, ...] = dataclasses.field(default_factory=_default_signals)

    @classmethod
    def example(cls) -> "MAAFSScheduler":
        """A small instance for the conformance tests."""
        return cls(gate=Gate(hidden=(8,), warmup=0.0, ramp=0.0))
