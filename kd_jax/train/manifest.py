"""The folders of a training's checkpoints: which steps are complete, and whether they are intact.

Orbax detects neither an interrupted save nor a damaged file. A step's folder therefore also holds
`manifest.json` with the SHA-256 of every file, written last: a folder without it is an interrupted
save.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from kd_jax.core.files import check_regular, file_sha256, read_json

MANIFEST = "manifest.json"
GENERATOR_ITEMS = ("generator", "meta")
"""The items that `save_generator` writes and `load_generator` reads."""
ITEMS = ("training", "data", *GENERATOR_ITEMS)
_ENTRIES = (*ITEMS, "_CHECKPOINT_METADATA", "commit_success.txt", f"{MANIFEST}.partial")
"""Entries of a step's folder, any of which may remain after an interrupted deletion."""
UNFINISHED = ".unfinished"
_STEP = r"0|[1-9]\d{0,17}"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, missing, or belongs to another run."""


def _step_folders(directory: Path) -> list[Path]:
    folders = [f for f in directory.glob("*") if f.is_dir() and re.fullmatch(_STEP, f.name)]
    return sorted(folders, key=lambda folder: int(folder.name))


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)


def write(folder: Path) -> None:
    """Completes a step: writes the manifest of its folder."""
    sums = {file.relative_to(folder).as_posix(): file_sha256(file) for file in _files(folder)}
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(sums, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)


def finished(directory: Path) -> list[Path]:
    """The folders of steps that have a manifest, or cannot be read, in order."""
    return [folder for folder in _step_folders(directory) if _has_manifest(folder)]


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).exists()
    except OSError:  # `verify` names the problem, and the step before is taken
        return True


def verify(folder: Path, items: Sequence[str]) -> str | None:
    """Checks these items of a finished step; a problem, naming the file, or None."""
    try:
        sums = read_json(folder / MANIFEST)
    except OSError as error:
        return f"{folder / MANIFEST} cannot be read: {error.strerror or error}"
    except ValueError as error:
        return str(error)
    if not all(
        isinstance(checksum, str) and re.fullmatch("[0-9a-f]{64}", checksum)
        for checksum in sums.values()
    ):
        return f"{folder / MANIFEST} is not an object of file names and their sha256"
    for item in items:
        if not any(name.startswith(f"{item}/") for name in sums):
            return f"{folder / MANIFEST} lists no file of {item}/"
    for name, expected in sums.items():
        place, file = PurePosixPath(name), folder / name
        if not place.parts or place.is_absolute() or ".." in place.parts:
            return f"{folder / MANIFEST} lists {name!r}, which is outside the folder"
        if place.parts[0] in ITEMS and place.parts[0] not in items:
            continue
        try:
            if not file.exists():
                return f"{file} is missing"
            check_regular(file)
            if file_sha256(file) != expected:
                return f"{file} is damaged (its sha256 differs from the recorded one)"
        except OSError as error:
            return f"{file} cannot be read: {error.strerror or type(error).__name__}"
        except ValueError as error:
            return str(error)
    for item in items:
        for file in (folder / item).rglob("*"):
            if not file.is_dir() and file.relative_to(folder).as_posix() not in sums:
                return f"{file} is not listed in {MANIFEST}"
    return None


def latest_intact(directory: Path, items: Sequence[str]) -> tuple[int, list[tuple[int, str]]]:
    """The latest step whose items are intact (-1: none), and the problems of those after it."""
    problems: list[tuple[int, str]] = []
    for folder in reversed(finished(directory)):
        problem = verify(folder, items)
        if problem is None:
            return int(folder.name), problems
        problems.append((int(folder.name), problem))
    return -1, problems


def recover(directory: Path, log: Callable[[str], None]) -> None:
    """Renames or removes unfinished steps, which Orbax would take for the latest checkpoint.

    Raises:
      CheckpointError: as `Checkpoints`.
    """
    unfinished = [folder for folder in _step_folders(directory) if not _has_manifest(folder)]
    nonempty = [folder for folder in unfinished if any(folder.iterdir())]
    for folder in nonempty:
        if not any((folder / name).exists() for name in _ENTRIES):
            raise CheckpointError(f"{folder} is not a training checkpoint; choose another folder")
    if len(nonempty) > 1 and not finished(directory):
        steps = ", ".join(folder.name for folder in nonempty)
        raise CheckpointError(
            f"no checkpoint in {directory} has its {MANIFEST} (steps {steps}), so none can be "
            "verified; choose another folder to start a new run"
        )
    for folder in unfinished:
        if folder not in nonempty:
            folder.rmdir()
            continue
        place = folder.with_name(f"{folder.name}{UNFINISHED}")
        shutil.rmtree(place, ignore_errors=True)  # of an earlier interrupted save of this step
        folder.rename(place)
        log(f"{folder} was not finished: it is set aside")
    for leftover in directory.glob("*.orbax-checkpoint-tmp*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def set_aside(folder: Path) -> None:
    """Renames a damaged folder to `NAME.damaged`, or `NAME.damaged-2`, ..."""
    place, number = folder.with_name(f"{folder.name}.damaged"), 1
    while place.exists():
        number += 1
        place = folder.with_name(f"{folder.name}.damaged-{number}")
    folder.rename(place)
