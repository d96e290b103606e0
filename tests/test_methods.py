"""docs/methods.md: every deviation has its row, and every row a test that exists."""

import ast
import re

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "methods.md").read_text()
# About the training program around the method, which is not built here.
NOT_PORTED = {"M17", "M19", "M20"}
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
COLUMNS = ["id", "paper says", "released code does", "we do", "why", "test"]


def tables() -> list[list[list[str]]]:
    """The cells of each table of deviations, row by row, its head first."""
    found: list[list[list[str]]] = [[]]
    for line in TEXT.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    cleaned = [[row for row in table if set(row[-1]) != {"-"}] for table in found if table]
    return [table for table in cleaned if table[0][-1] == COLUMNS[-1]]


def defined(path: str) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_tables_have_every_deviation_once():
    mwam, ogm, arm, udml = tables()
    assert mwam[0] == ogm[0] == arm[0] == udml[0] == COLUMNS
    assert {len(row) for table in tables() for row in table} == {len(COLUMNS)}
    expected = [f"M{i}" for i in range(1, 22) if f"M{i}" not in NOT_PORTED]
    assert [row[0] for row in mwam[1:]] == expected
    assert [row[0] for row in ogm[1:]] == [f"G{i}" for i in range(1, len(ogm))]
    assert [row[0] for row in arm[1:]] == [f"R{i}" for i in range(1, len(arm))]
    assert [row[0] for row in udml[1:]] == [f"U{i}" for i in range(1, 20)]
    assert all(all(row) for table in tables() for row in table)


def test_what_is_not_ported_is_listed_with_a_reason():
    listed = re.findall(r"^\* (M\d+), .{40,}", TEXT, re.MULTILINE)
    assert set(listed) == NOT_PORTED and len(listed) == len(NOT_PORTED)


@pytest.mark.parametrize(
    "row", [row for table in tables() for row in table[1:]], ids=lambda row: row[0]
)
def test_every_row_is_pinned_by_tests_that_exist(row):
    names = TEST.findall(row[-1])
    assert names and TEST.sub("", row[-1]).strip(", ") == ""
    for path, name in names:
        assert name in defined(path), f"{path}::{name}"


def test_other_names_of_tests_exist_too():
    for path, name in TEST.findall(TEXT):
        assert name in defined(path), f"{path}::{name}"


def test_links_and_modules_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).is_file(), target
