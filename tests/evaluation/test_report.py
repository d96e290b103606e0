"""Tests of the HTML report: what the page says must be what the numbers say."""

import base64
import copy
import html.parser
import itertools
import json
import math
import re

import matplotlib
import numpy as np
import pytest

from fusion_jax.errors import FusionError
from fusion_jax.evaluation.pictures import picture
from fusion_jax.report.page import render_report
from fusion_jax.report.panels import pooled_reliability
from fusion_jax.report.reading import read

DASH = "\u2013"
VOID = {"meta", "br", "link", "img", "hr", "input"}
SEVERITIES = (0.2, 0.4, 0.7, 1.0)


def strength(severity):
    return f"SNR {30 - 40 * severity:.0f} dB"


def make_row(*, seed, modalities, corruption="none", modality=None, severity=0.0, missing=()):
    """One row of a plausible grid: corrupted or missing inputs cost accuracy and weight."""
    label = "missing/" + "+".join(missing) if missing else "clean"
    return {
        "cell": f"{corruption}/{modality}/{severity:g}" if modality else label,
        "corruption": corruption,
        "modality": modality,
        "severity": severity,
        "strength": strength(severity) if modality else None,
        "unseen": False,
        "missing": list(missing),
    } | make_numbers(seed, modalities, {modality: severity} if modality else {}, missing)


def make_joint_row(*, seed, modalities, severities, missing=(), corruption="noise", drawn=""):
    """A row of several inputs: as evaluate.py writes it."""
    parts = [f"{name}/{severity:g}" for name, severity in severities.items()]
    parts += [f"missing/{name}" for name in missing]
    limit = max(severities.values())
    return {
        "cell": f"{drawn}/{limit:g}" if drawn else "joint/" + "+".join(parts),
        "corruption": drawn or "joint",
        "corruptions": dict.fromkeys(severities, corruption),
        "severities": dict(severities),
        "strength": ", ".join(strength(severity) for severity in severities.values()),
        "missing": list(missing),
    } | make_numbers(seed, modalities, severities, missing)


def make_numbers(seed, modalities, severities, missing):
    """Metrics and weights: losses add up."""
    loss = sum(0.5 * s / (1 + modalities.index(m)) for m, s in severities.items())
    loss += sum(0.3 / (2 + modalities.index(m)) for m in missing)
    accuracy = max(0.96 - loss, 0.1) + 0.004 * seed
    raw = {m: 0.0 if m in missing else math.exp(-severities.get(m, 0.0)) for m in modalities}
    return {
        "seed": seed,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.021,
        "accuracy_high": accuracy + 0.019,
        "nll": 0.05 + 2 * loss + 0.004 * seed,
        "ece": 0.011 + 0.2 * loss + 0.002 * seed,
        "brier": 0.1 + loss,
        "macro_f1": accuracy - 0.01,
        "adaptive_ece": 0.012 + 0.2 * loss,
        "failure_auroc": 0.95 - 0.4 * loss + 0.002 * seed,
        "aurc": 0.01 + loss / 2,
        "weights": {m: w / sum(raw.values()) for m, w in raw.items()},
        "signals": {},
        "separation": {},
    }


def make_summary(seed, modalities):
    """What evaluate.py says of one seed as a whole, for two or more modalities."""
    curve = {"coverage": [0.1, 0.5, 1.0], "risk": [0.0, 0.01, 0.04]}
    bins = {"examples": [0, 10, 290], "confidence": [None, 0.5, 0.9]}
    several = len(modalities) > 1
    return {
        "mean_accuracy": 0.8,
        "worst_cell": f"noise/{modalities[0]}/1",
        "worst_accuracy": 0.46,
        "change_rate": {m: 0.1 + 0.02 * seed for m in modalities} if several else None,
        "shapley": {m: 0.4 + 0.02 * seed for m in modalities} if several else None,
        "weight_spearman": {m: -0.5 - 0.1 * seed for m in modalities} if several else None,
        "signal_spearman": {"PredictedNoise": {m: 0.7 for m in modalities}} if several else {},
        "reliability": {
            "clean": {**bins, "accuracy": [None, 0.6, 0.96]},
            "worst": {**bins, "accuracy": [None, 0.3, 0.5]},
        },
        "risk_coverage": {"clean": curve, "worst": {**curve, "risk": [0.3, 0.4, 0.54]}},
        "conformal": {"level": 0.9, "clean": 0.91 + 0.01 * seed, "worst": 0.6},
    }


def make_report(*, modalities=("audio", "image"), seeds=(0, 1, 2), corruptions=("noise",)):
    """Make a full grid: clean, every missing pattern, every corruption of every modality."""
    modalities = tuple(sorted(modalities))
    patterns = [
        p for size in range(len(modalities)) for p in itertools.combinations(modalities, size)
    ]
    conditions = [{"missing": pattern} for pattern in patterns] + [
        {"corruption": corruption, "modality": modality, "severity": severity}
        for corruption in corruptions
        for modality in modalities
        for severity in SEVERITIES
    ]
    return {
        "schema": 2,
        "run": {
            "config": "configs/av_digits.py",
            "overrides": ["--config.num_steps=100"],
            "command": "python eval.py --workdir=runs/a",
            "commit": None,
            "versions": {"jax": "0.10.2"},
            "hardware": "cpu: 2 cores",
            "trained_steps": {str(seed): 1500 for seed in seeds},
        },
        "data": {
            "name": "av_digits",
            "split": "test",
            "num_examples": 300,
            "num_classes": 8,
            "modalities": list(modalities),
        },
        "seeds": list(seeds),
        "summary": {str(seed): make_summary(seed, modalities) for seed in seeds},
        "joint": [],
        "cells": [
            make_row(seed=seed, modalities=modalities, **condition)
            for seed in seeds
            for condition in conditions
        ],
    }


