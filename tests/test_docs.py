"""The pages of `docs/`: their code is executed, their commands and messages exist.

The Python blocks of a page run in order in one namespace, in an empty folder. A `text` block right
after a Python block is its output. Shell blocks are compared with the Makefile, the modules, their
flags and settings, and the extras of the package. Figures with a deviation are those of a report.
"""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import kd_jax as kd

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}

SLOW = {"guides/own-family.md"}
"""Pages whose code takes more than about five seconds."""

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it starts at, and what precedes it."""

    language: str
    text: str
    line: int
    follows: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page; indented ones, as in tabs, without their indentation."""
    text = PAGES[page].read_text(encoding="utf-8")
    result, end, previous = [], 0, ""
    for match in FENCE.finditer(text):
        indent, language, body = match.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines(keepends=True)]
        adjacent = not text[end : match.start()].strip()
        number = text[: match.start()].count("\n") + 1
        result.append(Block(language, "".join(lines), number, previous if adjacent else ""))
        end, previous = match.end(), language
    return result


def test_there_is_a_language_for_each_block():
    for page in PAGES:
        for block in blocks(page):
            where = f"{page}:{block.line}"
            assert block.language in {"python", "sh", "text"}, where


def run(page: str) -> dict:
    """Executes the Python blocks of a page; returns their namespace."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    output = ""
    for block in blocks(page):
        if block.language == "text" and block.follows == "python":
            assert output == block.text, f"{page}:{block.line}: the output differs"
        if block.language != "python":
            continue
        # Line numbers of tracebacks are those of the page.
        source = "\n" * block.line + block.text
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            exec(compile(source, str(PAGES[page]), "exec"), namespace)
        output = stdout.getvalue()
    return namespace


CODE = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in CODE]
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = run(page)
    if page.startswith("methods/") and "setup" in namespace:
        trace_step(namespace["setup"], namespace.get("batch", {"image": jnp.zeros((4, 16, 16, 3))}))


def trace_step(setup: kd.Setup, batch: dict) -> None:
    """Traces a step of a setup, with the shapes of all frozen variables."""
    key = jax.random.key(0)
    networks = setup.networks

    def init(network: kd.Network | None, *inputs: jax.Array) -> Any:
        return network.init(key, *inputs) if network else None

    def step(batch: dict) -> Any:
        state = kd.init_state(setup, key, batch)
        inputs = setup.task(key, batch).generator
        image = jnp.zeros_like(networks.generator.apply(state.generator.variables, *inputs)[0])
        frozen = kd.Teacher(
            init(networks.teacher, *inputs),
            init(networks.teacher_discriminator, image),
            init(networks.extractor, image),
        )
        return kd.make_train_step(setup)(state, frozen, batch)[1]

    metrics = jax.eval_shape(step, batch)
    assert all(value.shape == () for value in metrics.values())


@pytest.mark.parametrize("page", CODE)
def test_the_code_of_a_page_uses_its_imports(page):
    source = "\n".join(block.text for block in blocks(page) if block.language == "python")
    imported, used = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name):
            used.add(node.id)
    assert imported <= used


def commands(page: str) -> list[list[str]]:
    """The commands of the shell blocks, as words, without comments and shell constructs."""
    result = []
    for block in blocks(page):
        if block.language != "sh":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in re.split(r";|&&|\|\||\|", line):
                words = shlex.split(part, comments=True)
                while words and (words[0] in SHELL or re.fullmatch(r"[A-Z_]+=.*", words[0])):
                    words.pop(0)
                if words:
                    result.append(words)
    return result


SHELL = {"until", "do", "done", "srun"}  # followed by a command, or by nothing
UNCHECKED = {"[", "break", "cd", "git"}

SHELL_PAGES = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", SHELL_PAGES)
def test_the_commands_of_a_page_exist(page):
    for words in commands(page):
        check_command(words)


def check_command(words: list[str]) -> None:
    program, *rest = words
    if program in UNCHECKED:
        return
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), words
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for requested in re.findall(r"\[(.*?)\]", " ".join(rest)):
            assert set(requested.split(",")) <= set(extras["optional-dependencies"]), words
    elif program == "kd-jax":
        check_flags(ROOT / "kd_jax" / "cli" / f"{rest[0]}.py", rest[1:])
    elif words[:2] == ["python", "-m"]:
        check_flags((ROOT / Path(*words[2].split("."))).with_suffix(".py"), words[3:])
    else:
        pytest.fail(f"unknown command {words}")


def check_flags(module: Path, arguments: list[str]) -> None:
    """Checks that a module exists, and that its source or its configuration has the flags."""
    assert module.exists(), module
    sources = [module]
    if module.parent.name == "experiments":
        sources.append(module.with_name("harness.py"))
    text = "\n".join(path.read_text() for path in sources)
    defined = set(re.findall(r"\"--([a-z_]+)\"", text))
    defined |= set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text))
    preset = next((a.partition("=")[2] for a in arguments if a.startswith("--preset=")), None)
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument[2:].partition("=")[0]
        if name.startswith("config."):
            make = importlib.import_module(f"experiments.{module.stem}").get_config
            node = make(preset) if preset else make()
            for key in name.split(".")[1:]:
                assert key in node, f"{module.name}: {argument}"
                node = node[key]
        else:
            assert name in defined, f"{module.name}: {argument}"


def test_a_missing_flag_or_target_fails():
    for line in (
        "make nothing",
        "kd-jax evaluate --datta=x",
        "python -m experiments.digits --config.studnt.width=8",
        "python -m experiments.nothing",
        "pip install '.[nothing]'",
        "rm -rf x",
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check_command(shlex.split(line))


def templates() -> str:
    """The strings of the sources; values that are inserted into them are written as `…`."""
    result = []
    for folder in ("kd_jax", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        part.value if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    ]
                    result.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    result.append(node.value)
    return "\n".join(result)


def messages() -> list[str]:
    """The messages of the page on troubleshooting: its headings in code."""
    text = PAGES["troubleshooting.md"].read_text(encoding="utf-8")
    return re.findall(r"^### `(.*)`$", text, re.MULTILINE)


def test_the_messages_occur_in_the_sources():
    known = templates()
    assert len(messages()) > 20
    assert [message for message in messages() if message not in known] == []
    assert "this message … does not exist" not in known


def test_figures_with_a_deviation_are_in_a_report():
    """Of the tables of `experiments/results` only; single runs have no report."""
    reports = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "experiments" / "results").glob("*/report.md")
    )
    for page, path in PAGES.items():
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("|"):
                continue
            for figure in re.findall(r"\d[\d.]* ± \d[\d.]*", line):
                assert figure in reports, f"{page}: {figure}"


LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_links_lead_to_pages_and_pictures():
    for page, path in PAGES.items():
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            if "://" in target:
                continue
            place = (path.parent / target).resolve().relative_to(DOCS).as_posix()
            if place.startswith("pictures/"):
                place = "experiments/results/" + place.removeprefix("pictures/")
                assert (ROOT / place).exists(), f"{page}: {target}"
            elif not place.startswith("api/"):
                assert place in PAGES, f"{page}: {target}"


def test_each_page_is_in_the_navigation():
    listed = re.findall(
        r"^ *- (?:\w+: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(PAGES)


def test_each_method_has_a_page():
    from kd_jax import methods

    text = "".join(path.read_text() for page, path in PAGES.items() if page.startswith("methods/"))
    functions = {name for name in methods.__all__ if callable(getattr(methods, name))}
    for name in functions:
        assert f"methods.{name}" in text, name


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_needs_no_other_host(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        check=True,
        cwd=ROOT,
    )
    for page in [*PAGES, "api/core.md", "api/index.md"]:
        html = (tmp_path / page).with_suffix(".html").read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"?(\S+)|<link[^>]* href=\"?(\S+)", html
        )
        assert not [x for pair in loaded for x in pair if x.startswith(("http", "//"))], page
