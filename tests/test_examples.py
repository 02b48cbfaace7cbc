"""The notebooks in examples/ run from a clean folder to their end, in order, and hold no stale output."""

from __future__ import annotations

import json

import pytest

from tests.conftest import REPO

NOTEBOOKS = sorted((REPO / "examples").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param, json.loads(request.param.read_text(encoding="utf-8"))


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["add_a_distiller", "own_images"]


@pytest.mark.usefixtures("registries_as_before")
def test_its_cells_run(notebook, capsys):
    path, content = notebook
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), names)
    out = capsys.readouterr().out
    if path.stem == "own_images":
        assert "500 images" in out and "0 top-1 changed" in out
    else:
        assert "unknown config key COSINE.WIGHT" in out and "losses" in out


def test_it_is_a_notebook_without_outputs(notebook):
    _, content = notebook
    assert content["nbformat"] == 4 and content["nbformat_minor"] >= 5
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