def with_joint(report, *, missing=True):
    """Add the joint grid of two modalities, or all at once for more, and drawn severities."""
    modalities = tuple(report["data"]["modalities"])
    together = (
        itertools.product(SEVERITIES, repeat=2)
        if len(modalities) == 2
        else [(severity,) * len(modalities) for severity in SEVERITIES]
    )
    conditions = [{"severities": dict(zip(modalities, s, strict=True))} for s in together]
    conditions += [
        {"severities": dict.fromkeys(modalities, limit), "drawn": drawn}
        for drawn in ("mixed", "correlated")
        for limit in (0.4, 1.0)
    ]
    if missing:
        conditions += [
            {"severities": {name: severity}, "missing": (other,)}
            for name, other in itertools.permutations(modalities, 2)
            for severity in SEVERITIES
        ]
    report["joint"] = [
        make_joint_row(seed=seed, modalities=modalities, **condition)
        for seed in report["seeds"]
        for condition in conditions
    ]
    return report


def with_comparison(report, differences):
    """Compare with a run whose accuracy is lower by `differences` (label -> (points, real))."""
    means = {}
    for row in [*report["cells"], *report["joint"]]:
        means.setdefault(row["cell"], []).append(row["accuracy"])
    cells = {}
    for label, values in means.items():
        amount, real = differences.get(label, (0.0, False))
        mean = sum(values) / len(values)
        cells[label] = {
            "accuracy": mean,
            "other": mean - amount / 100,
            "difference": amount / 100,
            "low": amount / 100 - 0.01,
            "high": amount / 100 + 0.01,
            "p": 0.003 if real else 0.6,
            "real": real,
        }
    report["comparison"] = {
        "workdir": "runs/b",
        "config": "configs/b.py",
        "seeds": report["seeds"],
        "cells": cells,
        "mean_corruption_error": 91.25,
        "relative_corruption_error": None,
        "effective_robustness": 0.013,
    }
    return report


def with_misalignment(report, *, accuracy, auroc):
    """Add the misalignment of every modality; `auroc` None for a model without agreement."""
    for seed in report["seeds"]:
        for name in report["data"]["modalities"]:
            row = make_row(
                seed=seed,
                modalities=tuple(report["data"]["modalities"]),
                corruption="Misalignment",
                modality=name,
                severity=1.0,
            )
            told = {} if auroc is None else {"Agreement": {name: auroc}}
            facts = {"unseen": True, "accuracy": accuracy, "strength": "100 % replaced"}
            report["cells"].append({**row, **facts, "separation": told})
    return report


