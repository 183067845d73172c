"""The notebooks run with three steps of each training, and their outputs are stored."""

import os
import re
import subprocess
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
SMALLER = {  # other replacements that shorten the runs, by notebook
    "quickstart": {"width=96": "width=8", "1790": "40"},
    "restoration": {"width=24": "width=8", "len(test_set), 35": "len(test_set), 60"},
}
SHOWN = {  # the number of pictures, and a part of the last printed output
    "quickstart": (3, " threes"),
    "own_step": (1, "student: "),
    "restoration": (2, "distilled: "),
    "text_to_image": (2, "did you mean 'seven'?"),
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def assert_shown(stem, cells):
    outputs = [output for cell in cells for output in cell.outputs]
    pictures, text = SHOWN[stem]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    assert text in [output["text"] for output in outputs if "text" in output][-1]


@each_notebook
def test_outputs_are_stored(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert_shown(path.stem, cells)
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data")
            assert output.get("name") != "stderr"
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not re.search(r" at 0x|(^|[\s'\"])/\w+/", text), text
    assert path.stat().st_size < 2**20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(zmq|jupyter_client|nbclient|ipykernel)")
@each_notebook
def test_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    code = code_cells(notebook)
    for cell in code:
        cell.outputs = []
    smaller = {re.escape(old): new for old, new in SMALLER.get(path.stem, {}).items()}
    replacements = {r"^STEPS = \d+": "STEPS = 3", **smaller}
    for pattern, replacement in replacements.items():
        assert any(re.search(pattern, cell.source, re.MULTILINE) for cell in code), pattern
        for cell in code:
            cell.source = re.sub(pattern, replacement, cell.source, flags=re.MULTILINE)
    monkeypatch.setenv("HOME", str(tmp_path))  # the notebook's cache is below it
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel imports this tree
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("KD_JAX_CACHE", str(tmp_path)))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert_shown(path.stem, code)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs the first cell where kd_jax cannot be imported; returns the commands."""

    def run(repository="", spec=None, installed=None, returncode=0, stdout=""):
        first, *others = [code_cells(nbformat.read(p, as_version=4))[0].source for p in NOTEBOOKS]
        assert all(source == first for source in others)
        assert 'REPOSITORY = ""' in first
        commands = []

        def pip(command, **_):
            commands.append(command)
            return SimpleNamespace(returncode=returncode, stdout=stdout, stderr="")

        packages = [SimpleNamespace(name=n, version=v) for n, v in (installed or {}).items()]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(util, "find_spec", lambda name: spec)
        monkeypatch.setattr(metadata, "distributions", lambda: packages)
        monkeypatch.setattr(subprocess, "run", pip)
        source = first.replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"')
        exec(compile(source, "cell", "exec"), {})
        return commands

    return run


def test_the_first_cell_does_nothing_where_the_package_is(install, tmp_path):
    assert install(spec=SimpleNamespace(origin="kd_jax/__init__.py")) == []
    assert list(tmp_path.iterdir()) == []


def test_the_first_cell_asks_for_the_repository(install):
    with pytest.raises(ValueError, match="REPOSITORY"):
        install()
    with pytest.raises(ValueError, match="REPOSITORY"):  # the folder of a clone
        install(spec=SimpleNamespace(origin=None))


def test_an_installed_jax_keeps_its_version(install, tmp_path):
    installed = {"jax": "0.10.0", "jaxlib": "0.10.0", "jax-cuda12-pjrt": "0.10.0", "numpy": "2.1.0"}
    (command,) = install("https://host/kd_jax", installed=installed)
    assert command[-1] == "kd_jax[data] @ git+https://host/kd_jax"
    constraints = tmp_path / command[command.index("--constraint") + 1]
    assert constraints.read_text().split() == [
        "jax==0.10.0", "jaxlib==0.10.0", "jax-cuda12-pjrt==0.10.0",
    ]  # fmt: skip


@pytest.mark.parametrize(("tool", "extras"), [("/usr/bin/nvidia-smi", "data,cuda"), (None, "data")])
def test_without_jax_the_accelerator_decides(install, monkeypatch, tool, extras):
    monkeypatch.setattr("shutil.which", lambda name: tool)
    (command,) = install("https://host/kd_jax", installed={"numpy": "2.1.0"})
    assert command[-1].startswith(f"kd_jax[{extras}] @ ")


def test_the_message_of_pip_is_raised(install):
    with pytest.raises(RuntimeError, match="conflicting dependencies"):
        install("https://host/kd_jax", returncode=1, stdout="conflicting dependencies")
