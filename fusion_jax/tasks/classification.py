"""Single-label classification: head, loss and metrics."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fusion_jax.calibration import adaptive_calibration_error, aurc, failure_auroc
from fusion_jax.errors import FusionError
from fusion_jax.metrics import classification_records, expected_calibration_error, weighted_mean
from fusion_jax.precision import at_least_float32
from fusion_jax.robustness import macro_f1
from fusion_jax.sources import DataSpec
from fusion_jax.types import Features


class ClassificationHead(nn.Module):
    """Linear map from fused features to class logits, in float32.

    Attributes:
        num_classes: K.
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Float[Array, "b k"]:
        """Logits [B, K]."""
        return nn.Dense(self.num_classes)(at_least_float32(features.pooled))


@dataclasses.dataclass
class Classification:
    """The task: what is lost on an example and what is reported.

    Attributes:
        label_smoothing: in [0, 1), in training only.
    """

    label_smoothing: float = 0.0

    def check(self, shape: tuple[int, ...], spec: DataSpec) -> None:
        """Refuse predictions of other classes than the data's: an unknown class would cost nothing.

        Raises:
            FusionError: for another number of classes.
        """
        if shape[-1] != spec.num_classes:
            raise FusionError(
                f"the model predicts {shape[-1]} classes, the data have {spec.num_classes}: give "
                f"its head num_classes={spec.num_classes}"
            )

    def loss(self, logits: Float[Array, "b k"], target: Int[Array, " b"]) -> Float[Array, " b"]:
        """Cross entropy of each row, natural log; `target` broadcasts to the rows of `logits`."""
        labels = optax.smooth_labels(nn.one_hot(target, logits.shape[-1]), self.label_smoothing)
        return optax.softmax_cross_entropy(at_least_float32(logits), labels)

    def records(self, logits: Float[Array, "b k"], target: Int[Array, " b"]) -> dict[str, Array]:
        """The device part of the metrics: per-example records, each [B]."""
        return classification_records(logits, target)

    def compute(self, records: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The host part: accuracy, nll and ece from records of any number of examples."""
        return {
            "accuracy": weighted_mean(records["correct"]),
            "nll": weighted_mean(records["nll"]),
            "ece": expected_calibration_error(records["confidence"], records["correct"]),
        }

    def report(
        self, records: Mapping[str, np.ndarray], target: Int[np.ndarray, " n"]
    ) -> dict[str, float | None]:
        """What `compute` gives and, for a report, more.

        "brier", "macro_f1", "adaptive_ece", "failure_auroc" (confidence telling right from wrong;
        None where all are right, or all wrong) and "aurc" (error rate over coverage).
        """
        confidence, correct = records["confidence"], records["correct"]
        predicted = records["predicted"]
        classes = int(max(predicted.max(), target.max())) + 1
        return {
            **self.compute(records),
            "brier": weighted_mean(records["brier"]),
            "macro_f1": macro_f1(predicted, target, num_classes=classes),
            "adaptive_ece": adaptive_calibration_error(confidence, correct),
            "failure_auroc": failure_auroc(confidence, correct),
            "aurc": aurc(confidence, correct),
        }

    @classmethod
    def example(cls) -> "Classification":
        """A small instance for the conformance tests."""
        return cls()
