"""Checkpoints: Orbax, with a checksum of every file, since Orbax does not notice damaged ones.

A step's folder holds the items `generator` (the averaged generator, what is deployed), `training`
(everything else of the train state), `data` (the position in the data), `meta` (configuration,
architecture, environment) and, written last, `manifest.json`. A folder without a manifest is a save
that was cut short. What is not whole is set aside under another name, and no more than that: only
what a later step has replaced is ever deleted.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import orbax.checkpoint as ocp

from kd_jax import distributed
from kd_jax.architecture import Architecture, rebuild
from kd_jax.network import by_path, disconnect
from kd_jax.state import TrainState
from kd_jax.types import Variables

MANIFEST = "manifest.json"
_OF_GENERATOR = ("generator", "meta")
"""The items that `save_generator` writes, and all that it takes to deploy."""
_ITEMS = ("training", "data", *_OF_GENERATOR)
_OWN = (*_ITEMS, "_CHECKPOINT_METADATA", "commit_success.txt", f"{MANIFEST}.partial")
"""What a step's folder may hold, or have left where its deletion was cut short."""
_UNFINISHED = ".unfinished"
_STEP = r"0|[1-9]\d*"
_FAILURES = (OSError, ValueError, RuntimeError)
"""What Orbax raises where it cannot write; RuntimeError where processes do not meet in time."""
LIBRARIES = ("kd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
"""Those whose versions a checkpoint holds: another one may compute other bits."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, missing, or another run's."""


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is damaged, and the one before it is taken."""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Checkpoints:
    """The checkpoints of one training.

    In a run of several processes all of them make, save and restore together, in one folder that
    all of them see.

    Args:
      directory: where they are; made if absent. No other run may be writing there.
      configuration: what the training was started with, as JSON values. Saved with every step; a
        checkpoint of another configuration is not restored.
      keep: how many of the latest to keep, at least 1.
      keep_every: steps at multiples of it are kept for good; 0 for none.
      architecture: of the generator, from `kd_jax.architecture.describe`, for `load_network`.
      allow_changes: whether to restore a checkpoint of another configuration, number of processes
        or version of a library all the same; what is different is told.
      log: is told a line about what is passed over: damaged checkpoints, allowed changes.

    Raises:
      ValueError: `keep` or `keep_every` is too small.
      CheckpointError: a folder there is named like a step and is none, or there are several steps
        and all manifests are lost.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        configuration: Mapping[str, Any],
        keep: int = 2,
        architecture: Mapping[str, Any] | None = None,
        *,
        keep_every: int = 0,
        allow_changes: bool = False,
        log: Callable[[str], None] = _to_stderr,
    ):
        if keep < 1 or keep_every < 0:
            raise ValueError(
                f"keep={keep} checkpoints must be at least 1, and keep_every={keep_every} at least "
                "0"
            )
        self._directory = Path(directory).absolute()
        self._keep, self._keep_every = keep, keep_every
        self._meta = _meta(configuration, architecture)
        self._allow_changes = allow_changes
        self._log = log
        distributed.run_on_primary(lambda: _recover(self._directory, log), CheckpointError)
        self._manager = self._opened()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: tuple[int, Future[None]] | None = None

    def save(self, step: int, state: TrainState, data: Mapping[str, Any]) -> None:
        """Saves a step. When this returns the state is copied; it is written in the background.

        The checkpoint is there after `wait`, or the next `save`. Until then the one before it is
        the latest, whatever happens.

        Args:
          step: `state.step`, as a number.
          state: the train state.
          data: the position in the data, JSON values.

        Raises:
          CheckpointError: when this step or the one before it could not be written (it is named);
            earlier steps are untouched, and later ones may be saved.
        """
        self.wait()
        if (self._directory / str(step) / MANIFEST).exists():
            return  # The step that this run was restored from.
        latest = self.latest_step()
        if latest is not None and step < latest:
            raise CheckpointError(
                f"step {step} not saved to {self._directory}: it is not after the latest, {latest}"
            )
        items = ocp.args.Composite(
            generator=ocp.args.StandardSave(dict(state.ema)),
            training=ocp.args.StandardSave(state._replace(ema={})),
            # A copy, to the last list of it: it is written while the training goes on.
            data=ocp.args.JsonSave(json.loads(json.dumps(dict(data)))),
            meta=ocp.args.JsonSave({"step": step, **self._meta}),
        )
        try:
            with _quiet_orbax:
                # Orbax refuses what it will not save with no more than False.
                if not self._manager.save(step, args=items):
                    raise ValueError("Orbax would not")
        except _FAILURES as error:
            self._failed(step, error)
        self._saving = step, self._thread.submit(self._finish, step)

    def check(self) -> None:
        """Raises the CheckpointError of a save that has failed by now; it does not wait for one."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Returns when what was saved is there and whole.

        Raises:
          CheckpointError: it could not be written; earlier steps are untouched.
        """
        if self._saving is None:
            return
        (step, writing), self._saving = self._saving, None
        try:
            writing.result()
        except _FAILURES as error:
            self._failed(step, error)

    def latest_step(self) -> int | None:
        """The latest step that is there; None where there is none."""
        folders = _finished(self._directory)
        return int(folders[-1].name) if folders else None

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest whole state and data position; None where nothing was saved.

        A damaged step is set aside (as `STEP.damaged`), and the one before it taken.

        Args:
          like: a state of the same structure, arrays or `ShapeDtypeStruct`s, whose shardings (if
            they have any) the restored arrays get; they need not be those that it was saved with.

        Raises:
          CheckpointError: when every checkpoint is damaged (a file is named), the latest whole one
            is of another configuration, number of processes or version of a library (the first
            difference is named) or of a state of another structure, or the processes do not see the
            same steps.
        """
        step = self._choose()
        if step is None:
            return None
        folder = self._directory / str(step)
        meta = _read_meta(folder)
        for name in ("configuration", "environment"):
            if difference := first_difference(meta.get(name), self._meta[name]):
                line = f"{folder} is of another {name}: {difference}"
                if not self._allow_changes:
                    raise CheckpointError(line)
                self._log(f"{line}; it is gone on with, as allowed")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        _check_state(folder / "generator", dict(abstract.ema))
        _check_state(folder / "training", abstract._replace(ema={}))
        with _quiet_orbax:
            try:
                items = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        generator=ocp.args.StandardRestore(dict(abstract.ema)),
                        training=ocp.args.StandardRestore(abstract._replace(ema={})),
                        data=ocp.args.JsonRestore(),
                    ),
                )
            except (KeyError, TypeError, *_FAILURES) as error:
                lines = " ".join(str(error).split())[:200]
                raise CheckpointError(f"{folder} holds a state of another kind: {lines}") from None
        return items["training"]._replace(ema=items["generator"]), items["data"]

    def close(self) -> None:
        """Waits for what is being saved, and releases what Orbax holds.

        Raises:
          CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def _opened(self) -> ocp.CheckpointManager:
        # No max_to_keep: Orbax would delete old steps before the new one has its manifest.
        options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=True)
        with _quiet_orbax:
            return ocp.CheckpointManager(self._directory, options=options)

    def _finish(self, step: int) -> None:
        """Makes a step whole, then lets older ones go; in the background."""
        with _quiet_orbax:
            self._manager.wait_until_finished()
        if not distributed.is_primary():
            return
        _write_manifest(self._directory / str(step))
        older = [
            folder
            for folder in _finished(self._directory)[: -self._keep]
            if not self._keep_every or int(folder.name) % self._keep_every
        ]
        for folder in [*older, *self._directory.glob(f"*{_UNFINISHED}")]:
            try:
                (folder / MANIFEST).unlink(missing_ok=True)  # first: what is left is no checkpoint
                shutil.rmtree(folder)
            except OSError as error:  # the new step is whole all the same
                self._log(f"warning: {folder} could not be deleted: {_reason(error)}")

    def _failed(self, step: int, error: Exception) -> None:
        with _quiet_orbax, contextlib.suppress(*_FAILURES):
            self._manager.close()
        folder = self._directory / str(step)
        if distributed.is_primary():
            for left in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
            if not (folder / MANIFEST).exists():
                shutil.rmtree(folder, ignore_errors=True)
        self._manager = self._opened()
        raise CheckpointError(
            f"step {step} not saved to {self._directory}: {_reason(error)}"
        ) from None

    def _choose(self) -> int | None:
        """The latest whole step, the same in all processes; damaged ones after it are set aside."""
        latest = self.latest_step()
        seen = distributed.allgather(-1 if latest is None else latest)
        if len(set(seen)) > 1:
            listed = ", ".join(
                f"{'none' if step < 0 else step} in process {number}"
                for number, step in enumerate(seen)
            )
            raise CheckpointError(
                f"the processes do not see the same checkpoints in {self._directory}; the latest "
                f"step is {listed}"
            )
        if latest is None:
            return None

        def choose() -> int:
            step, problems = _latest_whole(self._directory, _ITEMS)
            if step < 0:
                raise CheckpointError(
                    f"no checkpoint in {self._directory} is whole: {problems[0][1]}; choose "
                    "another folder to begin anew"
                )
            for number, problem in problems:
                _set_aside(self._directory / str(number))
                self._log(f"{problem}; it is set aside, and step {step} taken")
            return step

        step = distributed.broadcast(distributed.run_on_primary(choose, CheckpointError) or 0)
        if step != latest:
            with _quiet_orbax:
                self._manager.reload()
        return step


