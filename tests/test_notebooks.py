"""The notebooks run from top to bottom, in a small preset."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

COLAB = Path(__file__).parents[1] / "colab"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:(zmq|jupyter_client|nbclient|ipykernel)")
@pytest.mark.parametrize("path", sorted(COLAB.glob("*.ipynb")), ids=lambda p: p.stem)
def test_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("STEPS = 1000" in source for source in sources) == 1
    for cell in notebook.cells:
        cell.source = cell.source.replace("STEPS = 1000", "STEPS = 3")
        cell.source = cell.source.replace("width=96", "width=8").replace("1790", "40")
    monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps its cache
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("KD_JAX_CACHE", str(tmp_path)))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert "digits-classifier-" in outputs[-1]["text"]
