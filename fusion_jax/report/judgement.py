"""Whether a model knows when it is wrong, which of two runs to ship, and which limits are kept."""

import math
from collections.abc import Iterable, Mapping

from fusion_jax.report.results import Cell, Difference, Results, change
from fusion_jax.report.words import (
    GAP,
    condition,
    doubt,
    family,
    listed,
    other_run,
    percent,
    plural,
    points,
    signed,
)

_ECE_TOLERANCE = 0.01
# Of a failure AUROC: from where on confidence is said to tell right from wrong, in part, or hardly;
# below the last, answers that are wrong are the surer ones.
_KNOWS, _KNOWS_IN_PART, _MISLEADS = 0.8, 0.65, 0.4
# Sets that hold the right class this much less often than promised do not keep the promise.
_COVERAGE_TOLERANCE = 0.05


def short_sentence(results: Results) -> str:
    """The answer in one sentence: clean, worst, whether it knows, and against the other run."""
    matched, worst = results.worst_matched, results.worst
    items = [f"right on {percent(results.clean.accuracy.mean)} with clean input"]
    if len(results.all_cells) > 1:
        items[0] += f" and on {percent(matched.accuracy.mean)} in the worst cell"
        auroc = matched.number("failure_auroc")
        if auroc and matched is not results.clean:
            items.append(f"there {_judged(auroc.mean)}")
        if worst is not matched:
            accuracy = percent(worst.accuracy.mean)
            items.append(f"with an input of another example it is right on {accuracy} at worst")
    found = [each for each in results.differences.values() if each.real]
    if found:
        better, all_cells = sum(each.amount > 0 for each in found), len(results.differences)
        counts = f"{better} and worse in {len(found) - better} of {plural(all_cells, 'cell')}"
        items.append(f"against {other_run(results)} better in {counts}")
    elif results.differences:
        items.append(f"no difference from {other_run(results)} is real")
    text = "; ".join(items)
    return f"{text[0].upper()}{text[1:]}."


def knowledge_sentences(results: Results) -> list[str]:
    """Whether the model knows when it may be wrong, clean against the worst cell."""
    found = [_failure(results), _calibration(results), _coverage(results)]
    return [sentence for sentence in found if sentence]


def _failure(results: Results) -> str:
    """Whether confidence tells right from wrong."""
    worst, clean, matched = results.worst, results.clean, results.worst_matched
    before, after = clean.number("failure_auroc"), worst.number("failure_auroc")
    if after is None:
        return ""
    if worst is clean:
        words = f"With clean input {_judged(after.mean)}: failure AUROC {after.mean:.2f}"
        return f"{words} (0.50 is chance)."
    place = f"In the worst of all {len(results.all_cells)} cells, {condition(results, worst)},"
    words = f"{place} {_judged(after.mean)}: failure AUROC {after.mean:.2f}"
    if before is not None:
        words += f" against {before.mean:.2f} with clean input"
    words += " (0.50 is chance)"
    other = matched.number("failure_auroc")
    if matched not in (worst, clean) and other is not None:
        words += (
            f"; leaving misaligned inputs aside, the worst is {condition(results, matched)}, and "
            f"there {_judged(other.mean)} ({other.mean:.2f})"
        )
    return f"{words}."


def _judged(auroc: float) -> str:
    if auroc >= _KNOWS:
        return "confidence still tells right from wrong answers"
    if auroc >= _KNOWS_IN_PART:
        return "confidence tells right from wrong answers only in part"
    if auroc >= _MISLEADS:
        return "confidence hardly tells right from wrong answers"
    return "confidence misleads, wrong answers being the surer ones"


def _calibration(results: Results) -> str:
    """Whether stated confidence stays as reliable as on clean input."""
    cells = [cell for cell in results.all_cells if len(cell.by_seed("ece")) == len(results.seeds)]
    if results.clean not in cells:
        return ""
    clean = results.clean.mean("ece")
    worst = max(cells, key=lambda cell: cell.mean("ece"))
    start = f"The calibration error (ECE) is {clean:.3f} with clean input"
    if len(cells) == 1:
        return f"{start}."
    if worst.mean("ece") <= clean:
        return f"{start} and no higher in any other cell."
    found = change(results, worst, "ece")
    words = f"{start} and {worst.mean('ece'):.3f} at worst, {condition(results, worst)}"
    words += doubt(results, found)
    if worst.is_misaligned:
        matched = max(
            (cell for cell in cells if not cell.is_misaligned), key=lambda cell: cell.mean("ece")
        )
        words += f" ({matched.mean('ece'):.3f} at worst where no input is misaligned)"
    if found.amount < _ECE_TOLERANCE:
        return f"{words}: its confidence is about as far off as with clean input."
    return f"{words}: there its confidence is a less reliable guide."


def _coverage(results: Results) -> str:
    """Whether conformal sets keep their promise."""
    level = results.total("conformal", "level")
    clean, worst = (results.total("conformal", which) for which in ("clean", "worst"))
    if level is None or clean is None or worst is None:
        return ""
    kept = worst.mean >= level.mean - _COVERAGE_TOLERANCE
    where = " where no input is misaligned" if results.worst.is_misaligned else ""
    return (
        f"Sets of answers made to hold the right class {percent(level.mean)} of the time hold it "
        f"{percent(clean.mean)} of the time with clean input and {percent(worst.mean)} in the "
        f"worst cell{where}, so there the promise {'is kept' if kept else 'breaks'}."
    )


