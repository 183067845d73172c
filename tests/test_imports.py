"""The dependency order of the packages, and the cost of `import kd_jax`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The packages of kd_jax that each package may import, besides itself. New ones must be added.
ALLOWED = {
    "core": set(),
    "ops": {"core"},
    "losses": {"core"},
    "methods": {"core", "losses"},
    "pruning": {"core"},
    "tasks": {"core", "ops"},
    "augment": {"core", "ops"},
    "models": {"core", "ops"},
    "pretrained": {"core", "models"},
    "data": {"core"},
    "train": {"core", "data"},
    "metrics": {"core", "ops", "losses", "models", "pretrained"},
    "report": set(),
    "model": {"core", "models", "pretrained", "train"},
    "evaluate": {"core", "data", "metrics", "model", "report"},
    "distillation": {
        "core",
        "data",
        "evaluate",
        "losses",
        "methods",
        "metrics",
        "model",
        "models",
        "pretrained",
        "pruning",
        "report",
        "tasks",
        "train",
    },
    "export": {"core", "methods", "metrics", "model", "models", "ops", "pretrained"},
    "cli": {
        "core",
        "data",
        "distillation",
        "evaluate",
        "export",
        "metrics",
        "model",
        "models",
        "pretrained",
        "report",
        "tasks",
        "train",
    },
}


def module(path: Path) -> str:
    """The name of the module that a file defines."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module(path): path for path in sorted((ROOT / "kd_jax").rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, in any scope; of kd_jax, those that define the names."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name if name in FILES else node.module for name in within}
    return modules


IMPORTS = {name: imports(path) for name, path in FILES.items()}


def reachable(name: str) -> set[str]:
    """All modules of kd_jax that a module imports, directly or not; packages' `__init__` apart."""
    result: set[str] = set()
    pending = [name]
    while pending:
        new = (IMPORTS[pending.pop()] & FILES.keys()) - result
        result |= new
        pending += new
    return result


def package(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("name", [name for name in FILES if "." in name])
def test_imports_respect_the_dependency_order(name):
    if name == "kd_jax.__main__":
        return
    assert package(name) in ALLOWED, f"add {package(name)} to ALLOWED"
    inside = {other for other in IMPORTS[name] if other.split(".")[0] == "kd_jax"}
    assert "kd_jax" not in inside
    assert {package(other) for other in inside} - {package(name)} <= ALLOWED[package(name)]
    assert not {
        other for other in IMPORTS[name] if other.split(".")[0] in ("experiments", "benchmarks")
    }


@pytest.mark.parametrize("name", FILES)
def test_there_is_no_cycle_of_modules(name):
    assert name not in reachable(name)


def test_there_is_no_cycle_of_packages():
    ordered: list[str] = []
    while remaining := ALLOWED.keys() - set(ordered):
        free = [name for name in sorted(remaining) if ALLOWED[name] <= set(ordered)]
        assert free, f"a cycle among {sorted(remaining)}"
        ordered += free


@pytest.mark.parametrize(
    "name", [name for name in FILES if name.startswith(("kd_jax.metrics", "kd_jax.evaluate"))]
)
def test_metrics_and_evaluation_know_no_step(name):
    assert "kd_jax.core.step" not in reachable(name)


def test_nested_imports_are_found(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import kd_jax.core.step\nfrom kd_jax import ops\n"
        "def f():\n  from kd_jax.models.dcgan import gan\n  import os.path"
    )
    assert imports(file) == {"kd_jax.core.step", "kd_jax.ops", "kd_jax.models.dcgan", "os.path"}


def test_the_import_is_light():
    heavy = [
        "absl.app", "ai_edge_litert", "clu", "grain", "jax2onnx", "matplotlib", "ml_collections",
        "onnx", "onnxruntime", "PIL", "sklearn", "tensorflow", "tensorflow_datasets", "torch",
    ]  # fmt: skip
    modules = ["kd_jax", "kd_jax.data", "kd_jax.export", "kd_jax.train.checkpoint"]
    modules += ["kd_jax.train.loop"]
    code = (
        f"import sys, {', '.join(modules)}\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"
