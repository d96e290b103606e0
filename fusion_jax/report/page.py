"""The HTML page of an evaluation: one self-contained file for a reader who has not seen the code.

`render_report` takes the dict that report.json holds and returns the page. Every sentence of the
verdict is computed from the numbers. Nothing is evaluated, averaged over examples or written to
disk here, and the page needs no network and no JavaScript.
"""

import math
from collections.abc import Mapping
from typing import Any

import jinja2

from fusion_jax.report import curves, judgement, panels, tables, verdict, words
from fusion_jax.report.drawing import plain_style
from fusion_jax.report.reading import read
from fusion_jax.report.results import Results


def render_report(report: Mapping[str, Any]) -> str:
    """Render an evaluation report as one self-contained HTML page.

    Args:
        report: what report.json holds: "schema" (2), "run", "data", "seeds", "cells" and "joint",
            one row per cell and training seed; accuracy and ECE in [0, 1]. "training_severity"
            (optional, default 0.4) is the highest severity of training, 0 or None where all of it
            was clean. Rows of corruptions that training did not use have "unseen". Optional:
            "summary" by training seed, "comparison" with another run, "thresholds" that were
            checked, and "examples" with pictures as PNG data addresses.

    Returns:
        The page: under 1 MB but for the pictures, without network resources and scripts.

    Raises:
        FusionError: where the schema is another one, the clean cell is missing, a cell lacks a
            training seed, or a picture is no PNG.
    """
    results = read(report)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fusion_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=words.percent, severity=words.severity)
    rows = [row for cell in results.all_cells for row in cell.rows]
    return environment.get_template("page.html.j2").render(
        run=report["run"],
        data=report["data"],
        results=results,
        spread=words.spread(results),
        charts=_charts(results),
        verdict=_verdict(results),
        has_weights=any(row.get("weights") for row in rows),
        tables=_tables(results),
        max_rows=tables.MAX_ROWS,
        guess_nll=math.log(results.num_classes),
    )


def _charts(results: Results) -> dict[str, Any]:
    with plain_style():
        return {
            "accuracy": curves.accuracy_charts(results),
            "missing": panels.missing_chart(results),
            "knowledge": panels.knowledge_chart(results),
            "weights": curves.weights_chart(results),
        }


def _tables(results: Results) -> dict[str, Any]:
    return {
        "heat": tables.heat_map(results),
        "corruptions": tables.corruption_rows(results),
        "joint": tables.joint_rows(results),
        "contributions": tables.contributions(results),
        "correlations": tables.correlations(results),
        "knowledge": tables.knowledge_rows(results),
        "own_worst": tables.own_worst_cells(results),
        "comparison": tables.comparison(results),
        "worst": tables.worst_rows(results),
        "examples": tables.examples(results),
        "cells": [tables.cell_row(results, cell) for cell in tables.listed_cells(results)],
    }


def _verdict(results: Results) -> list[tuple[str, str]]:
    """Write the opening paragraph: pairs of a lead-in and what follows it."""
    parts = [
        ("In short.", judgement.short_sentence(results)),
        ("Clean input.", verdict.clean_sentence(results)),
        ("What breaks it.", " ".join(verdict.loss_sentences(results))),
        ("Does it turn away from noise?", verdict.weight_sentence(results)),
        ("Does it notice inputs that do not match?", " ".join(verdict.mismatch_sentences(results))),
        ("Does it know when it may be wrong?", " ".join(judgement.knowledge_sentences(results))),
        ("Which run to ship?", " ".join(judgement.comparison_sentences(results))),
        ("Limits.", judgement.threshold_sentence(results)),
    ]
    if len(results.seeds) == 1:
        caution = (
            "All of this is one training seed: another training run may differ by more than the "
            "intervals show, and fusion weights and ECE come without an interval."
        )
        parts.append(("Caution.", caution))
    elif len(results.comparison.get("seeds", (0, 1))) == 1:
        caution = (
            "The runs share one training seed: what is called real is so for these two trainings, "
            "not for others of the same methods."
        )
        parts.append(("Caution.", caution))
    if results.split != "test":
        caution = (
            f"These are {results.split} examples: checkpoints may have been chosen on them, and "
            "others would then come out a little worse."
        )
        parts.append(("Split.", caution))
    return [(lead, text) for lead, text in parts if text]
