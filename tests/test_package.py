"""The package's metadata: extras that cover what the code imports, and the citation."""

import ast
import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"kd_jax", "experiments", "benchmarks", "tests"}
OURS |= {path.stem for path in (ROOT / "tests").rglob("*") if path.suffix in ("", ".py")}

# The extras whose packages each part of the code may import, besides the dependencies.
INSTALLED_FOR = {
    "kd_jax": [],
    "kd_jax/data": ["data"],
    "kd_jax/report": ["evaluate"],
    "kd_jax/distillation": ["evaluate"],
    "kd_jax/export": ["export"],
    "kd_jax/cli": ["evaluate", "video"],
    "kd_jax/train": ["tensorboard"],
    "experiments": ["experiments"],
    "benchmarks": ["bench"],
    "colab": ["notebook"],
    "tests": ["dev"],
}
INDIRECT = {  # requirements that no module here imports
    "ai-edge-litert",  # runs TFLite files; imported by its name, as is TensorFlow
    "flatbuffers",  # jax.export writes files with it
    "importlib-resources",  # tensorflow-datasets needs it to prepare a data set
    "ipykernel",  # runs the notebooks
    "onnx-ir",  # of jax2onnx, which is installed without its requirements
    "tensorflow",  # writes TFLite files
    "tensorboardx",  # writes the event files of a training
}
TOOLS = {"mypy", "pre-commit", "pytest-xdist", "ruff", "mkdocs-material", "mkdocstrings"}


def distribution(requirement: str) -> str:
    """The normalized name in a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0].lower())


def packages(requirements: list[str]) -> set[str]:
    """The distributions of requirements, and those of the extras of kd_jax among them."""
    result = set()
    for requirement in requirements:
        if own := re.fullmatch(r"kd_jax\[([\w,]+)\]", requirement):
            result |= set().union(*(packages(EXTRAS[name]) for name in own[1].split(",")))
        else:
            result.add(distribution(requirement))
    return result


def sources(part: str) -> Iterator[str]:
    for path in sorted((ROOT / part).rglob("*.py")):
        yield path.read_text()
    for path in sorted((ROOT / part).glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield re.sub(r"^([%!])", r"# \1", "".join(cell["source"]), flags=re.MULTILINE)


def imported(part: str) -> set[str]:
    """The distributions that the files below a folder import, in any scope."""
    names = set()
    for source in sources(part):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    known = importlib.metadata.packages_distributions()
    names -= OURS | sys.stdlib_module_names
    return {distribution(owner) for name in names for owner in known.get(name, [name])}


@pytest.mark.parametrize("part", INSTALLED_FOR)
def test_the_extras_cover_the_imports(part):
    if part == "kd_jax":
        inner = [f"kd_jax/{path.name}" for path in (ROOT / "kd_jax").iterdir() if path.is_dir()]
        imports = set().union(*(imported(name) for name in inner if name not in INSTALLED_FOR))
    else:
        imports = imported(part)
    allowed = packages([*PROJECT["dependencies"], *(f"kd_jax[{x}]" for x in INSTALLED_FOR[part])])
    assert imports - allowed == set()


def test_each_requirement_is_used():
    used = set().union(*(imported(part) for part in INSTALLED_FOR))
    required = packages([*PROJECT["dependencies"], *(f"kd_jax[{name}]" for name in EXTRAS)])
    assert required - used - INDIRECT - TOOLS == set()


def test_each_requirement_has_a_lower_bound():
    requirements = [
        *PROJECT["dependencies"],
        *(line for extra in EXTRAS.values() for line in extra),
    ]
    for requirement in requirements:
        assert re.fullmatch(r"[\w.-]+(\[\w+\])?>=[\d.]+|kd_jax\[[\w,]+\]", requirement)


def test_extras_that_the_code_names_exist():
    mentions = [
        name
        for part in ("kd_jax", "experiments", "benchmarks")
        for source in sources(part)
        for names in re.findall(r"(?:kd_jax|\s'?\.)\[([a-z,]+)\]", source)
        for name in names.split(",")
    ]
    assert mentions
    assert set(mentions) <= set(EXTRAS)


def test_the_citation_is_that_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"authors", "message", "title"} <= set(citation)  # required by version 1.2.0
    fields = {"title": "name", "version": "version", "license": "license"}
    assert {ours: citation[ours] for ours in fields} == {
        ours: PROJECT[field] for ours, field in fields.items()
    }
