"""Hooks of mkdocs: the pictures of the results, and the API reference.

Neither is stored twice: the pictures of `experiments/results` are copied into the site as
`pictures/EXPERIMENT/NAME.png`, and the pages `api/*.md` are written from the modules of `kd_jax`.
"""

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kd_jax"


def on_config(config: Any) -> Any:
    """Adds the API reference to the navigation."""
    for section in config.nav:
        if isinstance(section, dict) and "API" in section:
            section["API"] = ["api/index.md", *(f"api/{name}.md" for name in packages())]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pictures and the pages of the API reference."""
    for picture in sorted((ROOT / "experiments" / "results").glob("*/*.png")):
        uri = f"pictures/{picture.parent.name}/{picture.name}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    pages = {"index": index(), **{name: page(name) for name in packages()}}
    for name, content in pages.items():
        files.append(File.generated(config, f"api/{name}.md", content=content))
    return files


def packages() -> list[str]:
    """The packages and modules directly below `kd_jax`, `core` first."""
    names = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    return sorted((name for name in names if public(name)), key=lambda name: (name != "core", name))


def public(name: str) -> bool:
    """Whether a module belongs to the reference."""
    return not name.startswith("_")


def modules(name: str) -> list[str]:
    """The modules of a package that define something, by their dotted names."""
    if (PACKAGE / f"{name}.py").exists():
        return [f"kd_jax.{name}"]
    result = []
    for path in sorted((PACKAGE / name).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__" and defines(path):
            result.append(".".join(parts[:-1]))
        elif all(map(public, parts)):
            result.append(".".join(parts))
    return result


def defines(path: Path) -> bool:
    """Whether a file defines a public function or class."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and public(node.name) for node in body)


def docstring(path: Path) -> str:
    """The docstring of a file."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def page(name: str) -> str:
    """The page of a package: its docstring, and each of its modules."""
    path = PACKAGE / name / "__init__.py"
    lines = [f"# kd_jax.{name}", ""]
    if path.exists():
        lines += [docstring(path), ""]
    return "\n".join(lines + [f"::: {module}\n" for module in modules(name)])


def index() -> str:
    """The page of the names that `import kd_jax` provides."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    lines = ["# API reference", "", "`import kd_jax as kd` provides these names."]
    lines += ["", "| name | |", "|---|---|"]
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("kd_jax."):
            continue
        for alias in node.names:
            target = f"{node.module}.{alias.name}"
            lines.append(f"| [`kd.{alias.name}`][{target}] | {summary(node.module, alias.name)} |")
    lines += ["", "Loaded at their first use, or modules:", "", "| name | |", "|---|---|"]
    for name in packages():
        path = PACKAGE / name
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        lines.append(f"| [`kd_jax.{name}`]({name}.md) | {first_sentence(docstring(path))} |")
    return "\n".join(lines)


def summary(module: str, name: str) -> str:
    """The first sentence of the docstring of a name that a module or a package defines."""
    path = ROOT / Path(*module.split("."))
    files = [path.with_suffix(".py")] if not path.is_dir() else sorted(path.glob("*.py"))
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return first_sentence(ast.get_docstring(node) or "")
    return ""


def first_sentence(text: str) -> str:
    """The first paragraph's first line or sentence, for a cell of a table."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return paragraph.replace("|", "\\|")
