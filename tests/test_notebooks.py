"""The notebooks run from top to bottom, with three steps of each training."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

COLAB = Path(__file__).parents[1] / "colab"
SMALLER = {  # other replacements that shorten the runs, by notebook
    "quickstart": {"width=96": "width=8", "1790": "40"},
    "restoration": {"width=24": "width=8", "len(test_set), 35": "len(test_set), 60"},
}
SHOWN = {  # the number of pictures, and a part of the last printed output
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
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        f"{path.name} has outputs; commit it without outputs"
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    smaller = {re.escape(old): new for old, new in SMALLER.get(path.stem, {}).items()}
    replacements = {r"^STEPS = \d+": "STEPS = 3", **smaller}
    for pattern, replacement in replacements.items():
        assert any(re.search(pattern, cell.source, re.MULTILINE) for cell in code), pattern
        for cell in code:
            cell.source = re.sub(pattern, replacement, cell.source, flags=re.MULTILINE)
    monkeypatch.setenv("HOME", str(tmp_path))  # the notebook's cache is below it
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("KD_JAX_CACHE", str(tmp_path)))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code for output in cell.get("outputs", [])]
    pictures, text = SHOWN[path.stem]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    assert text in [output["text"] for output in outputs if "text" in output][-1]