class BestCheckpoint:
    """The generator with the lowest figure so far, in a folder that `load_generator` reads.

    Args:
      directory: the folder; one that is there is gone on from.
      name: the figure's, for people.
      architecture: as in `Checkpoints`.
      log: is told a line about what is damaged, which is set aside.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: str,
        architecture: Mapping[str, Any] | None = None,
        *,
        log: Callable[[str], None] = _to_stderr,
    ):
        self._directory = Path(directory).absolute()
        self._name = name
        self._architecture = architecture
        self._new, self._old = (
            self._directory.with_name(f"{self._directory.name}.{part}")
            for part in ("partial", "old")
        )
        self.value = math.inf
        # Of the first process alone, and not by Orbax, for which all would have to call.
        distributed.run_on_primary(lambda: self._find(log), CheckpointError)

    def _find(self, log: Callable[[str], None]) -> None:
        """Goes on from the best one that is whole, wherever `offer` was cut short."""
        for folder in (self._directory, self._new, self._old):
            if not folder.exists():
                continue
            try:
                found, _ = _newest(folder)
                self.value = float(_read_meta(found)["configuration"]["value"])
            except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
                if folder == self._directory:
                    log(f"{error}; it is set aside")
                    _set_aside(folder)
                continue
            if folder != self._directory:
                folder.rename(self._directory)
            break
        for left in (self._new, self._old):
            shutil.rmtree(left, ignore_errors=True)

    def update(self, step: int, value: float, variables: Variables) -> bool:
        """Keeps a generator if its figure is lower than any before it; whether it did.

        Of several processes the first one's figure decides, and all have to call.

        Raises:
          CheckpointError: it could not be written; the best one before it is untouched.
        """
        if not distributed.broadcast(value < self.value):
            return False
        configuration = {"figure": self._name, "value": value, "step": step}
        try:
            save_generator(self._new, variables, configuration, self._architecture)
            if distributed.is_primary():
                shutil.rmtree(self._old, ignore_errors=True)  # what could not be deleted before
                if self._directory.exists():
                    self._directory.rename(self._old)
                self._new.rename(self._directory)
                shutil.rmtree(self._old, ignore_errors=True)
        except _FAILURES as error:
            if distributed.is_primary() and self._old.exists() and not self._directory.exists():
                self._old.rename(self._directory)
            shutil.rmtree(self._new, ignore_errors=True)
            raise CheckpointError(
                f"step {step} not kept in {self._directory}: {_reason(error)}"
            ) from None
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
    if distributed.is_primary() and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{directory} is not an empty folder")
    with _quiet_orbax, ocp.CheckpointManager(folder) as manager:
        items = {
            "generator": ocp.args.StandardSave(dict(variables)),
            "meta": ocp.args.JsonSave({"step": 0, **_meta(configuration, architecture)}),
        }
        manager.save(0, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
        if distributed.is_primary():
            _write_manifest(folder / "0")


def load_generator(directory: str | os.PathLike[str]) -> tuple[Variables, dict[str, Any]]:
    """The averaged generator of the latest checkpoint, and the configuration it was trained with.

    Args:
      directory: a folder of `Checkpoints`.

    Raises:
      CheckpointError: when there is no whole checkpoint. Only the files of the generator are read
        and verified.
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
    folder, problems = _newest(Path(directory).absolute())
    for problem in problems:
        line = f"{problem}; step {folder.name} is taken"
        warnings.warn(line, DamagedCheckpointWarning, stacklevel=3)
    return restore_item(folder / "generator"), _read_meta(folder)


