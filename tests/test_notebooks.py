"""The notebooks run from top to bottom, after three steps of each training."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

COLAB = Path(__file__).parents[1] / "colab"
SMALLER = {  # what else would take long
    "quickstart": {"width=96": "width=8", "1790": "40"},
    "restoration": {"width=24": "width=8", "len(test_set), 35": "len(test_set), 60"},
}
SHOWN = {  # pictures, and what the last cell with an output says
    "quickstart": (4, "digits-classifier-"),
    "own_step": (1, "student: "),
    "restoration": (2, "distilled: "),
    "text_to_image": (3, "did you mean 'seven'?"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(zmq|jupyter_client|nbclient|ipykernel)")
@pytest.mark.parametrize("path", sorted(COLAB.glob("*.ipynb")), ids=lambda p: p.stem)
def test_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    smaller = {re.escape(old): new for old, new in SMALLER.get(path.stem, {}).items()}
    changed = {r"^STEPS = \d+": "STEPS = 3", **smaller}
    for pattern, replacement in changed.items():
        assert any(re.search(pattern, cell.source, re.MULTILINE) for cell in code), pattern
        for cell in code:
            cell.source = re.sub(pattern, replacement, cell.source, flags=re.MULTILINE)
    monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps its cache
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("KD_JAX_CACHE", str(tmp_path)))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code for output in cell.get("outputs", [])]
    pictures, said = SHOWN[path.stem]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    assert said in [output["text"] for output in outputs if "text" in output][-1]
