"""The README's examples run as written; its commands, links, extras and figures exist."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import CACHE
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICKSTART, PUBLISHED = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def check_quickstart(folder: Path, output: str, prints: int) -> None:
    *losses, last = output.splitlines()
    assert len(losses) == 2 * prints
    assert all(re.fullmatch(r"\d+: g -?[\d.]+, d -?[\d.]+", line) for line in losses)
    teacher, student = (int(count.replace(",", "")) for count in re.findall(r"[\d,]{4,}", last))
    assert student < teacher / 20
    with Image.open(folder / "digits.png") as picture:
        assert picture.size[0] > 10 * 16 * 5


def test_the_quickstart_runs_with_few_steps(tmp_path, monkeypatch, capsys):
    replacements = {
        "steps=1000": "steps=2",
        "% 100 ": "% 1 ",
        "channels=1)": f"channels=1, cache={str(CACHE / 'tfds')!r})",
    }
    code = QUICKSTART
    for old, new in replacements.items():
        assert old in code
        code = code.replace(old, new, 1)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    check_quickstart(tmp_path, capsys.readouterr().out, prints=2)


@pytest.mark.slow
def test_the_quickstart_runs_as_written(tmp_path):
    (tmp_path / "quickstart.py").write_text(QUICKSTART)
    result = subprocess.run(
        [sys.executable, "-W", "error", "quickstart.py"],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    check_quickstart(tmp_path, result.stdout, prints=10)


def test_a_published_teacher_is_loaded_as_written(golden, tmp_path, monkeypatch):
    file = golden / "pkl" / "sg2_tiny.pkl"
    if not file.exists():
        pytest.skip(f"no {file}")
    shutil.copy(file, tmp_path / "ffhq.pkl")
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(compile(PUBLISHED, "README.md", "exec"), scope)
    assert scope["images"].shape == (4, 16, 16, 3)
    assert {"4x4", "8x8", "16x16"} <= set(scope["taps"])


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_targets_modules_and_links_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    modules = set(re.findall(r"python -m (experiments[\w.]+)", README))
    assert modules
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    if not (ROOT / "docs").exists():
        links = [link for link in links if not link.startswith("docs/")]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    installed = re.findall(r"pip install (?:-e )?'\.\[([\w,]+)\]'", README)
    assert installed
    assert {name for names in installed for name in names.split(",")} <= set(extras)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_figures_are_those_of_the_report():
    report = (ROOT / "experiments" / "results" / "digits" / "report.md").read_text()
    rows = {row[0]: row for row in map(cells, report.splitlines()) if len(row) == 10}
    heads = rows["network"]
    columns = [heads.index(name) for name in ("parameters", "per image (ms)", "Frechet distance")]
    expected = {}
    for name, network in (
        ("teacher", "teacher"),
        ("student from scratch, 90 images", "scarce/from_scratch"),
        ("student distilled, 90 images", "scarce/distilled"),
    ):
        parameters, time, distance = (rows[network][column] for column in columns)
        expected[name] = [parameters, f"{time.partition(' ')[0]} ms", distance]
    table = [cells(line) for line in README.splitlines() if line.startswith("| ")]
    assert {name: values for name, *values in table[1:]} == expected
    assert f"{rows['all/from_scratch'][columns[2]]} from scratch" in README
    assert f"{rows['all/distilled'][columns[2]]} distilled" in README
    (fewer,) = re.findall(r"\*\*(\d+)\.\d times fewer parameters\*\*", report)
    assert f"{fewer} times fewer parameters" in README
