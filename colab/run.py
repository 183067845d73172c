"""Executes notebooks of this folder and stores their outputs, without times and warnings.

python colab/run.py quickstart own_step   # by default all of them
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    language = notebook.metadata.language_info
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=3600, record_timing=False, resources=resources).execute()
    notebook.metadata.language_info = {"name": language["name"]}  # without the Python's version
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    # The kernel imports this tree.
    paths = [str(FOLDER.parent.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    for stem in sys.argv[1:] or [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]:
        run(FOLDER / f"{stem}.ipynb")
        print(stem)
