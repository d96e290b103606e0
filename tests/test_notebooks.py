"""Every notebook runs from top to bottom, and is fit to be shown."""

import ast
import importlib.util
import json
import re
import shutil

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MISSING = [
    name for name in ("nbclient", "nbformat", "ipykernel") if not importlib.util.find_spec(name)
]

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    """Sources of the cells of a kind."""
    content = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in content if cell["cell_type"] == kind]


def test_there_are_notebooks():
    assert NOTEBOOKS


@every_notebook
def test_notebook_is_small_and_holds_no_path_of_a_machine(path):
    text = path.read_text()
    assert len(text) < 600_000
    # Base64 holds slashes too, so pictures are left out.
    plain = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(home|Users|root|tmp|work|private|var)/", plain)


@every_notebook
def test_notebook_was_saved_whole(path):
    """Executed from top to bottom, without an error."""
    code = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert "error" not in kinds and "display_data" in kinds
    for source in cells(path, "code"):
        ast.parse(source)


@every_notebook
def test_notebook_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", "\n".join(cells(path, "markdown"))):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def words(name):
    """All text of a notebook, on one line."""
    return " ".join(" ".join(cells(ROOT / "notebooks" / f"{name}.ipynb", "markdown")).split())


def test_quickstart_says_whose_the_data_is():
    text = words("quickstart")
    assert "CC BY 4.0" in text and "The speech is **synthetic**" in text


def test_noise_and_dependence_says_whose_the_data_is_and_what_it_does_not_show():
    text = words("noise_and_dependence")
    assert "CC BY 4.0" in text and "The speech is **synthetic**" in text
    assert "no evidence that they pay" in text


def test_robustness_says_whose_the_data_is_and_what_it_does_not_show():
    text = words("robustness")
    assert "CC BY 4.0" in text and "The speech is **synthetic**" in text
    assert "not how good the methods are" in text


def test_frequency_ratio_says_whose_the_data_is():
    text = words("frequency_ratio")
    assert "CC BY 4.0" in text and "the speech is **synthetic**" in text
    assert all(owner in text for owner in ("CC BY 2.0", "danielbuechele", "vultilion"))


@pytest.mark.slow
@pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing: pip install --editable '.[notebooks]'"
)
@every_notebook
def test_notebook_runs_from_top_to_bottom(path, tmp_path, program_environment):
    import nbclient
    import nbformat

    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("configs", "fusion_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(path, folder)
    notebook = nbformat.read(folder / path.name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(folder)}}
    )
    # What the notebook trains lands below TMPDIR.
    client.execute(env=program_environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    saved = json.loads(path.read_text())["cells"]
    for cell, before in zip(notebook.cells, saved, strict=True):
        if cell.cell_type == "code":
            pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            shown = [output for output in before["outputs"] if "data" in output]
            assert len(pictures) == len(shown)