def comparison_sentences(results: Results) -> list[str]:
    """This run against another one: where each is better, and which to ship."""
    found = results.differences
    if not found:
        return []
    real = {label: each for label, each in found.items() if each.real}
    better = {label: each for label, each in real.items() if each.amount > 0}
    worse = {label: each for label, each in real.items() if each.amount < 0}
    seeds = results.comparison.get("seeds") or results.seeds
    shared = f"{plural(len(found), 'cell')} and {plural(len(seeds), 'training seed')}"
    start = f"Against {other_run(results)}, over the {shared} that both have,"
    mean = 100 * math.fsum(each.amount for each in found.values()) / len(found)
    average = f"the mean accuracy over all these cells is {_side(mean)}"
    if not real:
        largest = max(found, key=lambda label: abs(found[label].amount))
        each = found[largest]
        proof = f" (the largest, {signed(100 * each.amount)} points, has p = {each.p:.2f})"
        proof = proof if each.amount else ""
        ship = _ship(results, better, worse, mean)
        return [f"{start} no difference is real{proof}; {average}.", ship]
    counts = f"{start} {len(real)} of {len(found)} differences are real"
    counts = counts.replace("differences are", "difference is") if len(found) == 1 else counts
    sentences = [f"{counts}: this run is better in {len(better)} and worse in {len(worse)}."]
    for name, chosen in (("gain", better), ("loss", worse)):
        if chosen:
            sentences.append(_largest(results, name, chosen))
    clean = found.get("clean")
    if clean is not None:
        sure = "real" if clean.real else "not real"
        sentences.append(
            f"With clean input it is {_side(100 * clean.amount)} ({sure}), and {average}."
        )
    return [*sentences, _ship(results, better, worse, mean)]


def _side(amount: float) -> str:
    """Write a difference in points as what it means for this run."""
    if not round(amount, 1):
        return "the same"
    return f"{points(abs(amount))} {'higher' if amount > 0 else 'lower'}"


def _largest(results: Results, name: str, chosen: Mapping[str, Difference]) -> str:
    """The largest real gain or loss, and the kinds of fault it belongs to."""
    label = max(chosen, key=lambda each: abs(chosen[each].amount))
    cell = _by_label(results).get(label)
    place = condition(results, cell) if cell else label
    each = chosen[label]
    kinds = _kinds(results, chosen)
    spread = f"; by kind: {kinds}" if len(chosen) > 1 else ""
    return (
        f"Its largest real {name} is {signed(100 * each.amount)} points, {place} "
        f"({percent(each.here)} against {percent(each.other)}; 95{GAP}% interval "
        f"{signed(100 * each.low)} to {signed(100 * each.high)}){spread}."
    )


def _kinds(results: Results, labels: Iterable[str]) -> str:
    """Kinds of fault with the number of their cells, the most frequent first."""
    items = [f"{kind} ({count})" for kind, count in _counts(results, labels).items()]
    return listed(items[:4] + ["others"] * (len(items) > 4))


def _counts(results: Results, labels: Iterable[str]) -> dict[str, int]:
    """Count cells by kind of fault, the most frequent first."""
    cells, counts = _by_label(results), dict[str, int]()
    for label in labels:
        if label in cells:
            kind = family(cells[label])
            counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _by_label(results: Results) -> dict[str, Cell]:
    return {cell.label: cell for cell in results.all_cells}


def _ship(
    results: Results,
    better: Mapping[str, Difference],
    worse: Mapping[str, Difference],
    mean: float,
) -> str:
    """What the differences say about which run to ship, by accuracy alone.

    Args:
        results: of this run.
        better: the real differences in its favour.
        worse: those in the other's.
        mean: of all differences, in points.
    """
    other = other_run(results)
    if not better and not worse:
        return (
            "By accuracy there is no reason to prefer either: ship the one that is simpler or "
            "cheaper, or train more seeds to tell them apart."
        )
    if not worse:
        return f"Ship this run: it is better in {plural(len(better), 'cell')} and worse in none."
    if not better:
        return f"Ship {other}: it is better in {plural(len(worse), 'cell')} and worse in none."
    first, second = ("this run", other) if mean >= 0 else (other, "this run")
    wins, losses = (better, worse) if mean >= 0 else (worse, better)
    ahead, behind = _counts(results, losses), _counts(results, wins)
    # Kinds of fault in which the run that is worse on average wins more often than not.
    kinds = [
        f"{kind} ({plural(count, 'cell')} against {behind.get(kind, 0)})"
        for kind, count in ahead.items()
        if count > behind.get(kind, 0)
    ]
    where = listed(kinds[:4]) if kinds else "the few cells where it is better"
    return (
        f"Neither is better everywhere: ship {first} if all cells matter alike, and {second} if "
        f"what matters most is {where}."
    )


def threshold_sentence(results: Results) -> str:
    """How many limits are kept, and the first that is not."""
    checks = results.thresholds
    if not checks:
        return ""
    failed = [check for check in checks if not check["passed"]]
    if not failed:
        only = len(checks) == 1
        return "The one limit is kept." if only else f"All {len(checks)} limits are kept."
    first = failed[0]
    value = "not known" if first["value"] is None else f"{first['value']:.4g}"
    return (
        f"FAILED: {len(failed)} of {plural(len(checks), 'limit')} "
        f"{'is' if len(failed) == 1 else 'are'} not kept, among them {first['metric']} of "
        f"{first['cell']}, which is {value} (limit: {first['limit']})."
    )
