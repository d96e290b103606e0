"""What a model's inputs cost it: the sentences on losses, trust and inputs that do not match."""

import itertools
import math
from collections.abc import Sequence

from fusion_jax.report.results import Cell, Change, Curve, Results, change
from fusion_jax.report.words import GAP, condition, doubt, percent, points

# Changes below these are written as "about the same", not as a rise or a fall.
_WEIGHT_TOLERANCE = 0.005
_POINT_TOLERANCE = 0.05
_TOGETHER = "several inputs at once"
# Of an AUROC: from where on a signal is said to notice, and to notice in part.
_NOTICES, _NOTICES_IN_PART = 0.8, 0.6


def clean_sentence(results: Results) -> str:
    """Accuracy with nothing corrupted or missing, beside guessing."""
    accuracy = results.clean.accuracy
    many = len(results.seeds) > 1
    words = (
        f"With clean and complete input the model is right on {percent(accuracy.mean)} of the "
        f"{results.num_examples} examples of the {results.split} split{' on average' * many}"
    )
    if accuracy.low is not None and accuracy.high is not None:
        meaning = f"lowest to highest of {len(results.seeds)} training seeds"
        meaning = meaning if many else f"95{GAP}% bootstrap interval"
        words += f" ({meaning}: {percent(accuracy.low)} to {percent(accuracy.high)})"
    guess = percent(1 / results.num_classes)
    return f"{words}; guessing among {results.num_classes} classes gives {guess}."


def loss_sentences(results: Results) -> list[str]:
    """Say what costs accuracy, the costliest kind of fault first."""
    # What is misaligned is not damaged; `mismatch_sentences` is about it.
    both = [cell for cell in results.all_cells if cell.is_several and not cell.is_misaligned]
    curves = [curve for curve in results.curves if not curve[-1].is_misaligned]
    worst = [min(curve, key=lambda cell: cell.accuracy.mean) for curve in curves]
    by_modality: dict[str | None, Cell] = {}
    for cell in sorted(worst, key=lambda cell: cell.accuracy.mean):
        by_modality.setdefault(cell.modality, cell)
    kinds = {
        "a corrupted input": [cell for cell in by_modality.values() if cell.is_corrupted],
        "a missing input": results.patterns[1:],
        _TOGETHER: both,
    }
    # A curve that never leaves clean has no worst cell; it still counts as tested.
    tested = [bool(curves), len(results.patterns) > 1, bool(both)]
    losses = {}
    for (kind, cells), was_tested in zip(kinds.items(), tested, strict=True):
        changes = [change(results, cell, "accuracy") for cell in cells]
        if was_tested:
            losses[kind] = sorted(changes, key=lambda change: -change.amount)
    if not losses:
        return [
            "The grid has no corruption and no missing pattern, so this page says nothing about "
            "robustness."
        ]
    ranked = sorted(losses.items(), key=lambda item: -item[1][0].amount if item[1] else 0.0)
    return [
        _loss_sentence(results, kind, changes, index == 0)
        for index, (kind, changes) in enumerate(ranked)
    ]


def _loss_sentence(results: Results, kind: str, changes: Sequence[Change], is_first: bool) -> str:
    """One kind of fault: its three costliest cells, and a bound for the others."""
    costly = [change for change in changes if change.amount >= _POINT_TOLERANCE]
    if not costly:
        return f"No tested case of {kind} lowers the mean accuracy."
    # The worst joint cells are neighbours, and the bound of the others would be the next one.
    limit = 1 if kind == _TOGETHER else 3
    items: list[str] = []
    for each in costly[:limit]:
        verb = "accuracy is " if not items else ""
        left = percent(each.cell.accuracy.mean)
        items.append(
            f"{condition(results, each.cell)}, {verb}{points(each.amount)} lower, at {left}"
            f"{doubt(results, each)}"
        )
    rest = [change for change in changes if change not in costly[:limit]]
    if rest and kind != _TOGETHER:
        bound = max(0.0, max(change.amount for change in rest))
        items.append(
            f"the other {len(rest)} lose at most {points(bound)}"
            if len(rest) > 1
            else f"the other one loses {points(bound)}"
        )
    start = "The largest loss comes from" if is_first else "As for"
    if is_first and any(cell.is_misaligned for cell in results.all_cells):
        start = "Leaving misaligned inputs aside, the largest loss comes from"
    return f"{start} {kind}: {'; '.join(items)}."


