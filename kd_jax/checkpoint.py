"""Checkpoints: Orbax, with a checksum of every file, since Orbax does not notice damaged ones.

A step's folder holds the items `generator` (the averaged generator, what is deployed), `training`
(everything else of the train state), `data` (the position in the data), `meta` (the configuration)
and, written last, `manifest.json`. A folder without a manifest is a save that was cut short.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kd_jax.architecture import Architecture, rebuild
from kd_jax.network import disconnect
from kd_jax.state import TrainState
from kd_jax.types import Variables

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, missing, or another run's."""


class Checkpoints:
    """The checkpoints of one training.

    Args:
      directory: where they are; made if absent.
      configuration: what the training was started with, as JSON values. Saved with every step; a
        checkpoint of another configuration is not restored.
      keep: how many of the latest to keep.
      architecture: of the generator, from `kd_jax.architecture.describe`, for `load_network`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        configuration: Mapping[str, Any],
        keep: int = 2,
        architecture: Mapping[str, Any] | None = None,
    ):
        self._directory = Path(directory).absolute()
        self._configuration = json.loads(json.dumps(dict(configuration)))
        self._architecture = architecture
        for folder in _step_folders(self._directory):
            if not (folder / MANIFEST).exists():
                shutil.rmtree(folder)  # Orbax would take it for the latest step.
        for leftover in self._directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover)
        with _quiet_orbax():
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, create=True, enable_async_checkpointing=False
                ),
            )

    def save(self, step: int, state: TrainState, data: Mapping[str, Any]) -> None:
        """Saves a step; when this returns, the checkpoint is whole and will be found.

        Args:
          step: `state.step`, as a number.
          state: the train state.
          data: the position in the data, JSON values.

        Raises:
          CheckpointError: when it could not be written; earlier steps are untouched.
        """
        if (self._directory / str(step) / MANIFEST).exists():
            return  # The step that this run was restored from.
        items = ocp.args.Composite(
            generator=ocp.args.StandardSave(dict(state.ema)),
            training=ocp.args.StandardSave(state._replace(ema={})),
            data=ocp.args.JsonSave(dict(data)),
            meta=ocp.args.JsonSave(_meta(step, self._configuration, self._architecture)),
        )
        try:
            with _quiet_orbax():
                # Orbax refuses a step that is not after the latest with no more than False.
                if not self._manager.save(step, args=items):
                    raise ValueError(f"it is not after the latest step, {self.latest_step()}")
                self._manager.wait_until_finished()
            if jax.process_index() == 0:
                _write_manifest(self._directory / str(step))
        except (OSError, ValueError) as error:
            shutil.rmtree(self._directory / str(step), ignore_errors=True)  # it has no manifest
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"step {step} not saved to {self._directory}: {reason}") from None

    def latest_step(self) -> int | None:
        """The latest step saved; None where there is none."""
        folders = _step_folders(self._directory)
        return int(folders[-1].name) if folders else None

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state and data position; None where nothing was saved.

        Args:
          like: a state of the same structure, arrays or `ShapeDtypeStruct`s, whose shardings (if
            they have any) the restored arrays get.

        Raises:
          CheckpointError: when a file is damaged (it is named), or the checkpoint is of another
            configuration (the first difference is named) or a state of another structure.
        """
        step = self.latest_step()
        if step is None:
            return None
        folder = self._directory / str(step)
        _verify(folder)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with _quiet_orbax():
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
            there = meta["meta"]["configuration"]
            if difference := first_difference(there, self._configuration):
                raise CheckpointError(f"{folder} is of another configuration: {difference}")
            try:
                items = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        generator=ocp.args.StandardRestore(dict(abstract.ema)),
                        training=ocp.args.StandardRestore(abstract._replace(ema={})),
                        data=ocp.args.JsonRestore(),
                    ),
                )
            except (KeyError, TypeError, ValueError) as error:
                lines = " ".join(str(error).split())[:200]
                raise CheckpointError(f"{folder} holds a state of another kind: {lines}") from None
        return items["training"]._replace(ema=items["generator"]), items["data"]

    def close(self) -> None:
        """Releases what Orbax holds."""
        self._manager.close()


