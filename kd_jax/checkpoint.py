"""Checkpoints: Orbax, with a checksum of every file, since Orbax does not notice damaged ones.

A step's folder holds the items `generator` (the averaged generator, what is deployed), `training`
(everything else of the train state), `data` (the position in the data), `meta` (configuration,
architecture, environment) and, written last, `manifest.json`. A folder without a manifest is a save
that was cut short.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kd_jax import hosts
from kd_jax.architecture import Architecture, rebuild
from kd_jax.network import disconnect
from kd_jax.state import TrainState
from kd_jax.types import Variables

MANIFEST = "manifest.json"
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
      tell: is told a line about what is passed over: damaged checkpoints, allowed changes.

    Raises:
      ValueError: `keep` or `keep_every` is too small.
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
        tell: Callable[[str], None] = _to_stderr,
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
        self._tell = tell
        if hosts.is_first():
            for folder in _step_folders(self._directory):
                if not (folder / MANIFEST).exists():
                    shutil.rmtree(folder)  # Orbax would take it for the latest step.
            for leftover in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover)
        hosts.meet("checkpoints opened")
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
            data=ocp.args.JsonSave(dict(data)),
            meta=ocp.args.JsonSave({"step": step, **self._meta}),
        )
        try:
            with _quiet_orbax:
                # Orbax refuses what it will not save with no more than False.
                if not self._manager.save(step, args=items):
                    raise ValueError("Orbax would not")
        except (OSError, ValueError) as error:
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
        except (OSError, ValueError) as error:
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
                self._tell(f"{line}; it is gone on with, as allowed")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
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
            except (KeyError, TypeError, ValueError) as error:
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
        if not hosts.is_first():
            return
        _write_manifest(self._directory / str(step))
        for folder in _finished(self._directory)[: -self._keep]:
            if not self._keep_every or int(folder.name) % self._keep_every:
                (folder / MANIFEST).unlink()  # first: what is left is no checkpoint
                shutil.rmtree(folder)

    def _failed(self, step: int, error: Exception) -> None:
        with _quiet_orbax, contextlib.suppress(OSError, ValueError):
            self._manager.close()
        if hosts.is_first():
            for left in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
            shutil.rmtree(self._directory / str(step), ignore_errors=True)  # it has no manifest
        self._manager = self._opened()
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"step {step} not saved to {self._directory}: {reason}") from None

    def _choose(self) -> int | None:
        """The latest whole step, the same in all processes; damaged ones after it are set aside."""
        latest = self.latest_step()
        seen = hosts.from_all(-1 if latest is None else latest)
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
        step, problems = -1, list[tuple[int, str]]()
        if hosts.is_first():
            step, problems = _latest_whole(self._directory)
        if step >= 0:
            for number, problem in problems:
                _set_aside(self._directory / str(number))
                self._tell(f"{problem}; it is set aside, and step {step} taken")
        step = hosts.from_first(step)
        if step < 0:
            first = problems[0][1] if problems else "process 0 says which file"
            raise CheckpointError(
                f"no checkpoint in {self._directory} is whole: {first}; choose another folder to "
                "begin anew"
            )
        if step != latest:
            with _quiet_orbax:
                self._manager.reload()
        return step


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
        if hosts.is_first():
            if not self._directory.exists() and (self._new / "0" / MANIFEST).exists():
                self._new.rename(self._directory)  # cut short between the two renames
            shutil.rmtree(self._new, ignore_errors=True)
        self.value = math.inf
        if hosts.is_first() and self._directory.exists():
            # Not by Orbax, for which all processes would have to call.
            folder, _ = _newest(self._directory)
            self.value = float(_read_meta(folder)["configuration"]["value"])

    def offer(self, step: int, value: float, variables: Variables) -> bool:
        """Keeps a generator if its figure is lower than any before it; whether it did.

        Of several processes the first one's figure decides, and all have to call.

        Raises:
          CheckpointError: it could not be written; the best one before it is untouched.
        """
        if not hosts.from_first(value < self.value):
            return False
        configuration = {"figure": self._name, "value": value, "step": step}
        try:
            save_generator(self._new, variables, configuration, self._architecture)
        except (OSError, ValueError) as error:
            shutil.rmtree(self._new, ignore_errors=True)
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"step {step} not kept in {self._directory}: {reason}") from None
        if hosts.is_first():
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
    if hosts.is_first() and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{directory} is not an empty folder")
    with _quiet_orbax, ocp.CheckpointManager(folder) as manager:
        items = {
            "generator": ocp.args.StandardSave(dict(variables)),
            "meta": ocp.args.JsonSave({"step": 0, **_meta(configuration, architecture)}),
        }
        manager.save(0, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
        if hosts.is_first():
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
    step, problems = _latest_whole(directory)
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


def _finished(directory: Path) -> list[Path]:
    """The folders of steps that have a manifest, in order."""
    return [folder for folder in _step_folders(directory) if (folder / MANIFEST).exists()]


def _problem(folder: Path) -> str | None:
    """What is wrong with a finished step, naming the file; None if nothing is."""
    try:
        sums = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{folder / MANIFEST} cannot be read"
    for name, expected in sums.items():
        file = folder / name
        if not file.exists():
            return f"{file} is missing"
        if _sha256(file) != expected:
            return f"{file} is damaged (its sha256 is not the one recorded)"
    return None


def _latest_whole(directory: Path) -> tuple[int, list[tuple[int, str]]]:
    """The latest step without a problem (-1: there is none), and the problems of those after it."""
    problems: list[tuple[int, str]] = []
    for folder in reversed(_finished(directory)):
        problem = _problem(folder)
        if problem is None:
            return int(folder.name), problems
        problems.append((int(folder.name), problem))
    return -1, problems


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