def _newest(directory: Path) -> tuple[Path, list[str]]:
    """The folder of the latest whole step, and what is wrong with those after it.

    Raises:
      CheckpointError: there is none.
    """
    if not _finished(directory):
        raise CheckpointError(f"there is no checkpoint in {directory}")
    step, problems = _latest_whole(directory, _OF_GENERATOR)
    if step < 0:
        raise CheckpointError(f"no checkpoint in {directory} is whole: {problems[0][1]}")
    return directory / str(step), [problem for _, problem in problems]


def restore_item(place: Path) -> Any:
    """One item of a step, unverified, on one device of this process: wherever it was saved from."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _quiet_orbax, ocp.StandardCheckpointer() as reader:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            reader.metadata(place).item_metadata.tree,
        )
        return reader.restore(place, like)


def _meta(
    configuration: Mapping[str, Any], architecture: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "configuration": json.loads(json.dumps(dict(configuration))),
        **({"architecture": dict(architecture)} if architecture else {}),
        "environment": {
            "processes": jax.process_count(),
            **{name: _version(name) for name in LIBRARIES},
        },
    }


def _version(name: str) -> str | None:
    """None of a library that was not installed: used from its source."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read_meta(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
    return found


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
    folders = [f for f in directory.glob("*") if f.is_dir() and re.fullmatch(_STEP, f.name)]
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


