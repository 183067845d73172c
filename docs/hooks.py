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
            section["API"] = [
                "api/index.md",
                *(f"api/{name}.md" for name in packages()),
            ]
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
    return sorted(
        (name for name in names if public(name)),
        key=lambda name: (name != "core", name),
    )


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
    lines = ["# API reference", "", "`import kd_jax as kd` provides these names."]
    lines += ["", "| name | summary |", "|---|---|"]
    for name, target in sorted(exports().items(), key=lambda item: item[0].lower()):
        lines.append(f"| [`kd.{name}`][{target}] | {summary(target)} |")
    lines += ["", "## Packages", "", "| name | summary |", "|---|---|"]
    for name in packages():
        lines.append(f"| [`kd_jax.{name}`]({name}.md) | {summary(f'kd_jax.{name}')} |")
    return "\n".join(lines)


def exports() -> dict[str, str]:
    """The names that `kd_jax/__init__.py` provides, packages apart, and where they are defined."""
    targets = {}
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "kd_jax."
        ):
            targets |= {
                alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
        elif (
            isinstance(node, ast.Assign)
            and getattr(node.targets[0], "id", "") == "_LAZY"
        ):
            for name, (module, attribute) in ast.literal_eval(node.value).items():
                targets[name] = f"{module}.{attribute}" if attribute else module
    return {name: target for name, target in targets.items() if target.count(".") > 1}


def summary(target: str) -> str:
    """The first paragraph of the docstring of a module, function or class, for a table."""
    path = ROOT / Path(*target.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if file.exists():
        return first_paragraph(docstring(file))
    name, parent = path.name, path.parent
    for file in (
        sorted(parent.glob("*.py")) if parent.is_dir() else [parent.with_suffix(".py")]
    ):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return first_paragraph(ast.get_docstring(node) or "")
    raise ValueError(
        f"kd_jax/__init__.py provides {target}, which is not defined there"
    )


def first_paragraph(text: str) -> str:
    """The first paragraph in one line, for a cell of a table."""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")