class Best:
    """The generator with the lowest figure so far, in a folder that `load_generator` reads.

    Args:
      directory: the folder; one that is there is gone on from.
      name: the figure's, for people.
      architecture: as in `Checkpoints`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: str,
        architecture: Mapping[str, Any] | None = None,
    ):
        self._directory = Path(directory).absolute()
        self._name = name
        self._architecture = architecture
        self._new = self._directory.with_name(f"{self._directory.name}.partial")
        if not self._directory.exists() and (self._new / "0" / MANIFEST).exists():
            self._new.rename(self._directory)  # cut short between the two renames
        shutil.rmtree(self._new, ignore_errors=True)
        self.value = math.inf
        if self._directory.exists():
            self.value = float(load_generator(self._directory)[1]["value"])

    def offer(self, step: int, value: float, variables: Variables) -> bool:
        """Keeps a generator if its figure is lower than any before it; whether it did.

        Raises:
          CheckpointError: it could not be written; the best one before it is untouched.
        """
        if not value < self.value:
            return False
        configuration = {"figure": self._name, "value": value, "step": step}
        try:
            save_generator(self._new, variables, configuration, self._architecture)
        except (OSError, ValueError) as error:
            shutil.rmtree(self._new, ignore_errors=True)
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"step {step} not kept in {self._directory}: {reason}") from None
        shutil.rmtree(self._directory, ignore_errors=True)
        self._new.rename(self._directory)
        self.value = value
        return True


def save_generator(
    directory: str | os.PathLike[str],
    variables: Variables,
    configuration: Mapping[str, Any],
    architecture: Mapping[str, Any] | None = None,
) -> None:
    """A checkpoint of a generator alone, for `load_generator`: one that was not trained here.

    Args:
      directory: a new or an empty folder.
      variables: the generator's.
      configuration: what it is, as JSON values.
      architecture: from `kd_jax.architecture.describe`, for `load_network`.

    Raises:
      CheckpointError: the folder is not empty.
    """
    folder = Path(directory).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{directory} is not an empty folder")
    with _quiet_orbax(), ocp.CheckpointManager(folder) as manager:
        items = {
            "generator": ocp.args.StandardSave(dict(variables)),
            "meta": ocp.args.JsonSave(_meta(0, configuration, architecture)),
        }
        manager.save(0, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
        _write_manifest(folder / "0")


def load_generator(directory: str | os.PathLike[str]) -> tuple[Variables, dict[str, Any]]:
    """The averaged generator of the latest checkpoint, and the configuration it was trained with.

    Args:
      directory: a folder of `Checkpoints`.

    Raises:
      CheckpointError: when there is no whole checkpoint, or a file of it is damaged.
    """
    variables, meta = _latest_generator(directory)
    return variables, meta["configuration"]


def load_network(
    directory: str | os.PathLike[str], packages: Sequence[str] = ()
) -> tuple[Architecture, Variables]:
    """The averaged generator of the latest checkpoint with its network: ready for `apply`.

    Args:
      directory: a folder of `Checkpoints`.
      packages: further packages whose modules may be in it (`kd_jax.architecture.rebuild`).

    Returns:
      The network and what it takes, and the variables, without connectors.

    Raises:
      CheckpointError: when there is no whole checkpoint, a file of it is damaged, or it does not
        say what network it is of.
    """
    variables, meta = _latest_generator(directory)
    if not meta.get("architecture"):
        raise CheckpointError(
            f"the checkpoint in {directory} does not say what network it is of; load_generator "
            "reads its variables"
        )
    try:
        return rebuild(meta["architecture"], packages), disconnect(variables)
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}") from None


def _latest_generator(directory: str | os.PathLike[str]) -> tuple[Variables, dict[str, Any]]:
    folders = [f for f in _step_folders(Path(directory).absolute()) if (f / MANIFEST).exists()]
    if not folders:
        raise CheckpointError(f"there is no checkpoint in {directory}")
    _verify(folders[-1])
    with _quiet_orbax():
        variables = ocp.StandardCheckpointer().restore(folders[-1] / "generator")
    meta = json.loads((folders[-1] / "meta" / "metadata").read_text(encoding="utf-8"))
    return variables, meta


def _meta(
    step: int, configuration: Mapping[str, Any], architecture: Mapping[str, Any] | None
) -> dict[str, Any]:
    found: dict[str, Any] = {"step": step, "configuration": dict(configuration)}
    return found | ({"architecture": dict(architecture)} if architecture else {})


def first_difference(there: Any, here: Any, path: str = "") -> str | None:
    """Where two trees of JSON values first differ, in one line; None where they are equal."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *(k for k in here if k not in there)]:
            name = f"{path}.{key}" if path else str(key)
            if key not in there or key not in here:
                side = "here" if key in here else "there"
                return f"{name} is only {side}"
            if difference := first_difference(there[key], here[key], name):
                return difference
        return None
    return None if there == here else f"{path} is {there!r} there, {here!r} here"


def _step_folders(directory: Path) -> list[Path]:
    folders = [f for f in directory.glob("*") if f.is_dir() and f.name.isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name))


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path) -> None:
    sums = {file.relative_to(folder).as_posix(): _sha256(file) for file in _files(folder)}
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(sums, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)


def _verify(folder: Path) -> None:
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read") from error
    for name, expected in sums.items():
        file = folder / name
        if not file.exists():
            problem = "is missing"
        elif _sha256(file) != expected:
            problem = "is damaged (its sha256 is not the one recorded)"
        else:
            continue
        raise CheckpointError(f"{file} {problem}; delete {folder} to go on from an earlier step")


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps Orbax's hundreds of log lines from hiding the one that matters."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
