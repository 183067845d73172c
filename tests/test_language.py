"""The words of the project are the field's: a private dialect is refused where it would grow back.

Prose (docstrings, comments, messages, Markdown, notebooks) is searched by regular expressions,
identifiers by the names that are assigned or defined.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

START = r"(?:^\W*|[.:;!?]\W+|\"\"\"\W*)"  # of a sentence
PROSE = {
    "adversarial loss": r"\bgames?\b",
    "discriminator, or evaluator": r"\bjudg(?:es?|ed)\b",
    "experiment, or comparison": r"\blessons?\b",
    "evaluation": r"\bexams?\b",
    "distilled, or trained": r"\btaught\b",
    "resume, or continue": r"\b(?:go|goes|going|gone|went) on\b",
    "again": r"\banew\b",
    "memorize": r"\bby heart\b",
    "name the subject": r"\b(?:whoever|nobody|everybody|none has)\b",
    "so that ... not": r"\blest\b",
    "does not have": r"\b(?:has|have) not\b(?! (?:been|yet|\w+(?:ed|en|wn|un)\b))",
    "is not a": r"(?<!there )(?<!There )\b(?:is|are|was|were) no "
    r"(?!longer\b|more\b|less\b|other\b)",
    "name the subject of the sentence": START
    + r"(?:What|Whatever|Whoever|Who|Nobody|One) (?!is\b.*\?)",
    "turn the sentence round": START + r"Of (?:which|several|those|all|them)\b",
    "log, report, warn": r"\b(?:told|tells?|hears?|heard)\b",
    "say what is meant": r"\b(?:no say|word to say|(?:no|any)thing (?:left |more )?to say)\b",
    "target, or ground truth": r"\bright answers?\b",
    "gradient norm": r"\bpull(?:s|ed)?\b(?! request)",
    "discriminator_kl": r"\bopinions?\b",
    "method comparison": r"\bequal footing\b",
    "channel pruning": r"\bfirst students?\b",
    "from scratch": r"\b(?:student|one|learns it|learned) alone\b",
    "repair": r"\bmend(?:s|ed)?\b",
    "during": r"\b(?:in|amid) the midst\b",
    "training diagnostics": r"\bsigns of trouble\b",
    "initialize": r"\bbegins? with random\b",
}
"""The words to write instead, and the pattern that they replace."""

NAMES = {
    "after its content": r"(?:found|given|made|kept|asked|seen|told|taught|turned|moved)",
    "the standard name": (
        r"(?:game|judge|lesson|exam|in_game|self_taught|taught_by|guarded|scanned|side_by_side|"
        r"by_first|from_first|from_all|first_student|recipes|say|tell)"
    ),
}

SUFFIXES = {".py", ".md", ".ipynb", ".html"}


def files() -> list[Path]:
    """Every file of prose or code, but this one, which names what it refuses."""
    places = [
        *(
            ROOT / name
            for name in ("kd_jax", "experiments", "benchmarks", "tests", "colab", "docs")
        ),
        ROOT,
    ]
    paths = {
        path
        for place in places
        for path in (place.glob("*") if place == ROOT else place.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file()
    }
    return sorted(paths - {Path(__file__)})


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that people read: of Python its comments and strings, of others all."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            source = "".join(cell["source"])
            lines = source.splitlines() if cell["cell_type"] == "markdown" else of_code(source)
            yield from ((0, line) for line in lines)
    elif path.suffix == ".py":
        yield from of_python(text)
    else:
        renames = path.name == "CHANGELOG.md"  # its table of old and new names quotes the old ones
        for number, line in enumerate(text.splitlines(), 1):
            if not (renames and line.startswith("| ")):
                yield number, line


def of_code(source: str) -> list[str]:
    plain = "\n".join("" if line.startswith(("%", "!")) else line for line in source.splitlines())
    return [line for _, line in of_python(plain)]


def of_python(text: str) -> Iterator[tuple[int, str]]:
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            for index, line in enumerate(token.string.splitlines()):
                yield token.start[0] + index, line


def names(path: Path) -> Iterator[tuple[int, str]]:
    """The names that a Python file defines or assigns."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def hits(path: Path) -> list[str]:
    where = path.relative_to(ROOT)
    in_prose = [
        f"{where}:{number}: {match.group().strip()!r}: {better}"
        for number, line in prose(path)
        for better, pattern in PROSE.items()
        for match in re.finditer(pattern, line)
    ]
    in_names = [
        f"{where}:{number}: the name {name!r}: {better}"
        for number, name in (names(path) if path.suffix == ".py" else ())
        for better, pattern in NAMES.items()
        if re.fullmatch(pattern, name)
    ]
    return in_prose + in_names


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_the_fields(path):
    assert not hits(path)


@pytest.mark.parametrize(
    "line",
    ["the game is over", "a judge of images", "it goes on", "a scalar is no image", "Nobody knows"],
)
def test_the_lint_sees_the_dialect(line):
    assert any(re.search(pattern, line) for pattern in PROSE.values())


@pytest.mark.parametrize(
    "line",
    ["there is no teacher", "the run resumes", "the loss is no longer finite", "has not been read"],
)
def test_the_lint_lets_plain_english_pass(line):
    assert not any(re.search(pattern, line) for pattern in PROSE.values())
