"""Checkpoints: Orbax, plus a checksum of every file, since Orbax does not detect damaged files.

A step's folder holds the items `generator` (the averaged generator, for deployment), `training`
(the rest of the train state), `data` (the position in the data), `meta` (configuration,
architecture, environment) and, written last, `manifest.json`. A folder without a manifest is an
interrupted save. Incomplete and damaged folders are renamed, never deleted; only checkpoints that a
later step supersedes are deleted.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kd_jax.core.architecture import Architecture, check_variables, rebuild
from kd_jax.core.checks import differences, shorten
from kd_jax.core.files import read_json
from kd_jax.core.network import by_path, disconnect
from kd_jax.core.state import TrainState
from kd_jax.core.types import Variables
from kd_jax.train import distributed, manifest
from kd_jax.train.manifest import CheckpointError as CheckpointError

_FAILURES = (OSError, ValueError, RuntimeError)
"""Errors of Orbax when it cannot write; RuntimeError: a barrier between processes timed out."""
_LARGEST_UNSTORED, _LARGEST_RATIO = 1 << 30, 1000
"""Bytes that an item may claim without storing them, and for each stored byte (by compression)."""
LIBRARIES = ("kd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
"""Libraries whose versions a checkpoint records: other versions may not be bit-exact."""


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is damaged; the one before it is loaded."""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Checkpoints:
    """The checkpoints of one training run.

    In a run of several processes, all of them construct, save and restore together, in one shared
    folder.

    Args:
      directory: the folder of the checkpoints; created if absent. No other run may write to it.
      configuration: the run's configuration, as JSON values. Saved with every step; a checkpoint
        with another configuration is not restored.
      keep: the number of latest checkpoints to keep, at least 1.
      keep_every: steps at multiples of it are kept permanently; 0 for none.
      architecture: of the generator, from `kd_jax.core.architecture.describe`, for `load_network`.
      allow_changes: restore a checkpoint even if the configuration, the number of processes or a
        library version differs; the difference is logged.
      log: called with one line for each damaged or unfinished checkpoint and each allowed change.

    Attributes:
      changes: the settings and versions in which the restored checkpoint differs, where allowed.

    Raises:
      ValueError: `keep` or `keep_every` is too small.
      CheckpointError: a folder is named like a step but is not a checkpoint, or there are several
        steps and all manifests are missing.
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
        self._meta = _make_meta(configuration, architecture)
        self._allow_changes = allow_changes
        self._log = log
        self.changes: list[str] = []
        distributed.run_on_primary(lambda: manifest.recover(self._directory, log), CheckpointError)
        self._manager = self._open_manager()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: tuple[int, Future[None]] | None = None

    def save(self, step: int, state: TrainState, data: Mapping[str, Any]) -> None:
        """Saves a step: copies the state before it returns, and writes it in the background.

        The checkpoint is complete after `wait`, or the next `save`. Until then the previous one
        remains the latest.

        Args:
          step: `state.step`, as a number.
          state: the train state.
          data: the position in the data, JSON values.

        Raises:
          CheckpointError: this step or the previous one could not be written (the message names
            it); earlier steps are untouched, and later ones may be saved.
        """
        self.wait()
        if (self._directory / str(step) / manifest.MANIFEST).exists():
            return  # the step that this run was restored from
        latest = self.latest_step()
        if latest is not None and step < latest:
            raise CheckpointError(
                f"step {step} not saved to {self._directory}: it is not after the latest, {latest}"
            )
        items = ocp.args.Composite(
            generator=ocp.args.StandardSave(dict(state.ema)),
            training=ocp.args.StandardSave(_stored(state)),
            # A deep copy: it is written while the training continues.
            data=ocp.args.JsonSave(json.loads(json.dumps(dict(data)))),
            meta=ocp.args.JsonSave({"step": step, **self._meta}),
        )
        try:
            with _quiet_orbax:
                # Orbax refuses to save a step by returning False.
                if not self._manager.save(step, args=items):
                    raise ValueError("Orbax refused to save it")
        except _FAILURES as error:
            self._raise_failed(step, error)
        self._saving = step, self._thread.submit(self._finish, step)

    def check(self) -> None:
        """Raises the CheckpointError of a save that has failed; does not wait for a pending one."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until the pending save is complete.

        Raises:
          CheckpointError: it could not be written; earlier steps are untouched.
        """
        if self._saving is None:
            return
        (step, writing), self._saving = self._saving, None
        try:
            writing.result()
        except _FAILURES as error:
            self._raise_failed(step, error)

    def latest_step(self) -> int | None:
        """The latest complete step; None if there is none."""
        folders = manifest.finished(self._directory)
        return int(folders[-1].name) if folders else None

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest intact state and data position; None if there is no checkpoint.

        A damaged step is renamed to `STEP.damaged`, and the one before it is restored.

        Args:
          like: a state of the same structure, arrays or `ShapeDtypeStruct`s, whose shardings (if
            any) the restored arrays get; they may differ from those at the time of saving.

        Raises:
          CheckpointError: every checkpoint is damaged (the message names a file), the latest intact
            one has another configuration, number of processes or library version (the message names
            the first difference) or a state of another structure, or the processes do not see the
            same steps.
        """
        step = self._choose()
        if step is None:
            return None
        folder = self._directory / str(step)
        meta = _read_meta(folder)
        for name in ("configuration", "environment"):
            if changes := list(differences(meta.get(name), self._meta[name])):
                line = f"{folder} was saved with another {name}: {shorten(changes)}"
                if not self._allow_changes:
                    raise CheckpointError(line)
                self._log(f"{line}; the run resumes, as allowed")
                self.changes += changes
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        training = _stored(abstract)
        _check_state(folder / "generator", dict(abstract.ema))
        _check_state(folder / "training", training)
        with _quiet_orbax:
            try:
                items = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        generator=ocp.args.StandardRestore(dict(abstract.ema)),
                        training=ocp.args.StandardRestore(training),
                        data=ocp.args.JsonRestore(),
                    ),
                )
            except (KeyError, TypeError, *_FAILURES) as error:
                lines = " ".join(str(error).split())[:200]
                raise CheckpointError(f"{folder} holds another kind of state: {lines}") from None
        return _restored(items["training"], like)._replace(ema=items["generator"]), items["data"]

    def close(self) -> None:
        """Waits for the pending save, and releases the resources of Orbax.

        Raises:
          CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def _open_manager(self) -> ocp.CheckpointManager:
        # No max_to_keep: Orbax would delete old steps before the new one has its manifest.
        options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=True)
        with _quiet_orbax:
            return ocp.CheckpointManager(self._directory, options=options)

    def _finish(self, step: int) -> None:
        """Completes a step, then deletes older ones; runs in the background."""
        with _quiet_orbax:
            self._manager.wait_until_finished()
        if not distributed.is_primary():
            return
        manifest.write(self._directory / str(step))
        older = [
            folder
            for folder in manifest.finished(self._directory)[: -self._keep]
            if not self._keep_every or int(folder.name) % self._keep_every
        ]
        for folder in [*older, *self._directory.glob(f"*{manifest.UNFINISHED}")]:
            try:
                # The manifest first: without it the remains do not count as a checkpoint.
                (folder / manifest.MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(folder)
            except OSError as error:  # the new step is complete regardless
                self._log(f"warning: {folder} could not be deleted: {_reason(error)}")

    def _raise_failed(self, step: int, error: Exception) -> None:
        """Removes the remains of a failed save, and raises its CheckpointError."""
        with _quiet_orbax, contextlib.suppress(*_FAILURES):
            self._manager.close()
        folder = self._directory / str(step)
        if distributed.is_primary():
            for leftover in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if not (folder / manifest.MANIFEST).exists():
                shutil.rmtree(folder, ignore_errors=True)
        self._manager = self._open_manager()
        raise CheckpointError(
            f"step {step} not saved to {self._directory}: {_reason(error)}"
        ) from None

    def _choose(self) -> int | None:
        """The latest intact step, the same in all processes; renames damaged ones after it."""
        latest = self.latest_step()
        latest_steps = distributed.allgather(-1 if latest is None else latest)
        if len(set(latest_steps)) > 1:
            listed = ", ".join(
                f"{'none' if step < 0 else step} in process {number}"
                for number, step in enumerate(latest_steps)
            )
            raise CheckpointError(
                f"the processes do not see the same checkpoints in {self._directory}; the latest "
                f"step is {listed}"
            )
        if latest is None:
            return None

        def choose() -> int:
            step, problems = manifest.latest_intact(self._directory, manifest.ITEMS)
            if step < 0:
                raise CheckpointError(
                    f"no intact checkpoint in {self._directory}: {problems[0][1]}; choose another "
                    "folder to start a new run"
                )
            for number, problem in problems:
                manifest.set_aside(self._directory / str(number))
                self._log(f"{problem}; it is set aside, and step {step} taken")
            return step

        step = distributed.broadcast(distributed.run_on_primary(choose, CheckpointError) or 0)
        if step != latest:
            with _quiet_orbax:
                self._manager.reload()
        return step


class BestCheckpoint:
    """The generator with the lowest metric value so far, in a folder that `load_generator` reads.

    Args:
      directory: the folder; an existing one is continued.
      name: the metric's name, recorded in the checkpoint.
      architecture: as in `Checkpoints`.
      log: called with one line if the checkpoint is damaged; its folder is then renamed.

    Attributes:
      value: the lowest value so far; infinite if there is none.
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
        # Only in the primary process, and without Orbax, which would need all processes.
        distributed.run_on_primary(lambda: self._restore_best(log), CheckpointError)

    def _restore_best(self, log: Callable[[str], None]) -> None:
        """Finds the best intact checkpoint, at whatever point `update` was interrupted."""
        for folder in (self._directory, self._new, self._old):
            if not folder.exists():
                continue
            try:
                step_folder, _ = _newest(folder)
                self.value = float(_read_meta(step_folder)["configuration"]["value"])
            except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
                if folder == self._directory:
                    log(f"{error}; it is set aside")
                    manifest.set_aside(folder)
                continue
            if folder != self._directory:
                folder.rename(self._directory)
            break
        for leftover in (self._new, self._old):
            shutil.rmtree(leftover, ignore_errors=True)

    def update(self, step: int, value: float, variables: Variables) -> bool:
        """Saves a generator if its value is lower than all before it; returns whether it did.

        The primary process's value decides; all processes must call.

        Raises:
          CheckpointError: it could not be written; the previous best is untouched.
        """
        if not distributed.broadcast(value < self.value):
            return False
        configuration = {"figure": self._name, "value": value, "step": step}
        try:
            save_generator(self._new, variables, configuration, self._architecture)
            if distributed.is_primary():
                shutil.rmtree(self._old, ignore_errors=True)  # left by a failed deletion
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
    """Saves only a generator, such as a converted one, as a checkpoint for `load_generator`.

    Args:
      directory: a new or an empty folder.
      variables: the generator's.
      configuration: its description, as JSON values.
      architecture: from `kd_jax.core.architecture.describe`, for `load_network`.

    Raises:
      CheckpointError: the folder is not empty.
    """
    folder = Path(directory).absolute()
    if distributed.is_primary() and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{directory} is not an empty folder")
    with _quiet_orbax, ocp.CheckpointManager(folder) as manager:
        items = {
            "generator": ocp.args.StandardSave(dict(variables)),
            "meta": ocp.args.JsonSave({"step": 0, **_make_meta(configuration, architecture)}),
        }
        manager.save(0, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
        if distributed.is_primary():
            manifest.write(folder / "0")


def load_generator(directory: str | os.PathLike[str]) -> tuple[Variables, dict[str, Any]]:
    """The averaged generator of the latest checkpoint, and the configuration it was trained with.

    Only the files of the generator are read and verified.

    Args:
      directory: a folder of `Checkpoints`.

    Raises:
      CheckpointError: there is no intact checkpoint.
    """
    variables, meta = _latest_generator(directory)
    return variables, meta["configuration"]


def load_network(
    directory: str | os.PathLike[str], packages: Sequence[str] = ()
) -> tuple[Architecture, Variables]:
    """The averaged generator of the latest checkpoint with its network, ready for `apply`.

    Args:
      directory: a folder of `Checkpoints`.
      packages: further packages whose modules it may contain (`kd_jax.core.architecture.rebuild`).

    Returns:
      The network with its inputs, and the variables, without connectors.

    Raises:
      CheckpointError: there is no intact checkpoint, or it does not contain a valid description of
        its network.
    """
    return load_described(directory, packages)[:2]


def load_described(
    directory: str | os.PathLike[str], packages: Sequence[str] = ()
) -> tuple[Architecture, Variables, dict[str, Any]]:
    """The results of `load_network`, and the run's configuration."""
    variables, meta = _latest_generator(directory)
    if not meta.get("architecture"):
        raise CheckpointError(
            f"the checkpoint in {directory} has no description of its network; load_generator "
            "reads its variables"
        )
    try:
        architecture = rebuild(meta["architecture"], packages)
        variables = disconnect(variables)
        check_variables(architecture, variables)
    except ValueError as error:
        raise CheckpointError(f"{directory}: {' '.join(str(error).split())[:500]}") from None
    return architecture, variables, meta["configuration"]


def _latest_generator(directory: str | os.PathLike[str]) -> tuple[Variables, dict[str, Any]]:
    folder, problems = _newest(Path(directory).absolute())
    for problem in problems:
        line = f"{problem}; step {folder.name} is loaded instead"
        warnings.warn(line, DamagedCheckpointWarning, stacklevel=3)
    return restore_item(folder / "generator"), _read_meta(folder)


def _newest(directory: Path) -> tuple[Path, list[str]]:
    """The folder of the latest intact step, and the problems of those after it.

    Raises:
      CheckpointError: there is none.
    """
    if not manifest.finished(directory):
        raise CheckpointError(f"there is no checkpoint in {directory}")
    step, problems = manifest.latest_intact(directory, manifest.GENERATOR_ITEMS)
    if step < 0:
        raise CheckpointError(f"no intact checkpoint in {directory}: {problems[0][1]}")
    return directory / str(step), [problem for _, problem in problems]


def restore_item(place: Path) -> Any:
    """Restores an item of a step to one local device, whatever its sharding; does not verify it.

    Raises:
      CheckpointError: Orbax cannot read it, or it claims more memory than its files can hold.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    stored = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    # The folder may be anyone's: its values pass through Orbax, TensorStore and JAX, whose errors
    # have no common type.
    try:
        with _quiet_orbax, ocp.StandardCheckpointer() as reader:
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                reader.metadata(place).item_metadata.tree,
            )
            claimed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(like))
            if claimed > _LARGEST_UNSTORED + _LARGEST_RATIO * stored:
                raise ValueError(f"it claims {claimed:,} bytes in files of {stored:,}")
            return reader.restore(place, like)
    except Exception as error:
        raise CheckpointError(f"{place} cannot be restored: {_reason(error)[:300]}") from error


def _make_meta(
    configuration: Mapping[str, Any], architecture: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "configuration": json.loads(json.dumps(dict(configuration))),
        **({"architecture": dict(architecture)} if architecture else {}),
        "environment": {"processes": jax.process_count(), **versions()},
    }


def versions() -> dict[str, str | None]:
    """The versions of `LIBRARIES`."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    """The installed version; None for a library used from its source tree."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read_meta(folder: Path) -> dict[str, Any]:
    """The metadata of a step.

    Raises:
      CheckpointError: it is damaged.
    """
    path = folder / "meta" / "metadata"
    try:
        meta = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from None
    for name in ("configuration", "environment"):
        if not isinstance(meta.setdefault(name, {}), dict):
            raise CheckpointError(f"{path} is damaged: {name} is not an object")
    return meta


def _stored(state: TrainState) -> dict[str, Any]:
    """The item `training`: the state without its average, and with the wrappers' states beside it.

    The layout of the first version: a state without wrappers has empty entries.
    """

    def inner(leaf: Any) -> Any:
        return {**_stored(leaf), "ema": leaf.ema} if isinstance(leaf, TrainState) else leaf

    fields = state._asdict()
    wrappers = {"skipped": (), "teachers": {}, **fields.pop("wrappers")}
    return {
        **fields,
        "ema": {},
        **jax.tree.map(inner, wrappers, is_leaf=lambda leaf: isinstance(leaf, TrainState)),
    }


def _restored(stored: Any, like: Any) -> Any:
    """The inverse of `_stored`, with the wrappers of `like`."""
    if isinstance(like, TrainState):
        fields = {name: stored[name] for name in like._fields if name != "wrappers"}
        wrappers = {name: _restored(stored[name], other) for name, other in like.wrappers.items()}
        return TrainState(**fields, wrappers=wrappers)
    if isinstance(like, Mapping):
        return {name: _restored(stored[name], other) for name, other in like.items()}
    return stored


def _check_state(place: Path, like: Any) -> None:
    """Checks the paths, shapes and dtypes of an item: Orbax would cast silently.

    Raises:
      CheckpointError: the first path that is missing, unexpected, or of another shape or dtype.
    """
    with _quiet_orbax, ocp.StandardCheckpointer() as reader:
        tree = reader.metadata(place).item_metadata.tree
    there = {path: leaf for path, leaf in by_path(tree).items() if hasattr(leaf, "shape")}
    here = by_path(jax.tree.map(_abstract, like))
    for path in sorted({*there, *here}):
        saved, expected = [
            f"{leaf.dtype} {tuple(leaf.shape)}" if leaf is not None else "nothing"
            for leaf in (there.get(path), here.get(path))
        ]
        if saved != expected:
            raise CheckpointError(
                f"{place.parent} holds another kind of state: {place.name}/{path} is {saved} "
                f"there, {expected} here"
            )


def _abstract(leaf: Any) -> Any:
    """An array's shape and dtype; for random keys, those of their key data."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return leaf


def _reason(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Quiet:
    """Silences Orbax's log, hundreds of lines long on an error, in any thread."""

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
