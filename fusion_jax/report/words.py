"""Numbers and cells in words, the same ones everywhere on the page."""

from collections.abc import Sequence

from fusion_jax.report.results import Cell, Change, Results

GAP = "\u00a0"  # keeps a number and its unit on one line


def short(text: str, limit: int = 24) -> str:
    """Cut a name to fit a chart."""
    # SVG is XML, and one control character in a name would make it unreadable.
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def percent(value: float) -> str:
    """Write a share in [0, 1]."""
    return f"{100 * value:.1f}{GAP}%"


def points(value: float) -> str:
    """Write a difference of two percentages."""
    return f"{value:.1f} points"


def signed(value: float, digits: int = 1) -> str:
    """Write a number with its sign, never a minus zero."""
    value = round(value, digits)
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def severity(value: float) -> str:
    """Write a severity in as few digits as it has."""
    return f"{value:g}"


def plural(count: int, word: str) -> str:
    """Write a count and what is counted."""
    return f"{count} {word}" + "s" * (count != 1)


def listed(items: Sequence[str]) -> str:
    """Join items as a sentence does."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def change_of_accuracy(results: Results, cell: Cell) -> str:
    """Change of the mean accuracy against clean, in signed points."""
    return signed(100 * (cell.accuracy.mean - results.clean.accuracy.mean))


def pattern(results: Results, missing: Sequence[str], *, limit: int = 1000) -> str:
    """Name a missing pattern: the shorter of what is missing and what is left."""
    if not missing:
        return "all present"
    left = [name for name in results.modalities if name not in missing]
    few_left = 0 < len(left) < len(missing)
    names = [short(name, limit) for name in (left if few_left else missing)]
    return f"{'only' if few_left else 'without'} {', '.join(names)}"


def condition(results: Results, cell: Cell) -> str:
    """Put a cell in words, to follow "accuracy" or precede a comma."""
    left = pattern(results, cell.missing)
    left = f"with {left}" if left.startswith("only") else left
    if not cell.is_corrupted:
        return left if cell.missing else "with clean input"
    if cell.is_drawn:
        # The corruptions are those of training, and a sentence needs no list of strengths here.
        which = "the same in all inputs" if cell.is_correlated else "different in each input"
        words = (
            f"with severities that differ between examples, {which}, "
            f"from 0 to {severity(cell.severity)}"
        )
    else:
        targets = [
            f"{corruption} on {name} at severity {severity(cell.severities[name])}"
            for name, corruption in cell.corruptions.items()
        ] or [f"{cell.corruption} at severity {severity(cell.severity)}"]
        words = f"with {listed(targets)}"
    notes = [str(cell.strength)] if cell.strength and not cell.is_drawn else []
    if is_unseen(results, cell):
        notes.append(_unseen_note(results, cell))
    elif cell.severity > results.training_severity:
        notes.append("beyond training")
    words += f" ({', '.join(notes)})" if notes else ""
    return f"{words}, {left}" if cell.missing else words


def _unseen_note(results: Results, cell: Cell) -> str:
    """Say what training did not use, by name where it used the rest."""
    kinds = [kind for name, kind in cell.corruptions.items() if results.recipe.get(name) != kind]
    known = cell.is_several and len(kinds) < len(cell.corruptions)
    return f"{listed(kinds)} not used in training" if known else "not used in training"


def is_unseen(results: Results, cell: Cell) -> bool:
    """Whether training did not use a corruption of the cell."""
    if not cell.is_several:
        return cell.unseen
    return any(results.recipe.get(name) != kind for name, kind in cell.corruptions.items())


def doubt(results: Results, change: Change) -> str:
    """Say in brackets what speaks against a change, "" where nothing does."""
    if change.sure:
        return ""
    many = len(results.seeds) > 1
    return " (not in every seed)" if many else f" (the 95{GAP}% intervals overlap)"


def spread(results: Results) -> str:
    """Say what an interval on the page means."""
    if len(results.seeds) > 1:
        return f"the lowest and the highest of the {len(results.seeds)} training seeds"
    examples = f"{results.split} examples"
    return f"the 95{GAP}% bootstrap interval over the {examples}, for the one training seed"


def family(cell: Cell) -> str:
    """Name the kind of fault that a cell belongs to."""
    if cell.is_several:
        return "several inputs at once"
    if not cell.is_corrupted:
        return "a missing input" if cell.missing else "clean input"
    return f"{cell.corruption} on {cell.modality}" if cell.modality else cell.corruption


def other_run(results: Results) -> str:
    """Name the run that this one is compared with."""
    return str(results.comparison.get("workdir") or "the other run")