def _weight_change(curve: Curve, modality: str) -> tuple[bool, str]:
    """Whether a weight is lower at the curve's end than at its start, and its course in words."""
    first, last = curve[0].by_seed("weights", modality), curve[-1].by_seed("weights", modality)
    means = [cell.mean("weights", modality) for cell in curve]
    difference = means[-1] - means[0]
    numbers = f"{means[0]:.2f} to {means[-1]:.2f}"
    if max(means) - min(means) < _WEIGHT_TOLERANCE:
        return False, f"stays at {means[0]:.2f}"
    if abs(difference) < _WEIGHT_TOLERANCE:
        return False, f"moves, but ends where it began ({numbers})"
    sign = math.copysign(1.0, difference)
    agree = sum((last[seed] - first[seed]) * sign > 0 for seed in first)
    words = f"{'falls' if difference < 0 else 'rises'} from {numbers}"
    if agree < len(first):
        return False, f"{words} on average, but only in {agree} of {len(first)} seeds"
    steps = [sign * (after - before) for before, after in itertools.pairwise(means)]
    if min(steps) < -_WEIGHT_TOLERANCE:
        words += ", not at every step"
    return difference < 0, words


def weight_sentence(results: Results) -> str:
    """Whether the fusion weight leaves the modality that is noisy."""
    if len(results.modalities) == 1:
        return "There is one modality, so there are no fusion weights to compare."
    noisy = [curve for curve in results.curves if not curve[-1].is_misaligned]
    curves = [
        curve
        for curve in results.weight_curves
        if curve in noisy and curve[-1].modality in results.modalities
    ]
    if not noisy:
        return ""
    if not curves:
        return (
            "The report has no fusion weights for these cells, so it cannot say whether they "
            "follow the noise."
        )
    found = []
    for curve in sorted(curves, key=_weight_gain):
        modality = str(curve[-1].modality)
        lower, words = _weight_change(curve, modality)
        found.append((lower, f"{modality} {words} ({curve[-1].corruption})"))
    num_lower = sum(lower for lower, _ in found)
    share = f" in {num_lower} of {len(found)} cases" if len(found) > 1 else ""
    seeds = " in every seed" if len(results.seeds) > 1 else ""
    outcome = f"falls{seeds}{share}" if num_lower else f"does not fall{seeds}"
    start = (
        "From clean input to the highest severity, the fusion weight of the corrupted modality "
        f"{outcome}"
    )
    if len(found) <= 4:
        # The exceptions come first.
        return f"{start}: {'; '.join(item for _, item in sorted(found, key=lambda pair: pair[0]))}."
    fall = [item for lower, item in found if lower]
    other = [item for lower, item in found if not lower][::-1]
    words = f"{start}, most where {'; '.join(fall[:2])}." if fall else f"{start}."
    if other:
        left = len(other) - 3
        more = f"; {left} more in the last table" if left > 0 else ""
        words += f" Where it does not fall: {'; '.join(other[:3])}{more}."
    return words


def _weight_gain(curve: Curve) -> float:
    """How much the weight of a curve's modality rises from its start to its end."""
    first, last = (cell.mean("weights", str(curve[-1].modality)) for cell in (curve[0], curve[-1]))
    return last - first


def mismatch_sentences(results: Results) -> list[str]:
    """Whether the model notices an input that belongs to another example; nothing is noisy then."""
    curves = [curve for curve in results.curves if curve[-1].is_misaligned]
    sentences = []
    for curve in curves:
        cell = curve[-1]
        lost = change(results, cell, "accuracy")
        loss = (
            f"accuracy is {points(lost.amount)} lower, at {percent(cell.accuracy.mean)}"
            if lost.amount >= _POINT_TOLERANCE
            else "accuracy is no lower"
        )
        sentences.append(
            f"With {cell.modality} {cell.strength or f'at severity {cell.severity:g}'}, {loss}"
            f"{doubt(results, lost) if lost.amount >= _POINT_TOLERANCE else ''}"
            f"{_agreement(cell)}{_trust(results, curve)}."
        )
    if results.worst.is_misaligned and results.worst.is_several:
        sentences.append(
            f"The worst of all {len(results.all_cells)} cells is of this kind: "
            f"{condition(results, results.worst)}, at {percent(results.worst.accuracy.mean)}; an "
            "input from another example can only be noticed beside one that belongs to this one."
        )
    return sentences


def _trust(results: Results, curve: Curve) -> str:
    """What the fusion weight of a misaligned modality does."""
    if curve not in results.weight_curves:
        return ""
    return f"; its fusion weight {_weight_change(curve, str(curve[-1].modality))[1]}"


def _agreement(cell: Cell) -> str:
    """What the agreement signal tells of a misaligned cell."""
    number = cell.number("separation", "Agreement", str(cell.modality))
    if number is None:
        return ", and the model has no agreement signal to notice it with"
    told = (
        "tells"
        if number.mean >= _NOTICES
        else "in part tells"
        if number.mean >= _NOTICES_IN_PART
        else "cannot tell"
    )
    return (
        f"; its agreement signal {told} such inputs from matching ones (AUROC {number.mean:.2f}, "
        "where 0.50 is chance)"
    )
