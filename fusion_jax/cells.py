"""The cells of a robustness grid: what is done to the inputs, and what that is called."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.errors import FusionError


@dataclasses.dataclass(frozen=True)
class Condition:
    """What is done to one modality.

    Attributes:
        corruption: class name of one of the modality's corruptions, "" for none.
        severity: in [0, 1].
        drawn: each example has a severity of its own, uniform in [0, severity].
        shared: the severity that is drawn for an example is the same in all modalities whose
            condition is shared, as where one cause harms them together.
    """

    corruption: str = ""
    severity: float = 0.0
    drawn: bool = False
    shared: bool = False


CLEAN = Condition()
# The corruption that gives a modality the input of another example: nothing is noisy then, so no
# weight should move, and only what compares modalities can notice. Its cells are looked at apart.
MISALIGNMENT = "Misalignment"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One condition of the grid.

    Attributes:
        noise: modality and what is done to it, for those that are not clean.
        missing: the modalities taken away.
    """

    noise: tuple[tuple[str, Condition], ...] = ()
    missing: tuple[str, ...] = ()

    def condition(self, modality: str) -> Condition:
        """What is done to a modality."""
        return dict(self.noise).get(modality, CLEAN)

    @property
    def misaligned(self) -> bool:
        """Whether an input may belong to another example."""
        return any(condition.corruption == MISALIGNMENT for _, condition in self.noise)

    @property
    def several(self) -> bool:
        """Whether more than one modality is touched, or examples differ in severity."""
        touched = len(self.noise) + (len(self.missing) if self.noise else 0)
        return touched > 1 or any(condition.drawn for _, condition in self.noise)


