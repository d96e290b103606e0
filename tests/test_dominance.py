"""The table of measured dominance: its numbers, and what it says of what was not run."""

import importlib.util
import json

import pytest

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("dominance", ROOT / "benchmarks" / "dominance.py")
dominance = importlib.util.module_from_spec(spec)


@pytest.fixture(scope="module", autouse=True)
def loaded():
    # Not at import: the script defines flags.
    spec.loader.exec_module(dominance)


def results():
    joint = {
        "data": {"modalities": ["audio", "image"], "num_classes": 10},
        "curves": {
            "balancer/score/audio": [[1, 0.2], [2, 0.4]],
            "balancer/score/image": [[1, 0.4], [2, 0.4]],
            "validation/accuracy": [[1, 0.0], [2, 0.9]],
            "validation/without_image": [[1, 0.0], [2, 0.5]],
            "validation/without_audio": [[1, 0.0], [2, 0.7]],
        },
    }
    alone = {
        name: {"curves": {f"unimodal_accuracy/{name}": [[1, 0.1], [2, value]]}}
        for name, value in {"audio": 0.3, "image": 0.5}.items()
    }
    return joint, alone


def test_measures_by_hand():
    found = dominance.measure(*results())
    assert found["learning speed"] == pytest.approx({"audio": 0.2, "image": 0.3})
    # log(0.2 / 0.4) at one of two steps.
    assert found["OGM ratio"] == pytest.approx({"audio": -0.34657, "image": 0.34657}, abs=1e-4)
    # Above chance: both 0.8, audio 0.4, image 0.6.
    assert found["Shapley"] == pytest.approx({"audio": 0.375, "image": 0.625})


def test_page_counts_agreement_and_says_what_was_not_run():
    joint, alone = results()
    metrics = {name: {"audio": 1.0, "image": 2.0} for name in dominance.METRICS}
    metrics["official"] = {"audio": 3.0, "image": 2.0}
    found = {
        "modalities": ["audio", "image"],
        "seeds_wanted": 5,
        "metrics": metrics,
        "measured": {"0": dominance.measure(joint, alone)},
    }
    page = dominance.render({"sets": {"one": found, "two": None}})
    assert "| one | audio / image | 1 of 5 | 0.20 [0.20, 0.20] / 0.30 [0.30, 0.30] |" in page
    assert "| two | not run |" in page
    (last,) = [line for line in page.splitlines() if line.startswith("| agrees")]
    cells = [cell.strip() for cell in last.strip("|").split("|")][2:]
    assert dict(zip(dominance.METRICS, cells, strict=True)) == {
        name: "0 of 3" if name == "official" else "3 of 3" for name in dominance.METRICS
    }


def test_committed_page_is_generated_from_its_file():
    path = ROOT / "docs" / "results" / "dominance.json"
    page = dominance.render(json.loads(path.read_text()))
    assert page == path.with_suffix(".md").read_text()
