"""Which way imports point, and what `import kd_jax` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each part may import of kd_jax, beside itself. A new part must be given its place here.
ALLOWED = {
    "types": set(),
    "checks": {"types"},
    "ops": {"types", "checks"},
    "losses": {"types", "checks"},
    "latent": {"types"},
    "network": {"types"},
    "objective": {"types", "checks"},
    "state": {"types", "network", "objective"},
    "step": {"types", "network", "objective", "state"},
    "modes": {"types", "network", "objective", "state", "step"},
    "augment": {"types", "checks", "ops", "network", "objective", "state", "step"},
    "degrade": {"types", "ops"},
    "tasks": {"types", "ops", "degrade", "objective"},
    "weights": {"types", "objective"},
    "pool": {"types"},
    "recipes": {"types", "losses", "pool", "network", "objective", "state", "weights"},
    "health": {"types", "objective", "state", "step"},
    "sharding": {"types", "state", "step"},
    "channels": {"types", "network"},
    "models": {"types", "ops", "network", "state", "channels"},
    "data": {"types"},
    "logs": set(),
    "loop": {"types"},
    "architecture": {"network"},
    "hosts": {"types"},
    "stop": {"hosts"},
    "checkpoint": {"types", "hosts", "architecture", "network", "state"},
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
    "students": {"types", "checks", "network", "channels", "evaluate"},
}


def imported(path: Path) -> set[str]:
    """The parts of kd_jax that a file imports anywhere in it, and other top-level packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
            if node.module == "kd_jax":
                names = [f"kd_jax.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {".".join(name.split(".")[:2]) for name in names}
    return found


def files() -> list[Path]:
    return sorted(p for p in (ROOT / "kd_jax").rglob("*.py") if p.parent.name or p.stem)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = path.relative_to(ROOT / "kd_jax").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert part in ALLOWED, f"give {part} its place in ALLOWED"
    inside = {n.removeprefix("kd_jax.") for n in imported(path) if n.startswith("kd_jax.")}
    assert inside - {part} <= ALLOWED[part]
    assert not {n for n in imported(path) if n.split(".")[0] in ("experiments", "tests")}


def test_the_walk_sees_imports(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import kd_jax.step\nfrom kd_jax import ops\n"
        "def f():\n  from kd_jax.models.dcgan import gan\n  import os.path"
    )
    assert imported(file) == {"kd_jax.step", "kd_jax.ops", "kd_jax.models", "os.path"}


def test_import_is_light():
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