GRIDS = ("standard", "joint")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a model is evaluated under.

    Attributes:
        trained: modality -> the corruption that training used, or whose severities come first.
        unseen: modality -> corruptions of other kinds.
        severities: in (0, 1], of every corruption.
        training_severity: the largest severity of training, 0 where all of it was clean.
    """

    trained: Mapping[str, Any]
    unseen: Mapping[str, Sequence[Any]]
    severities: tuple[float, ...]
    training_severity: float

    @property
    def names(self) -> dict[str, str]:
        """Modality -> class name of the corruption in `trained`."""
        return {name: type(each).__name__ for name, each in self.trained.items()}

    @property
    def corruptions(self) -> dict[str, tuple[Any, ...]]:
        """Modality -> all of its corruptions, the one in `trained` first."""
        return {
            name: (
                *([self.trained[name]] if name in self.trained else ()),
                *self.unseen.get(name, ()),
            )
            for name in sorted({*self.trained, *self.unseen})
        }

    def cells(self, modalities: Sequence[str], grid: str = "standard") -> list[Cell]:
        """The cells, in the order of records and tables.

        Clean, each modality under the corruption of training and each missing pattern; each
        modality under the other corruptions; all modalities at once. The joint grid adds every
        condition of a modality with every one of another.

        Args:
            modalities: all names, in order.
            grid: "standard" or "joint".

        Raises:
            FusionError: for another grid.
        """
        if grid not in GRIDS:
            raise FusionError(f"there is no grid {grid!r}: choose one of {list(GRIDS)}")
        cells = robustness_cells(modalities, corrupted=self.names, severities=self.severities)
        for name in sorted(self.unseen):
            for corruption in self.unseen[name]:
                cells += single_cells({name: type(corruption).__name__}, self.severities)
        limits = sorted({self.training_severity, 1.0} - {0.0})
        cells += joint_cells(self.names, severities=self.severities, mixed=limits)
        if grid == "joint":
            kinds = {
                name: [type(each).__name__ for each in corruptions]
                for name, corruptions in self.corruptions.items()
            }
            cells += cross_cells(modalities, corruptions=kinds, severities=self.severities)
        return list(dict.fromkeys(cells))

    def strength(self, modality: str, condition: Condition) -> str:
        """The strength of a condition in words, as its corruption describes it."""
        kinds = {type(each).__name__: each for each in self.corruptions[modality]}
        return str(kinds[condition.corruption].describe(condition.severity))


def robustness_cells(
    modalities: Sequence[str],
    *,
    corrupted: Mapping[str, str],
    severities: Sequence[float],
) -> list[Cell]:
    """The clean cell, every corruptible modality at every severity, and every missing pattern.

    Args:
        modalities: all names, in order.
        corrupted: modality -> class name of its corruption.
        severities: in (0, 1].

    Returns:
        Cells, the clean one first. A missing pattern leaves at least one modality.
    """
    cells = [Cell(), *single_cells(corrupted, severities)]
    patterns = range(1, 2 ** len(modalities) - 1)
    missing = [
        tuple(name for m, name in enumerate(modalities) if pattern >> m & 1) for pattern in patterns
    ]
    return cells + [
        Cell(missing=names) for names in sorted(missing, key=lambda names: (len(names), names))
    ]


def single_cells(corrupted: Mapping[str, str], severities: Sequence[float]) -> list[Cell]:
    """Each modality alone corrupted, at every severity."""
    return [
        Cell(((name, Condition(corrupted[name], severity)),))
        for name in sorted(corrupted)
        for severity in severities
    ]


def joint_cells(
    corrupted: Mapping[str, str], *, severities: Sequence[float], mixed: Sequence[float]
) -> list[Cell]:
    """All modalities corrupted at once.

    Args:
        corrupted: modality -> class name of its corruption; with fewer than two there are no cells.
        severities: two modalities meet at every pair of these; more than two, where the pairs
            would be powers, all at the same severity.
        mixed: upper ends of severities that differ from example to example and modality to
            modality, one cell each, and one each where they are the same in all modalities:
            by itself each modality is as bad in both, but in the first another is often better.
    """
    names = sorted(corrupted)
    if len(names) < 2:
        return []
    together = (
        itertools.product(severities, repeat=2)
        if len(names) == 2
        else [(severity,) * len(names) for severity in severities]
    )
    cells = [
        Cell(tuple((n, Condition(corrupted[n], s)) for n, s in zip(names, each, strict=True)))
        for each in together
    ]
    return cells + [
        Cell(
            tuple(
                (name, Condition(corrupted[name], limit, drawn=True, shared=shared))
                for name in names
            )
        )
        for shared in (False, True)
        for limit in mixed
    ]


def cross_cells(
    modalities: Sequence[str],
    *,
    corruptions: Mapping[str, Sequence[str]],
    severities: Sequence[float],
) -> list[Cell]:
    """The full joint grid: each modality clean, missing or corrupted, in every combination.

    With two modalities all combinations; beyond, where they would be powers, all of every pair with
    the others clean. The clean cell is the first; nothing is missing altogether.

    Args:
        modalities: all names, in order.
        corruptions: modality -> class names of its corruptions.
        severities: in (0, 1], of every corruption.
    """
    states: dict[str, list[Condition | None]] = {
        name: [
            CLEAN,
            *(
                Condition(corruption, severity)
                for corruption in corruptions.get(name, ())
                for severity in severities
            ),
            None,
        ]
        for name in modalities
    }
    pairs = itertools.combinations(modalities, 2) if len(modalities) > 1 else [tuple(modalities)]
    found = dict.fromkeys(
        _cell(dict(zip(pair, each, strict=True)))
        for pair in pairs
        for each in itertools.product(*(states[name] for name in pair))
    )
    return [cell for cell in found if len(cell.missing) < len(modalities)]


def _cell(states: Mapping[str, Condition | None]) -> Cell:
    """The cell of some modalities' conditions, None for missing."""
    return Cell(
        tuple(
            (name, state)
            for name, state in states.items()
            if state is not None and state.corruption
        ),
        tuple(name for name, state in states.items() if state is None),
    )


def cell_label(cell: Cell, trained: Mapping[str, str]) -> str:
    """A stable name of a cell.

    "clean", "missing/audio+image", "noise/audio/0.4", "ImpulseNoise/image/0.4" (another corruption
    than the modality's in `trained`), "joint/audio/0.4+image/0.8", "mixed/0.4" (severities of
    examples differ, up to 0.4), "correlated/0.4" (as mixed, but the same in all modalities of an
    example). In joint cells a corruption that is not the modality's in `trained`
    stands before it, and a missing modality as such: "joint/Fog/image/0.4+missing/audio".

    Args:
        cell: the cell.
        trained: modality -> class name of the recipe's corruption.
    """
    if cell.noise and cell.noise[0][1].drawn:
        first = cell.noise[0][1]
        return f"{'correlated' if first.shared else 'mixed'}/{first.severity:g}"
    if not cell.several:
        if cell.missing:
            return "missing/" + "+".join(cell.missing)
        if not cell.noise:
            return "clean"
        [(name, condition)] = cell.noise
        family = "noise" if condition.corruption == trained.get(name) else condition.corruption
        return f"{family}/{name}/{condition.severity:g}"
    parts = [
        ("" if each.corruption == trained.get(name) else f"{each.corruption}/")
        + f"{name}/{each.severity:g}"
        for name, each in cell.noise
    ]
    parts += [f"missing/{name}" for name in cell.missing]
    return "joint/" + "+".join(parts)