def _finished(directory: Path) -> list[Path]:
    """The folders of steps that have a manifest, in order."""
    return [folder for folder in _step_folders(directory) if (folder / MANIFEST).exists()]


def _verify(folder: Path, items: Sequence[str]) -> str | None:
    """What is wrong with these items of a finished step, naming the file; None if nothing is."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{folder / MANIFEST} cannot be read"
    if not isinstance(sums, dict) or not all(
        isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) for found in sums.values()
    ):
        return f"{folder / MANIFEST} is no list of files with their sha256"
    for item in items:
        if not any(name.startswith(f"{item}/") for name in sums):
            return f"{folder / MANIFEST} lists no file of {item}/"
    for name, expected in sums.items():
        place, file = PurePosixPath(name), folder / name
        if place.is_absolute() or ".." in place.parts:
            return f"{folder / MANIFEST} lists {name!r}, which is outside"
        if place.parts[0] in _ITEMS and place.parts[0] not in items:
            continue
        try:
            if not file.exists():
                return f"{file} is missing"
            if _sha256(file) != expected:
                return f"{file} is damaged (its sha256 is not the one recorded)"
        except OSError as error:
            return f"{file} cannot be read: {error.strerror or type(error).__name__}"
    return None


def _latest_whole(directory: Path, items: Sequence[str]) -> tuple[int, list[tuple[int, str]]]:
    """The latest step whose items are whole (-1: none), and the problems of those after it."""
    problems: list[tuple[int, str]] = []
    for folder in reversed(_finished(directory)):
        problem = _verify(folder, items)
        if problem is None:
            return int(folder.name), problems
        problems.append((int(folder.name), problem))
    return -1, problems


def _recover(directory: Path, log: Callable[[str], None]) -> None:
    """Takes out of Orbax's sight what is no checkpoint, and what it would take for the latest step.

    Raises:
      CheckpointError: as `Checkpoints`.
    """
    unfinished = [f for f in _step_folders(directory) if not (f / MANIFEST).exists()]
    filled = [folder for folder in unfinished if any(folder.iterdir())]
    for folder in filled:
        if not any((folder / name).exists() for name in _OWN):
            raise CheckpointError(f"{folder} is no checkpoint of a training; choose another folder")
    if len(filled) > 1 and not _finished(directory):
        steps = ", ".join(folder.name for folder in filled)
        raise CheckpointError(
            f"no checkpoint in {directory} has its {MANIFEST} (steps {steps}), without which none "
            "is known to be whole; choose another folder to begin anew"
        )
    for folder in unfinished:
        if folder not in filled:
            folder.rmdir()
            continue
        place = folder.with_name(f"{folder.name}{_UNFINISHED}")
        shutil.rmtree(place, ignore_errors=True)  # of a save of the same step, cut short before
        folder.rename(place)
        log(f"{folder} was not finished: it is set aside")
    for leftover in directory.glob("*.orbax-checkpoint-tmp*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _check_state(place: Path, like: Any) -> None:
    """Refuses an item whose arrays are others than those asked for: Orbax would cast silently.

    Raises:
      CheckpointError: the first path that is missing, too many, or of another shape or dtype.
    """
    with _quiet_orbax, ocp.StandardCheckpointer() as reader:
        tree = reader.metadata(place).item_metadata.tree
    there = {path: leaf for path, leaf in by_path(tree).items() if hasattr(leaf, "shape")}
    here = by_path(jax.tree.map(_plain, like))
    for path in sorted({*there, *here}):
        found = [
            f"{leaf.dtype} {tuple(leaf.shape)}" if leaf is not None else "nothing"
            for leaf in (there.get(path), here.get(path))
        ]
        if found[0] != found[1]:
            raise CheckpointError(
                f"{place.parent} holds a state of another kind: {place.name}/{path} is {found[0]} "
                f"there, {found[1]} here"
            )


def _plain(leaf: Any) -> Any:
    """An array's shape and dtype; of random keys, those of their numbers."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return leaf


def _reason(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _set_aside(folder: Path) -> None:
    place, number = folder.with_name(f"{folder.name}.damaged"), 1
    while place.exists():
        number += 1
        place = folder.with_name(f"{folder.name}.damaged-{number}")
    folder.rename(place)


class _Quiet:
    """Keeps Orbax's hundreds of log lines from hiding the one that matters, in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._level = logging.NOTSET

    def __enter__(self) -> None:
        logger = logging.getLogger("absl")
        with self._lock:
            if not self._users:
                self._level = logger.level
                logger.setLevel(logging.CRITICAL)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                logging.getLogger("absl").setLevel(self._level)


_quiet_orbax = _Quiet()