class Page(html.parser.HTMLParser):
    """Parse a page strictly: tags must balance; keep attributes, tables and text per section."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.attributes, self.tables, self.text = [], [], {}, {}
        self.section = ""
        self.feed(text)
        self.close()
        assert not self.stack, f"unclosed {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "table":
            self.tables.setdefault(self.section, []).append([])
        if tag == "tr":
            self.tables[self.section][-1].append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1][-1].append("")
        if tag == "small":
            self.tables[self.section][-1][-1][-1] += "|"
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        data = data.replace("\u00a0", " ")
        self.text[self.section] = self.text.get(self.section, "") + data
        if self.stack and any(tag in ("td", "th") for tag in self.stack):
            self.tables[self.section][-1][-1][-1] += data

    def words(self, section):
        """Return the text of a section with single spaces."""
        return " ".join(self.text[section].split())


def verdict(report):
    """Return the opening paragraph of a rendered report."""
    return Page(render_report(report)).words("verdict")


def change(report, *, where, **values):
    """Return a copy of a report with the given fields set on the rows that match."""
    report = copy.deepcopy(report)
    rows = [row for row in report["cells"] if where(row)]
    assert rows
    for row in rows:
        row.update(values)
    return report


def section(text, name):
    """Cut one section out of a page."""
    start = text.index(f'<section id="{name}"')
    return text[start : text.index("</section>", start)]


def polylines(text, colour, *, thick):
    """Find the lines of one colour and width; points in SVG units, legend samples left out."""
    stroke = f"stroke: {colour.lower()}; stroke-width: {thick}"
    style = re.compile(rf"fill: none; (?:stroke-dash[^;]*; )*{re.escape(stroke)}[;\"]")
    found = []
    for path in re.findall(r"<path [^>]*>", text):
        if style.search(path) and "clip-path" in path:
            pairs = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", re.search(r' d="([^"]*)"', path)[1])
            found.append(np.array(pairs, float))
    return found


@pytest.mark.parametrize("seeds", [(0,), (3, 5, 8)], ids=["one_seed", "three_seeds"])
@pytest.mark.parametrize(
    "modalities", [("audio",), ("audio", "image"), ("audio", "image", "text")], ids=len
)
def test_report_is_one_well_formed_page(modalities, seeds):
    text = render_report(make_report(modalities=modalities, seeds=seeds))
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert len(text.encode()) < 1_000_000
    assert list(page.text) == [
        "",
        "verdict",
        "clean",
        "corrupted",
        "joint",
        "missing",
        "knowledge",
        "weights",
        "worst",
        "cells",
        "made",
        "glossary",
    ]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["one_seed", "three_seeds"])
@pytest.mark.parametrize("modalities", [("audio",), ("audio", "image", "text")], ids=len)
def test_table_of_cells_equals_the_rows(modalities, seeds):
    report = make_report(modalities=modalities, seeds=seeds)
    [table] = Page(render_report(report)).tables["cells"]
    groups = {}
    for row in report["cells"]:
        key = (
            row["corruption"],
            row["modality"] or DASH,
            f"{row['severity']:g}",
            row["strength"] or DASH,
            ", ".join(row["missing"]) or DASH,
        )
        groups.setdefault(key, []).append(row)
    shown = {tuple(line[:5]): line[5:] for line in table[1:]}
    assert shown.keys() == groups.keys()
    clean = np.mean([row["accuracy"] for row in groups[("none", DASH, "0", DASH, DASH)]])
    for key, rows in groups.items():

        def expect(values, form, *, scale=1.0, unit="", rows=rows):
            values = scale * np.array(values)
            text = format(values.mean(), form) + unit
            if len(rows) > 1:
                low, high = values.min(), values.max()
            elif unit:
                low, high = (
                    scale * rows[0]["accuracy_low"],
                    scale * rows[0]["accuracy_high"],
                )
            else:
                return text
            return f"{text}|{low:{form}}{DASH}{high:{form}}{unit}"

        accuracies = [row["accuracy"] for row in rows]
        points = 100 * (np.mean(accuracies) - clean)
        assert shown[key] == [
            expect(accuracies, ".1f", scale=100, unit=" %"),
            "0.0" if abs(points) < 0.05 else f"{points:+.1f}",
            expect([row["nll"] for row in rows], ".3f"),
            expect([row["ece"] for row in rows], ".3f"),
            expect([row["failure_auroc"] for row in rows], ".3f"),
            *[expect([row["weights"][m] for row in rows], ".2f") for m in modalities],
            rows[0]["cell"],
        ]


def test_clean_table_has_each_seed_and_the_mean():
    report = make_report(seeds=(4, 9))
    [table] = Page(render_report(report)).tables["clean"]
    # make_row: accuracy 0.96 + 0.004 seed, interval -0.021 and +0.019; nll 0.05 + 0.004 seed.
    assert [line[0] for line in table[1:]] == ["4", "9", "mean"]
    assert [line[1] for line in table[1:]] == [
        f"97.6 %|95.5{DASH}99.5 %",
        f"99.6 %|97.5{DASH}101.5 %",
        f"98.6 %|97.6{DASH}99.6 %",
    ]
    assert [line[2] for line in table[1:]] == ["0.066", "0.086", f"0.076|0.066{DASH}0.086"]


def test_accuracy_lines_lie_where_the_numbers_are():
    report = make_report(seeds=(0,))
    text = section(render_report(report), "corrupted")
    for colour, modality in (("#0072B2", "audio"), ("#D55E00", "image")):
        (points,) = polylines(text, colour, thick=2)
        rows = [r for r in report["cells"] if r["modality"] == modality or not r["missing"]]
        rows = [r for r in rows if r["modality"] in (modality, None)]
        x = np.array([r["severity"] for r in rows])
        y = np.array([r["accuracy"] for r in rows])
        # SVG coordinates are affine in the data, and y points down.
        for data, drawn, sign in ((x, points[:, 0], 1), (y, points[:, 1], -1)):
            slope, offset = np.polyfit(data, drawn, 1)
            assert slope * sign > 0
            np.testing.assert_allclose(slope * data + offset, drawn, atol=0.02)


def test_weight_panels_draw_the_corrupted_modality_thick():
    report = make_report(seeds=(0,))
    text = section(render_report(report), "weights")
    (audio,) = polylines(text, "#0072B2", thick=3.2)
    weights = [
        r["weights"]["audio"]
        for r in report["cells"]
        if r["modality"] == "audio" or r is clean(report)
    ]
    slope, offset = np.polyfit(weights, audio[:, 1], 1)
    assert slope < 0
    np.testing.assert_allclose(slope * np.array(weights) + offset, audio[:, 1], atol=0.02)


def clean(report):
    """Find the clean row of the first seed."""
    return next(r for r in report["cells"] if r["corruption"] == "none" and not r["missing"])


def test_bars_show_each_missing_pattern_all_present_first():
    report = make_report(modalities=("a", "b", "c"), seeds=(0,))
    report["summary"] = {}
    words = Page(render_report(report)).words("missing")
    # 0.96 less 0.3 / 2, 0.3 / 3 and 0.3 / 4 for a, b and c.
    values = re.findall(r"\d+\.\d %", words)
    assert values == ["96.0 %", "81.0 %", "86.0 %", "88.5 %", "71.0 %", "73.5 %", "78.5 %"]
    names = ["all present", "without a", "without b", "without c", "only c", "only b", "only a"]
    positions = [words.index(name) for name in names]
    assert positions == sorted(positions)


def test_axis_has_severities_and_strengths_and_the_training_range():
    report = make_report()
    words = Page(render_report(report)).words("corrupted")
    assert "training range (0 to 0.4)" in words
    for severity in SEVERITIES:
        assert f"{severity:g}" in words
        assert f"SNR {30 - 40 * severity:.0f} dB" in words
    assert "training range (0 to 0.7)" in render_report({**report, "training_severity": 0.7})
    no_training = Page(render_report({**report, "training_severity": 0.0})).words("corrupted")
    assert "training range" not in no_training
    assert "Training used no corruption" in no_training


def test_beyond_training_is_said_only_of_severities_beyond():
    report = make_report()
    assert "SNR -10 dB, beyond training" in verdict(report)
    assert "beyond training" not in verdict({**report, "training_severity": 1.0})


def test_page_loads_nothing():
    page_text = render_report(make_report())
    page = Page(page_text)
    assert "<script" not in page_text.lower()
    assert "http://" not in page_text and "https://" not in page_text
    assert "@import" not in page_text
    ids = {value for _, name, value in page.attributes if name == "id"}
    references = [value for _, name, value in page.attributes if name.split(":")[-1] == "href"]
    references += re.findall(r"url\(([^)]*)\)", page_text)
    assert references
    assert all(value.startswith("#") and value[1:] in ids for value in references)
    forbidden = {"src", "srcset", "data", "action", "poster", "background"}
    assert not forbidden & {name for _, name, _ in page.attributes}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_hostile_text_stays_text():
    evil = "</title><script>alert('1')</script>\"&<img src=x onerror=a>$\\frac{$\x07\u4e2d"
    report = make_report(modalities=("audio", f"image{evil}"), corruptions=(evil, "$\\frac{$"))
    report["run"] = {
        "config": evil,
        "overrides": [evil],
        "command": evil,
        "commit": evil,
        "versions": {evil: evil},
        "hardware": evil,
        "trained_steps": {evil: evil},
    }
    report["data"].update(name=evil, split=evil)
    for row in report["cells"]:
        row["strength"] = evil
    text = render_report(report)
    page = Page(text)
    assert "<script" not in text and "<img" not in text
    assert not [name for _, name, _ in page.attributes if name in ("src", "onerror")]
    assert evil in page.text["made"]  # nothing was dropped, only escaped


def test_verdict_states_the_losses_in_points():
    text = verdict(make_report())
    # Mean of three seeds: 0.96 + 0.004; severity 1 costs 50 points on audio and 25 on image;
    # a missing modality costs 0.3 / 2 and 0.3 / 3.
    assert "right on 96.4 % of the 300 examples of the test split on average" in text
    assert "lowest to highest of 3 training seeds: 96.0 % to 96.8 %" in text
    assert "guessing among 8 classes gives 12.5 %" in text
    assert (
        "The largest loss comes from a corrupted input: with noise on audio at severity 1" in text
    )
    assert "accuracy is 50.0 points lower, at 46.4 %" in text
    assert "25.0 points lower, at 71.4 %" in text
    assert "As for a missing input: without audio, accuracy is 15.0 points lower" in text


def test_verdict_names_the_missing_input_where_that_costs_more():
    report = change(make_report(), where=lambda r: r["missing"] == ["image"], accuracy=0.2)
    text = verdict(report)
    assert "The largest loss comes from a missing input: without image" in text
    assert "76.4 points lower, at 20.0 %" in text
    assert "As for a corrupted input" in text


def test_verdict_names_a_combined_fault_where_that_costs_most():
    report = make_report()
    for seed in report["seeds"]:
        row = make_joint_row(
            seed=seed,
            modalities=("audio", "image"),
            severities={"audio": 1.0},
            missing=("image",),
        )
        report["joint"].append({**row, "accuracy": 0.1})
    start = "The largest loss comes from several inputs at once: with noise on audio"
    text = verdict(report)
    assert start in text
    assert "without image, accuracy is 86.4 points lower, at 10.0 %" in text


def test_verdict_claims_no_loss_where_there_is_none():
    text = verdict(change(make_report(), where=lambda r: True, accuracy=0.9))
    assert "largest loss" not in text
    assert "No tested case of a corrupted input lowers the mean accuracy." in text
    assert "No tested case of a missing input lowers the mean accuracy." in text


def test_verdict_doubts_a_loss_that_not_every_seed_shows():
    report = make_report()
    sure = verdict(report)
    report = change(
        report, where=lambda r: r["missing"] == ["image"] and r["seed"] == 1, accuracy=0.99
    )
    assert "(not in every seed)" not in sure
    assert re.search(
        r"without image, [\d.]+ points lower, at [\d.]+ % \(not in every seed\)", verdict(report)
    )


def test_verdict_doubts_a_loss_within_the_intervals_of_one_seed():
    report = make_report(seeds=(0,))
    assert "intervals overlap" not in verdict(report)
    # The clean interval starts at 0.939.
    where = {"where": lambda r: r["missing"] == ["image"]}
    assert "intervals overlap" not in verdict(change(report, accuracy_high=0.938, **where))
    assert "(the 95 % intervals overlap)" in verdict(change(report, accuracy_high=0.94, **where))


def test_verdict_weight_falls_or_not():
    report = make_report()
    text = verdict(report)
    # exp(-1) / (1 + exp(-1)) = 0.27 at severity 1.
    assert "the fusion weight of the corrupted modality falls in every seed in 2 of 2 cases" in text
    assert "audio falls from 0.50 to 0.27 (noise)" in text
    static = change(report, where=lambda r: True, weights={"audio": 0.5, "image": 0.5})
    text = verdict(static)
    assert "does not fall in every seed: audio stays at 0.50 (noise); image stays at 0.50" in text
    assert "falls" not in text
    trusting = change(
        report,
        where=lambda r: r["modality"] == "image" and r["severity"] == 1.0,
        weights={"audio": 0.3, "image": 0.7},
    )
    text = verdict(trusting)
    assert "falls in every seed in 1 of 2 cases: image rises from 0.50 to 0.70" in text
    assert "not at every step" in text


def test_verdict_weight_that_falls_in_some_seeds_does_not_count():
    report = change(
        make_report(),
        where=lambda r: r["modality"] == "audio" and r["severity"] == 1.0 and r["seed"] == 2,
        weights={"audio": 0.6, "image": 0.4},
    )
    text = verdict(report)
    assert "in 1 of 2 cases" in text
    assert "on average, but only in 2 of 3 seeds (noise)" in text


def test_verdict_calibration_changes_sides():
    report = make_report()
    # 0.011 + 0.002 clean, and 0.2 x 0.5 more at severity 1 of audio.
    text = verdict(report)
    assert "(ECE) is 0.013 with clean input and 0.113 at worst, with noise on audio" in text
    assert "less reliable guide" in text
    same = change(report, where=lambda r: True, ece=0.02)
    assert "no higher in any other cell" in verdict(same)
    near = change(same, where=lambda r: r["missing"] == ["audio"], ece=0.025)
    text = verdict(near)
    assert "0.025 at worst, without audio: its confidence is about as far off" in text


@pytest.mark.parametrize("weights", [{}, None], ids=["empty", "none"])
def test_empty_weights_are_said_not_drawn(weights):
    page = Page(render_report(change(make_report(), where=lambda r: True, weights=weights)))
    assert "The report holds no fusion weights" in page.words("weights")
    assert "cannot say whether they follow the noise" in page.words("verdict")
    assert "falls" not in page.words("verdict")
    assert not any("weight" in name for name in page.tables["cells"][0][0])


def test_one_modality_has_no_weights_to_compare():
    page = Page(render_report(make_report(modalities=("series",))))
    assert "There is one modality" in page.words("weights")
    assert "The grid has no missing pattern." in page.words("missing")


def test_one_seed_says_what_its_interval_is():
    one, many = (Page(render_report(make_report(seeds=s))) for s in ((7,), (7, 8)))
    assert "95 % bootstrap interval: 96.7 % to 100.7 %" in one.words("verdict")
    assert "All of this is one training seed" in one.words("verdict")
    assert "Band: the 95 % bootstrap interval" in one.words("corrupted")
    assert "All of this is one training seed" not in many.words("verdict")
    assert "Band: the lowest and the highest of the 2 training seeds" in many.words("corrupted")


def test_missing_numbers_are_dashes():
    report = change(make_report(), where=lambda r: r["severity"] == 1.0, nll=None, ece=math.nan)
    text = render_report(report)
    lines = [line for line in Page(text).tables["cells"][0] if line[2] == "1"]
    assert lines and all(line[7:9] == [DASH, DASH] for line in lines)
    assert "nan" not in " ".join(Page(text).words(s) for s in ("verdict", "clean", "cells"))


def test_a_run_without_record_says_so():
    words = Page(render_report({**make_report(), "run": {}})).words("made")
    assert words.count("not recorded") == 7
    evaluated = {**make_report(), "run": {"evaluated_with": "eval.py --grid=joint"}}
    assert "eval.py --grid=joint" in Page(render_report(evaluated)).words("made")


def test_how_it_was_made_repeats_the_run():
    words = Page(render_report(make_report())).words("made")
    for part in (
        "python eval.py --workdir=runs/a",
        "configs/av_digits.py",
        "--config.num_steps=100",
        "seed 0: 1500, seed 1: 1500, seed 2: 1500",
        "jax 0.10.2",
        "commitnot recorded",
        "cpu: 2 cores",
        "300 examples, 8 classes",
    ):
        assert part in words


def test_glossary_explains_the_words():
    words = Page(render_report(make_report())).words("glossary")
    for word in ("severity", "missing", "fusion weight", "ECE", "NLL", "training range"):
        assert word in words
    assert f"Guessing evenly gives {math.log(8):.2f}" in words


def test_large_grid_stays_under_a_megabyte_and_says_what_it_leaves_out():
    modalities = ("accelerometer_of_the_left_wrist", "audio", "depth", "flow", "image", "text")
    report = make_report(
        modalities=modalities, corruptions=[f"some_corruption_{i}" for i in range(24)]
    )
    text = render_report(report)
    assert len(text.encode()) < 1_000_000
    page = Page(text)
    assert "16 more corruptions are in the last table" in page.words("corrupted")
    assert "23 more patterns are in report.json" in page.words("missing")
    assert "132 more are in the last table" in page.words("weights")
    assert "500 of 639 cells: those where one input is touched" in page.words("cells")
    assert len(page.tables["cells"][0]) == 501
    # Of 120 curves the ends of the order are named: most falls, and where there is none.
    words = page.words("verdict")
    assert "the corrupted modality falls in every seed in" in words and ", most where " in words


def test_report_json_gives_the_same_page():
    report = make_report()
    text = render_report(json.loads(json.dumps(report)))
    assert text == render_report(report)
    report["cells"].reverse()
    assert Page(render_report(report)).tables["cells"] == Page(text).tables["cells"]


def test_rendering_leaves_report_and_matplotlib_alone():
    report = make_report(seeds=(0,))
    before = copy.deepcopy(report)
    plain = render_report(report)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
        settings = dict(matplotlib.rcParams)
        assert render_report(report) == plain
        assert dict(matplotlib.rcParams) == settings
    assert report == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.update(schema=1), "schema 1"),
        (lambda r: r["cells"].pop(), r"rows for training seeds \[0, 1\]"),
        (lambda r: r["cells"].append(r["cells"][0]), r"rows for training seeds \[0, 0, 1, 2\]"),
        (lambda r: r.update(cells=[c for c in r["cells"] if c["missing"]]), "no clean cell"),
        (lambda r: r["cells"][0].update(accuracy=math.nan), "finite accuracy"),
    ],
    ids=["schema", "row_lost", "row_twice", "no_clean_cell", "nan"],
)
def test_report_that_cannot_be_averaged_is_refused(damage, message):
    report = make_report()
    damage(report)
    with pytest.raises(FusionError, match=message):
        render_report(report)


def fields(text):
    """Fields of the heat map: label -> (text, background)."""
    pattern = r'<td style="background: (#\w+); color: #\w+" title="([^"]*)">(.*?)</td>'
    return {name: (shown, colour) for colour, name, shown in re.findall(pattern, text)}


def test_heat_map_has_every_joint_cell_and_lower_is_darker():
    report = with_joint(make_report())
    page_text = render_report(report)
    found = fields(page_text)
    means = {}
    for row in [*report["cells"], *report["joint"]]:
        if row["corruption"] not in ("mixed", "correlated"):
            means.setdefault(row["cell"], []).append(100 * row["accuracy"])
    means = {label: sum(values) / len(values) for label, values in means.items()}
    shown = {label: text for label, (text, _) in found.items() if label}
    assert shown == {label: f"{mean:.1f}" for label, mean in means.items()}
    # Both missing is the one empty field of six by six.
    assert len(re.findall("<td style=", page_text)) == 36 and found[""][0] == ""

    def brightness(label):
        return sum(int(found[label][1][i : i + 2], 16) for i in (1, 3, 5))

    ranked = sorted(means, key=means.get)
    assert brightness(ranked[0]) < brightness(ranked[len(ranked) // 2]) < brightness("clean")
    table = Page(page_text).tables["joint"][0]
    assert table[1] == ["severity of noise on audio", "clean", "0.2", "0.4", "0.7", "1", "missing"]
    assert [line[0] for line in table[2:]] == ["clean", "0.2", "0.4", "0.7", "1", "missing"]
    assert table[4][3] == shown["joint/audio/0.4+image/0.4"]


def test_heat_map_has_no_empty_row_where_nothing_is_missing_beside_noise():
    page = Page(render_report(with_joint(make_report(), missing=False)))
    assert "missing" not in page.tables["joint"][0][1]
    assert "--grid=joint adds them" in page.words("joint")


def test_heat_map_leaves_out_other_corruptions():
    report = with_joint(make_report())
    for seed in report["seeds"]:
        row = make_joint_row(
            seed=seed,
            modalities=("audio", "image"),
            severities={"audio": 0.4, "image": 0.4},
            corruption="Fog",
        )
        report["joint"].append({**row, "cell": "joint/Fog/audio/0.4+Fog/image/0.4"})
    text = render_report(report)
    assert "joint/Fog/audio/0.4+Fog/image/0.4" not in fields(text)
    [table] = Page(text).tables["cells"]
    assert ["Fog +Fog", "audio +image", "0.4 +0.4"] in [line[:3] for line in table]


def test_mixed_cells_and_joint_cells_of_three_modalities_are_a_table():
    report = with_joint(make_report(modalities=("a", "b", "c")), missing=False)
    page = Page(render_report(report))
    [table] = page.tables["joint"]
    apart = "with severities that differ between examples, different in each input, from 0 to"
    same = "with severities that differ between examples, the same in all inputs, from 0 to"
    assert [line[0] for line in table[1:5]] == [
        f"{apart} 0.4",
        f"{same} 0.4",
        f"{apart} 1 (beyond training)",
        f"{same} 1 (beyond training)",
    ]
    # 0.96 less 0.5 x severity x (1 + 1/2 + 1/3), at least 0.1; and 0.004 on average.
    assert [line[1].split("|")[0] for line in table[5:]] == ["10.4 %", "32.2 %", "59.7 %", "78.1 %"]
    assert "noise on a at severity 1, noise on b at severity 1 and noise on c" in table[5][0]


def test_no_joint_cells_is_said():
    words = Page(render_report(make_report())).words("joint")
    assert "no cells where several inputs get worse at once" in words


def test_contributions_are_those_of_the_summary():
    [table] = Page(render_report(make_report())).tables["missing"]
    # Seeds 0, 1, 2: 0.4 and 0.1, each 0.02 more per seed.
    row = [f"42.0 %|40.0{DASH}44.0 %", f"12.0 %|10.0{DASH}14.0 %"]
    assert table[1:] == [["audio", *row], ["image", *row]]
    assert "missing" not in Page(render_report(make_report(modalities=("audio",)))).tables


def test_correlations_are_those_of_the_summary():
    report = make_report()
    [table] = Page(render_report(report)).tables["weights"]
    assert table == [
        ["modality", "fusion weight", "PredictedNoise"],
        ["audio", "-0.60|-0.70 to -0.50", f"0.70|0.70{DASH}0.70"],
        ["image", "-0.60|-0.70 to -0.50", f"0.70|0.70{DASH}0.70"],
    ]
    for facts in report["summary"].values():
        facts["weight_spearman"] = {"audio": None, "image": None}
    assert Page(render_report(report)).tables["weights"][0][1][1] == DASH


def test_knowledge_table_is_clean_beside_worst():
    page = Page(render_report(make_report()))
    [table] = page.tables["knowledge"]
    shown = {line[0]: [value.split("|")[0] for value in line[1:3]] for line in table[1:]}
    # Losses 0 and 0.5; means over three seeds.
    assert shown["failure AUROC"] == ["0.952", "0.752"]
    assert shown["ECE"] == ["0.013", "0.113"]
    assert shown["Brier score"] == ["0.100", "0.600"]
    assert shown["AURC"] == ["0.010", "0.260"]
    assert shown["conformal coverage"] == ["92.0 %", "60.0 %"]
    assert "noise/audio/1" in page.words("knowledge")


def test_reliability_points_lie_where_the_numbers_are():
    text = section(render_report(make_report(seeds=(0,))), "knowledge")
    (risk,) = polylines(text, "#0072B2", thick=2)
    curve = make_summary(0, ("audio", "image"))["risk_coverage"]["clean"]
    x, y = np.array(curve["coverage"]), np.array(curve["risk"])
    for data, drawn in ((x, risk[:, 0]), (y, risk[:, 1])):
        slope, offset = np.polyfit(data, drawn, 1)
        np.testing.assert_allclose(slope * data + offset, drawn, atol=0.02)


def test_reliability_pools_the_seeds_by_examples():
    report = make_report(seeds=(0, 1))
    for seed, examples in (("0", [0, 30, 10]), ("1", [0, 10, 30])):
        part = report["summary"][seed]["reliability"]["clean"]
        part["examples"] = examples
        part["accuracy"] = [None, float(seed), 0.5]
    bins = pooled_reliability(read(report), "clean")
    # 30 of 40 examples have accuracy 0 and 10 have 1.
    assert bins == [
        pytest.approx((1 / 3, 0.5, 0.25, 0.5)),
        pytest.approx((2 / 3, 0.9, 0.5, 0.5)),
    ]


@pytest.mark.parametrize(
    ("auroc", "words"),
    [
        (0.85, "confidence still tells right from wrong answers: failure AUROC 0.85"),
        (0.7, "confidence tells right from wrong answers only in part: failure AUROC 0.70"),
        (0.5, "confidence hardly tells right from wrong answers: failure AUROC 0.50"),
        (0.2, "confidence misleads, wrong answers being the surer ones: failure AUROC 0.20"),
    ],
)
def test_verdict_says_whether_confidence_tells_right_from_wrong(auroc, words):
    worst = {"where": lambda r: r["modality"] == "audio" and r["severity"] == 1.0}
    text = verdict(change(make_report(), failure_auroc=auroc, **worst))
    assert "In the worst of all 11 cells, with noise on audio at severity 1" in text
    assert f"{words} against 0.95 with clean input" in text


def test_verdict_says_whether_conformal_sets_keep_their_promise():
    report = make_report()
    text = verdict(report)
    assert "hold the right class 90.0 % of the time hold it 92.0 % of the time with clean" in text
    assert "60.0 % in the worst cell, so there the promise breaks" in text
    for facts in report["summary"].values():
        facts["conformal"]["worst"] = 0.88
    assert "88.0 % in the worst cell, so there the promise is kept" in verdict(report)
    report["summary"]["1"]["conformal"] = None
    assert "hold the right class" not in verdict(report)


def test_misalignment_is_no_noise_and_has_its_own_sentence():
    text = verdict(with_misalignment(make_report(), accuracy=0.3, auroc=0.91))
    # Clean is 96.4 %.
    assert "With audio 100 % replaced, accuracy is 66.4 points lower, at 30.0 %" in text
    assert "its agreement signal tells such inputs from matching ones (AUROC 0.91" in text
    assert "falls in every seed in 2 of 2 cases" in text
    assert "with noise on audio at severity 1 (SNR -10 dB, beyond training), accuracy is" in text
    assert "46.4 % in the worst cell; there confidence tells right from" in text
    assert "with an input of another example it is right on 30.0 % at worst" in text
    assert "Leaving misaligned inputs aside, the largest loss comes from" in text
    assert "its fusion weight falls from 0.50 to" in text
    assert "leaving misaligned inputs aside, the worst is with noise on audio" in text


@pytest.mark.parametrize(
    ("auroc", "words"),
    [(0.7, "in part tells"), (0.5, "cannot tell"), (None, "the model has no agreement signal")],
)
def test_mismatch_sentence_follows_the_separation(auroc, words):
    assert words in verdict(with_misalignment(make_report(), accuracy=0.3, auroc=auroc))


def test_without_misalignment_nothing_is_said_of_it():
    assert "not match" not in verdict(make_report())


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ({}, ["no difference is real", "no reason to prefer either"]),
        (
            {"noise/audio/1": (5.0, False)},
            ["no difference is real (the largest, +5.0 points, has p = 0.60)"],
        ),
        (
            {"noise/audio/1": (5.0, True), "clean": (1.0, True)},
            [
                "2 of 11 differences are real: this run is better in 2 and worse in 0",
                "Its largest real gain is +5.0 points, with noise on audio at severity 1",
                "(46.4 % against 41.4 %; 95 % interval +4.0 to +6.0)",
                "With clean input it is 1.0 points higher (real)",
                "Ship this run: it is better in 2 cells and worse in none.",
            ],
        ),
        (
            {"missing/audio": (-4.0, True)},
            [
                "Its largest real loss is -4.0 points, without audio",
                "Ship runs/b: it is better in 1 cell and worse in none.",
            ],
        ),
        (
            {"noise/audio/1": (5.0, True), "missing/audio": (-4.0, True)},
            [
                "Neither is better everywhere: ship this run if all cells matter alike",
                "and runs/b if what matters most is a missing input (1 cell against 0)",
            ],
        ),
    ],
    ids=["same", "not_real", "better", "worse", "both"],
)
def test_verdict_says_which_run_to_ship(differences, words):
    text = verdict(with_comparison(make_report(), differences))
    assert "Against runs/b, over the 11 cells and 3 training seeds that both have" in text
    for part in words:
        assert part in text


def test_the_other_run_is_drawn_beside_this_one():
    report = with_comparison(make_report(), {"noise/audio/1": (5.0, True)})
    text = section(render_report(report), "corrupted")
    lines = polylines(text, "#0072B2", thick=1.3)
    [other] = [points for points in lines if len(points) == 5]
    cells = report["comparison"]["cells"]
    labels = ["clean", *(f"noise/audio/{severity:g}" for severity in SEVERITIES)]
    y = np.array([cells[label]["other"] for label in labels])
    slope, offset = np.polyfit(y, other[:, 1], 1)
    assert slope < 0
    np.testing.assert_allclose(slope * y + offset, other[:, 1], atol=0.02)
    assert "audio, other run" in text and "runs/b" in text
    assert "other run" not in section(render_report(make_report()), "corrupted")


def test_comparison_tables_are_the_numbers():
    differences = {"noise/audio/1": (5.0, True), "missing/audio": (-4.0, True)}
    report = with_comparison(with_joint(make_report()), differences)
    report["comparison"]["cells"]["joint/audio/0.4+image/0.4"].update(difference=0.021, real=True)
    text = render_report(report)
    page = Page(text)
    kinds, largest = page.tables["comparison"]
    shown = {line[0]: line[1:] for line in kinds[1:]}
    assert shown["noise on audio"][3:] == ["+1.2", "1", "0"]  # 5 points over 4 severities
    assert shown["a missing input"][3:] == ["-2.0", "0", "1"]
    assert [line[3] for line in largest[1:]] == ["+5.0", "+2.1", "-4.0"]
    assert largest[1][1:] == ["46.4 %", "41.4 %", "+5.0", "+4.0 to +6.0", "0.003"]
    assert fields(text)["joint/audio/0.4+image/0.4"][0].endswith("<small>+2.1</small>")
    words = page.words("comparison")
    assert "Mean corruption error: 91.2" in words and "Effective robustness: +1.3 points" in words
    assert "Relative corruption error: not known" in words
    column = {line[-1]: line[7] for line in page.tables["cells"][0]}
    assert column["noise/audio/1"] == "+5.0 real" and column["clean"] == "0.0"


def test_limits_are_passed_or_failed():
    check = {"cell": "clean", "metric": "accuracy", "value": 0.964, "limit": "min 0.9"}
    report = make_report() | {"thresholds": [{**check, "passed": True}]}
    page = Page(render_report(report))
    assert page.tables["limits"][0][1] == ["passed", "clean", "accuracy", "0.964", "min 0.9"]
    assert "The one limit is kept." in page.words("verdict")
    report["thresholds"].append({**check, "cell": "noise/audio/1", "value": None, "passed": False})
    page = Page(render_report(report))
    assert page.tables["limits"][0][1] == ["FAILED", "noise/audio/1", "accuracy", DASH, "min 0.9"]
    words = page.words("verdict")
    assert "FAILED: 1 of 2 limits is not kept, among them accuracy of noise/audio/1" in words
    assert "limits" not in Page(render_report(make_report())).text


def test_ten_worst_cells_lowest_first():
    report = with_joint(make_report())
    [table] = Page(render_report(report)).tables["worst"]
    assert len(table) == 11
    shown = [float(line[1].split()[0]) for line in table[1:]]
    means = {}
    for row in [*report["cells"], *report["joint"]]:
        means.setdefault(row["cell"], []).append(row["accuracy"])
    lowest = sorted(100 * sum(values) / len(values) for values in means.values())[:10]
    assert shown == [pytest.approx(value, abs=0.051) for value in lowest]


def test_worst_cells_without_misalignment_are_listed_too():
    page = Page(render_report(with_misalignment(make_report(), accuracy=0.3, auroc=0.9)))
    first, second = page.tables["worst"]
    assert "Misalignment" in first[1][0]
    assert not any("Misalignment" in line[0] for line in second)


def png(seed=0, side=96):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return "data:image/png;base64," + base64.b64encode(picture(pixels)).decode()


def test_examples_are_shown_with_their_pictures():
    example = {
        "cell": "noise/audio/1",
        "example_id": 17,
        "pictures": {"audio": png(1), "image": png(2)},
        "target": 3,
        "predicted": 8,
    }
    text = render_report(make_report() | {"examples": [example]})
    page = Page(text)
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert sources == [png(1), png(2)]
    assert "Example 17: is 3, taken for 8; with noise on audio" in page.words("worst")
    assert ("img", "alt", "audio of example 17") in page.attributes
    assert "img-src data:" in text


@pytest.mark.parametrize("bad", ["https://a.b/c.png", 'data:image/svg+xml,<svg onload="a"/>', ""])
def test_pictures_that_are_no_png_are_refused(bad):
    example = {
        "cell": "clean",
        "example_id": 1,
        "pictures": {"audio": bad},
        "target": 0,
        "predicted": 1,
    }
    with pytest.raises(FusionError, match="no PNG"):
        render_report(make_report() | {"examples": [example]})


def test_a_thousand_cells_with_ten_examples_stay_under_five_megabytes():
    report = with_joint(make_report(corruptions=[f"corruption_{i}" for i in range(120)]))
    report["examples"] = [
        {
            "cell": "clean",
            "example_id": i,
            "pictures": {"audio": png(i, 128), "image": png(i, 128)},
            "target": 0,
            "predicted": 1,
        }
        for i in range(10)
    ]
    report = with_comparison(report, {"clean": (1.0, True)})
    text = render_report(report)
    assert len(read(report).all_cells) > 980
    assert len(text.encode()) < 5_000_000
    Page(text)


def test_table_of_corruptions_is_sorted_by_harm():
    report = make_report(corruptions=("mild", "noise"))
    for row in report["cells"]:
        if row["corruption"] == "mild":
            row["accuracy"] = 0.9
    table = Page(render_report(report)).tables["corrupted"][0]
    # 0.964 less 0.5 x the mean severity 0.575 on audio, half of it on image.
    assert [line[:4] for line in table[1:]] == [
        ["noise", "audio", "yes", "67.7 %"],
        ["noise", "image", "yes", "82.0 %"],
        ["mild", "audio", "yes", "90.0 %"],
        ["mild", "image", "yes", "90.0 %"],
    ]
    assert table[1][4:] == ["86.4 %", "76.4 %", "61.4 %", "46.4 %"]
