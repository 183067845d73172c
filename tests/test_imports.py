"""The dependency order of the modules, and the cost of `import kd_jax`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The modules of kd_jax that each module may import, besides itself. New ones must be added.
ALLOWED = {
    "types": set(),
    "checks": {"types"},
    "ops": {"types", "checks"},
    "losses": {"types", "checks"},
    "sefa": {"types"},
    "network": {"types"},
    "objective": {"types", "checks"},
    "state": {"types", "network", "objective"},
    "step": {"types", "network", "objective", "state"},
    "wrappers": {"types", "network", "objective", "state", "step"},
    "augment": {"types", "checks", "ops", "network", "objective", "state", "step"},
    "degradations": {"types", "ops"},
    "tasks": {"types", "ops", "degradations", "objective"},
    "weights": {"types", "objective"},
    "image_pool": {"types"},
    "methods": {"types", "losses", "image_pool", "network", "objective", "state", "weights"},
    "diagnostics": {"types", "objective", "state", "step"},
    "sharding": {"types", "state", "step"},
    "axes": {"types", "network"},
    "models": {"types", "checks", "ops", "network", "state", "axes"},
    "data": {"types"},
    "logs": set(),
    "loop": {"types"},
    "architecture": {"network"},
    "distributed": {"types"},
    "shutdown": {"distributed"},
    "checkpoint": {"types", "distributed", "architecture", "network", "state"},
    "evaluate": {
        "types",
        "ops",
        "network",
        "models",
        "losses",
        "data",
        "sharding",
        "architecture",
        "checkpoint",
        "pretrained",
        "logs",
    },
    "pretrained": {"types", "network", "models", "ops", "evaluate", "architecture", "checkpoint"},
    "pruning": {"types", "checks", "network", "axes", "evaluate"},
}


def imports(path: Path) -> set[str]:
    """The modules of kd_jax and the other packages that a file imports, in any scope."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
            if node.module == "kd_jax":
                names = [f"kd_jax.{alias.name}" for alias in node.names]
        else:
            continue
        modules |= {".".join(name.split(".")[:2]) for name in names}
    return modules


def files() -> list[Path]:
    return sorted(p for p in (ROOT / "kd_jax").rglob("*.py") if p.parent.name or p.stem)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_respect_the_dependency_order(path):
    part = path.relative_to(ROOT / "kd_jax").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert part in ALLOWED, f"add {part} to ALLOWED"
    inside = {n.removeprefix("kd_jax.") for n in imports(path) if n.startswith("kd_jax.")}
    assert inside - {part} <= ALLOWED[part]
    assert not {n for n in imports(path) if n.split(".")[0] in ("experiments", "tests")}


def test_nested_imports_are_found(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import kd_jax.step\nfrom kd_jax import ops\n"
        "def f():\n  from kd_jax.models.dcgan import gan\n  import os.path"
    )
    assert imports(file) == {"kd_jax.step", "kd_jax.ops", "kd_jax.models", "os.path"}


def test_the_import_is_light():
    heavy = [
        "absl.app", "clu", "grain", "matplotlib", "ml_collections", "PIL", "sklearn",
        "tensorflow", "tensorflow_datasets", "torch",
    ]  # fmt: skip
    code = (
        f"import sys, kd_jax, kd_jax.data, kd_jax.checkpoint, kd_jax.loop, kd_jax.evaluate.cost\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"
