"""The tables of docs/results are what their result files say: generated, never typed."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_table_is_generated_from_its_result_file(results, path):
    assert (
        results.table(json.loads(path.read_text()), path.stem)
        == path.with_suffix(".md").read_text()
    )


def test_there_are_results():
    assert RESULTS
