"""What a report says of a run as a whole, from the records and rows of its grid."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.calibration import conformal_threshold, reliability, risk_coverage
from fusion_jax.robustness import change_rate, shapley, spearman_by_modality, worst

# Points of a risk-coverage curve in a report: enough for a line, whatever the number of examples.
CURVE_POINTS = 50
CONFORMAL_LEVEL = 0.9


def summarise(
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    records: Mapping[str, np.ndarray],
    *,
    modalities: Sequence[str],
    num_classes: int,
    misaligned: Collection[str] = (),
    calibration_nll: np.ndarray | None = None,
) -> dict[str, Any]:
    """Facts about one training seed that no single row holds.

    Args:
        rows: of the report, in the order of the cells.
        labels: names of the cells, "clean" among them.
        records: name -> [cells, N, ...].
        modalities: names in the order of the M axis.
        num_classes: of the task; guessing is right once in so many.
        misaligned: those of the labels under which an input may belong to another example.
        calibration_nll: [C] of clean examples of another split, for conformal prediction.

    Returns:
        A dict, JSON-ready:

        * "mean_accuracy": unweighted mean over all cells; "worst_cell" and "worst_accuracy", of
          those whose inputs belong together;
        * "change_rate": modality -> part of the clean accuracy that is lost without it (PCR);
        * "shapley": modality -> its share of what the accuracy is above guessing; the shares sum to
          clean accuracy - 1 / number of classes;
        * "weight_spearman", "signal_spearman": correlation with the injected level over the mixed
          cell of the widest range: of each fusion weight, and signal -> of each value;
        * "reliability", "risk_coverage": for the clean and the worst cell;
        * "conformal": coverage of split-conformal sets at level 0.9 calibrated on clean examples,
          for the clean and the worst cell; None without calibration examples.

        An entry is None where the grid lacks the cells for it.
    """
    accuracies = {label: float(row["accuracy"]) for label, row in zip(labels, rows, strict=True)}
    # No confidence can tell that an input is another example's: such cells would hide the rest.
    matched = {label: each for label, each in accuracies.items() if label not in misaligned}
    worst_label, worst_accuracy = worst(matched)
    shown = {"clean": labels.index("clean"), "worst": labels.index(worst_label)}
    subsets = _subsets(rows, modalities)
    return {
        "mean_accuracy": float(np.mean(list(accuracies.values()))),
        "worst_cell": worst_label,
        "worst_accuracy": worst_accuracy,
        "change_rate": _change_rates(subsets, modalities),
        "shapley": _shapley(subsets, modalities, num_classes),
        **_spearman(labels, records, modalities),
        "reliability": {name: _reliability(records, cell) for name, cell in shown.items()},
        "risk_coverage": {name: _risk_coverage(records, cell) for name, cell in shown.items()},
        "conformal": _conformal(records, shown, calibration_nll),
    }


def _subsets(
    rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]
) -> dict[frozenset[str], float]:
    """Clean accuracy by what is present."""
    return {
        frozenset(modalities) - frozenset(row["missing"]): float(row["accuracy"])
        for row in rows
        if row["corruption"] == "none"
    }


def _change_rates(
    subsets: Mapping[frozenset[str], float], modalities: Sequence[str]
) -> dict[str, float | None] | None:
    whole = frozenset(modalities)
    if len(modalities) < 2 or not all(whole - {name} in subsets for name in modalities):
        return None
    return {name: change_rate(subsets[whole], subsets[whole - {name}]) for name in modalities}


def _shapley(
    subsets: Mapping[frozenset[str], float], modalities: Sequence[str], num_classes: int
) -> dict[str, float] | None:
    if len(subsets) < 2 ** len(modalities) - 1:
        return None
    return shapley({**subsets, frozenset(): 1 / num_classes}, modalities)


def _spearman(
    labels: Sequence[str], records: Mapping[str, np.ndarray], modalities: Sequence[str]
) -> dict[str, Any]:
    mixed = [number for number, label in enumerate(labels) if label.startswith("mixed/")]
    if not mixed:
        return {"weight_spearman": None, "signal_spearman": None}
    cell = max(mixed, key=lambda number: float(labels[number].partition("/")[2]))
    level, present = records["noise_level"][cell], records["present"][cell]

    def against(name: str) -> dict[str, float | None]:
        return spearman_by_modality(records[name][cell], level, modalities, present=present)

    signals = {name for name in records if name.startswith("signal/")}
    return {
        "weight_spearman": against("weights") if "weights" in records else None,
        "signal_spearman": {name.partition("/")[2]: against(name) for name in sorted(signals)},
    }


def _reliability(records: Mapping[str, np.ndarray], cell: int) -> dict[str, list[Any]]:
    found = reliability(records["confidence"][cell], records["correct"][cell])
    return {
        "examples": [int(value) for value in found.examples],
        "confidence": [_finite(value) for value in found.confidence],
        "accuracy": [_finite(value) for value in found.accuracy],
    }


def _risk_coverage(records: Mapping[str, np.ndarray], cell: int) -> dict[str, list[float]]:
    coverage, risk = risk_coverage(records["confidence"][cell], records["correct"][cell])
    chosen = np.unique(np.linspace(0, len(coverage) - 1, CURVE_POINTS).round().astype(int))
    return {"coverage": coverage[chosen].tolist(), "risk": risk[chosen].tolist()}


def _conformal(
    records: Mapping[str, np.ndarray],
    shown: Mapping[str, int],
    calibration_nll: np.ndarray | None,
) -> dict[str, float] | None:
    """Share of examples whose class is in the set: its score 1 - p is at most the threshold."""
    if calibration_nll is None:
        return None
    threshold = conformal_threshold(-np.expm1(-np.float64(calibration_nll)), level=CONFORMAL_LEVEL)
    return {
        "level": CONFORMAL_LEVEL,
        **{
            name: float(np.mean(-np.expm1(-np.float64(records["nll"][cell])) <= threshold))
            for name, cell in shown.items()
        },
    }


def _finite(value: float) -> float | None:
    """A number for JSON: empty bins have none."""
    return float(value) if np.isfinite(value) else None
