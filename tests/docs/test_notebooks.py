"""Notebooks run from top to bottom, and are kept without what they printed. `make notebooks` draws them for real."""

import json
import sys
import types
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


class Drawn:
    """Stands in for matplotlib: takes every call, draws nothing."""

    def __getattr__(self, _name):
        return self

    def __call__(self, *_, **__):
        return self

    def __getitem__(self, _place):
        return self

    def subplots(self, rows=1, *_, **__):
        return self, self if rows == 1 else [self] * rows


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file, monkeypatch):
    pyplot = Drawn()
    matplotlib = types.ModuleType("matplotlib")
    matplotlib.pyplot = pyplot
    monkeypatch.setitem(sys.modules, "matplotlib", matplotlib)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    names = {"__name__": "__main__"}
    for cell in json.loads(file.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{file.name}:{cell['id']}", "exec"), names)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_has_its_seed_first_and_no_outputs(file):
    cells = json.loads(file.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert "".join(code[0]["source"]).startswith("SEED = ")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), "run make notebooks"
