"""Tests of the HTML report: what the page says must be what the numbers say."""

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
from fusion_jax.evaluation.report import render_report

DASH = "\u2013"
VOID = {"meta", "br", "link", "img", "hr", "input"}
SEVERITIES = (0.2, 0.4, 0.7, 1.0)


def make_row(*, seed, modalities, corruption="none", modality=None, severity=0.0, missing=()):
    """One row of a plausible grid: corrupted or missing inputs cost accuracy and weight."""
    index = modalities.index(modality) if modality else 0
    loss = 0.5 * severity / (1 + index) + sum(0.3 / (2 + modalities.index(m)) for m in missing)
    accuracy = 0.96 - loss + 0.004 * seed
    raw = {
        m: 0.0 if m in missing else math.exp(-severity) if m == modality else 1.0
        for m in modalities
    }
    strength = None if corruption == "none" else f"SNR {30 - 40 * severity:.0f} dB"
    return {
        "corruption": corruption,
        "modality": modality,
        "severity": severity,
        "strength": strength,
        "missing": list(missing),
        "seed": seed,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.021,
        "accuracy_high": accuracy + 0.019,
        "nll": 0.05 + 2 * loss + 0.004 * seed,
        "ece": 0.011 + 0.2 * loss + 0.002 * seed,
        "weights": {m: w / sum(raw.values()) for m, w in raw.items()},
        "signals": {},
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
        "schema": 1,
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
        "cells": [
            make_row(seed=seed, modalities=modalities, **condition)
            for seed in seeds
            for condition in conditions
        ],
    }


class Page(html.parser.HTMLParser):
    """Parse a page strictly: tags must balance; keep attributes, tables and text per section."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.attributes, self.tables, self.text = [], [], [], {}
        self.section = ""
        self.feed(text)
        self.close()
        assert not self.stack, f"unclosed {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "small":
            self.tables[-1][-1][-1] += "|"
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
            self.tables[-1][-1][-1] += data

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


def polylines(text, colour, *, thick):
    """Find the lines of one colour and width; points in SVG units, legend samples left out."""
    style = f"fill: none; stroke: {colour.lower()}; stroke-width: {thick};"
    found = []
    for path in re.findall(r"<path [^>]*>", text):
        if style in path and "clip-path" in path:
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
        "missing",
        "weights",
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
    table = Page(render_report(report)).tables[1]
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
            *[expect([row["weights"][m] for row in rows], ".2f") for m in modalities],
        ]


def test_clean_table_has_each_seed_and_the_mean():
    report = make_report(seeds=(4, 9))
    table = Page(render_report(report)).tables[0]
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
    text = render_report(report)
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
    text = render_report(report)
    section = text[text.index('id="weights"') : text.index('id="cells"')]
    (audio,) = polylines(section, "#0072B2", thick=3.2)
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
    words = Page(render_report(make_report(modalities=("a", "b", "c"), seeds=(0,)))).words(
        "missing"
    )
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
        row = make_row(
            seed=seed,
            modalities=("audio", "image"),
            corruption="noise",
            modality="audio",
            severity=1.0,
            missing=("image",),
        )
        report["cells"].append({**row, "accuracy": 0.1})
    start = (
        "The largest loss comes from a corrupted and a missing input together: with noise on audio"
    )
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
    assert not any("weight" in name for name in page.tables[1][0])


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
    lines = [line for line in Page(text).tables[1] if line[2] == "1"]
    assert lines and all(line[7:9] == [DASH, DASH] for line in lines)
    assert "nan" not in " ".join(Page(text).words(s) for s in ("verdict", "clean", "cells"))


def test_a_run_without_record_says_so():
    words = Page(render_report({**make_report(), "run": {}})).words("made")
    assert words.count("not recorded") == 6


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
    assert "The first 500 of 639 cells" in page.words("cells")
    assert len(page.tables[1]) == 501


def test_report_json_gives_the_same_page():
    report = make_report()
    text = render_report(json.loads(json.dumps(report)))
    assert text == render_report(report)
    report["cells"].reverse()
    assert Page(render_report(report)).tables[1] == Page(text).tables[1]


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
        (lambda r: r.update(schema=2), "schema 2"),
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
