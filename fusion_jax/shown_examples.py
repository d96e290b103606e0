"""Examples of the worst cells of a grid, with pictures of what the model was given."""

import base64
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.cells import Cell, Condition, Conditions
from fusion_jax.evaluation.grid import corrupted_inputs, example_severities
from fusion_jax.evaluation.pictures import picture
from fusion_jax.evaluation.records import Records
from fusion_jax.sources import Source

WORST_CELLS = 10


def worst_examples(
    cells: Sequence[Cell],
    found: Sequence[Records],
    source: Source,
    conditions: Conditions,
    *,
    donors: Mapping[str, np.ndarray],
    key: jax.Array,
    sample_rates: Mapping[str, int],
    count: int = WORST_CELLS,
) -> list[dict[str, Any]]:
    """One example of each of the worst cells: the first new one that the first seed gets wrong.

    Cells with inputs of other examples are left aside, where there are others: nothing can be seen
    there.

    Args:
        cells: of the grid.
        found: records of every training seed.
        source: the examples.
        conditions: of the grid.
        donors: modality -> position of each example's donor.
        key: of the evaluation noise, so that the inputs are those that were evaluated.
        sample_rates: modality -> Hz, of waveforms.
        count: of cells.

    Returns:
        For each cell, the worst first: "cell", "example_id", "target", "predicted" (class numbers)
        and "pictures", modality -> PNG as a data address; modalities that are missing, or that
        there is no picture of, are left out.
    """
    accuracy = np.mean([records["correct"].mean(axis=1) for records in found], axis=0)
    shown: list[dict[str, Any]] = []
    first, used = found[0], set()
    ranked = np.argsort(accuracy, kind="stable").tolist()
    matched = [number for number in ranked if not cells[number].misaligned]
    for number in (matched or ranked)[:count]:
        wrong = np.flatnonzero(first["correct"][number] == 0).tolist() or [0]
        # Another one each time, where there is another.
        index = next((one for one in wrong if one not in used), wrong[0])
        used.add(index)
        record = source[np.array([index])]
        pictures = {}
        for m, name in enumerate(source.spec.names):
            here = record.get("present", np.ones((1, len(source.spec.names)), bool))[0, m]
            if name in cells[number].missing or not here:
                continue
            donor = source[donors[name][[index]]]["inputs"][name] if name in donors else None
            x = given_input(
                record["inputs"][name],
                cells[number].condition(name),
                conditions.corruptions.get(name, ()),
                name=name,
                example_id=record["example_id"],
                donor=donor,
                key=key,
            )
            png = picture(np.asarray(x[0]), sample_rate=sample_rates.get(name))
            if png:
                pictures[name] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        shown.append(
            {
                "cell": first.cells[number],
                "example_id": int(first["example_id"][index]),
                "target": int(first["target"][index]),
                "predicted": int(first["predicted"][number, index]),
                "pictures": pictures,
            }
        )
    return shown


def given_input(
    x: np.ndarray,
    condition: Condition,
    corruptions: Sequence[Any],
    *,
    name: str,
    example_id: np.ndarray,
    donor: np.ndarray | None,
    key: jax.Array,
) -> np.ndarray:
    """Inputs [B, ...] of one modality as the grid corrupts them under a condition."""
    if not condition.corruption:
        return x
    corruption = next(each for each in corruptions if type(each).__name__ == condition.corruption)
    ids = jnp.asarray(example_id)
    severities = example_severities(condition, ids, key, modality=name)
    run = jax.jit(functools.partial(corrupted_inputs, corruption, modality=name))
    return np.asarray(run(x, severities, ids, key, donor))
