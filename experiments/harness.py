"""What all experiments share: the command line, a run's folder, one resumable training."""

import contextlib
import difflib
import fcntl
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from kd_jax import data as kd_data
from kd_jax import health, hosts
from kd_jax.checkpoint import Best, CheckpointError, Checkpoints, first_difference
from kd_jax.logs import JsonlWriter
from kd_jax.loop import Guard, Hook, NonFiniteError, Progress, Row, fit
from kd_jax.modes import guarded
from kd_jax.network import check_variables
from kd_jax.objective import MakeInputs
from kd_jax.sharding import (
    Rule,
    check_batch_size,
    compile_step,
    initialize,
    make_mesh,
    place,
    place_batch,
    replicated,
    shardings,
)
from kd_jax.state import Networks, Teacher, TrainState
from kd_jax.step import Step
from kd_jax.stop import EXIT_CODE, Stop, Stopped
from kd_jax.types import Array, Batch, Variables

EXIT_CODES = {"done": 0, "refused": 2, "not finite": 3, "stopped": EXIT_CODE}
"""What a run's exit means: all is done; settings, files or checkpoints do not fit; NaN or infinity
ended it; it was asked to end, and the same command goes on."""

STOP = Stop()
"""Whether this process is asked to end."""


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line that says what would."""


class Options(NamedTuple):
    """How a run is kept safe; `config.run`. They may differ when it is gone on with.

    Attributes:
      keep: the latest checkpoints that are kept.
      keep_every: steps at multiples of it are kept for good; 0 for none.
      save_errors: what to do when a checkpoint cannot be written (the disk is full): `stop`, or
        `go_on` with the older ones.
      patience: how many steps with NaN or infinite numbers are left out before the run ends.
      skip_corrupt: whether an image that cannot be read is replaced by the next one.
      allow_changes: whether to go on with other settings, numbers of processes or versions of
        libraries than those that the run was begun with.
    """

    keep: int = 2
    keep_every: int = 0
    save_errors: str = "stop"
    patience: int = 0
    skip_corrupt: bool = False
    allow_changes: bool = False


CAREFUL = Options()
"""To stop at the first thing that goes wrong."""

FREE = ("run",)
"""The settings of the first level that may always differ when a run is gone on with."""


def run_settings() -> dict[str, Any]:
    """`config.run`, which every experiment has."""
    return Options()._asdict()


def options(config: ConfigDict) -> Options:
    """`config.run`, checked.

    Raises:
      ValueError: one line.
    """
    found = Options(**config.run.to_dict())
    if found.save_errors not in ("stop", "go_on"):
        raise ValueError(
            f"config.run.save_errors={found.save_errors!r} is neither 'stop' nor 'go_on'"
        )
    for name, least in (("keep", 1), ("keep_every", 0), ("patience", 0)):
        if getattr(found, name) < least:
            raise ValueError(f"config.run.{name}={getattr(found, name)} is below {least}")
    return found


def lasting(config: ConfigDict, free: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that must be the same when a run is gone on with."""
    return {k: v for k, v in config.to_dict().items() if k not in (*free, *FREE)}


def cache_dir() -> Path:
    """Where datasets, classifiers and compiled programs are kept between runs: `$KD_JAX_CACHE`."""
    return Path(os.environ.get("KD_JAX_CACHE", Path.home() / ".cache" / "kd_jax"))


class Experiment(NamedTuple):
    """What an experiment module provides.

    Attributes:
      get_config: `preset -> ConfigDict`; the flags `--config.path.to.value=...` change it.
      presets: the presets' names, the default first.
      build: `config -> task`: opens the data and makes the networks; a ValueError or a
        FileNotFoundError of one line where a setting does not fit.
      plan: `(config, task) -> (recipes by name, batch)`: for the dry run, with shapes in the place
        of variables.
      main: `(config, task, workdir)`: trains, measures, reports.
      free: settings (of the first level) that may differ when a run is gone on with.
    """

    get_config: Callable[[str], ConfigDict]
    presets: Sequence[str]
    build: Callable[[ConfigDict], Any]
    plan: Callable[[ConfigDict, Any], tuple[Mapping[str, "Recipe"], Batch]]
    main: Callable[[ConfigDict, Any, Path], None]
    free: Sequence[str] = ()


def execute(
    experiment: Experiment,
    config: ConfigDict,
    workdir: Path,
    *,
    resume: bool = True,
    dry_run: bool = False,
) -> None:
    """Runs an experiment, or goes on with it; nothing is written before its settings are checked.

    Raises:
      UsageError: when a setting does not fit, or `workdir` is not this run's.
      CheckpointError: when a checkpoint cannot be read or written.
      NonFiniteError: when a metric is not finite.
    """
    with user_errors():
        options(config)
        task = experiment.build(config)
    if dry_run:
        print_plan(config, *experiment.plan(config, task))
        return
    hosts.by_first(lambda: claim(workdir, config, resume, experiment.free), UsageError)
    experiment.main(config, task, workdir)


def launch(experiment: Experiment) -> NoReturn:
    """The `__main__` of an experiment: flags, then `execute`; errors of use are one line each.

    The process ends with one of `EXIT_CODES`.
    """

    def parse_flags(argv: list[str]) -> list[str]:
        try:
            return parse(experiment, argv, flags.FLAGS)
        except UsageError as error:
            _fail(error)

    def run(_: list[str]) -> None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        for name in ("absl", "jax"):  # app.run shows what they only note: backends not found
            logging.getLogger(name).setLevel(logging.WARNING)
        given = flags.FLAGS
        workdir = Path(given.workdir or ".").absolute()
        many = (given.coordinator, given.processes, given.process)
        try:
            with user_errors():
                STOP.limit(given.max_minutes)
                if given.distributed or any(part is not None for part in many):
                    hosts.join(*many)
            with STOP:
                execute(
                    experiment,
                    given.config.lock(),
                    workdir,
                    resume=given.resume,
                    dry_run=given.dry_run,
                )
        except (UsageError, CheckpointError, kd_data.UnreadableError, OSError) as error:
            _fail(error)
        except NonFiniteError as error:
            _fail(error, EXIT_CODES["not finite"])
        except Stopped as error:
            print(f"stopped ({error}): the same command goes on", file=sys.stderr, flush=True)
            if not STOP.agreed:
                hosts.abandon(EXIT_CODE)
            raise

    app.run(run, flags_parser=parse_flags)
    raise AssertionError("app.run returned")


def parse(experiment: Experiment, argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Reads a command line into `values`; `values.config` is the configuration.

    Args:
      experiment: whose flags there are.
      argv: the program's name and its arguments.
      values: where the flags are defined, and get their values.

    Raises:
      UsageError: it cannot be read; one line.
    """
    presets = experiment.presets
    define: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string(
        "workdir", None, "The run's folder: new, or that of the run to go on with.", **define
    )
    flags.DEFINE_enum("preset", presets[0], presets, "The configuration to start from.", **define)
    flags.DEFINE_bool("resume", True, "Go on with the run that workdir holds, if any.", **define)
    flags.DEFINE_bool("dry_run", False, "Print settings, networks and cost, and stop.", **define)
    flags.DEFINE_float("max_minutes", 0.0, "Save and end after so many; 0 for never.", **define)
    flags.DEFINE_bool("distributed", False, "Be one of several processes (TPUs, SLURM).", **define)
    flags.DEFINE_string("coordinator", None, "Likewise; where the first is: HOST:PORT.", **define)
    flags.DEFINE_integer("processes", None, "Likewise; how many there are.", **define)
    flags.DEFINE_integer("process", None, "Likewise; which of them this is, from 0.", **define)
    preset = _peek(argv, "preset", presets[0])
    config = experiment.get_config(preset if preset in presets else presets[0])
    check_settings(argv[1:], config)
    config_flags.DEFINE_config_dict("config", config, **define)
    try:
        rest: list[str] = values(argv)
    except flags.Error as error:
        raise UsageError(str(error)) from None
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; options start with --")
    if values.workdir is None and not values.dry_run:
        raise UsageError("--workdir=DIR is missing: the folder for the run's files")
    return rest


def check_settings(arguments: Sequence[str], config: ConfigDict) -> None:
    """Refuses flags `--config.path.to.value` of which there is no such value.

    Raises:
      UsageError: for the first of them; it says what is meant, or what there is.
    """
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        node: Any = config
        for key in name.split(".")[1:]:
            known = list(node) if isinstance(node, ConfigDict) else []
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
                raise UsageError(f"unknown setting --{name}: no {key!r} here; {hint}")
            node = node[key]


def _peek(argv: Sequence[str], name: str, default: str) -> str:
    """A flag's value before the flags are parsed: the preset decides which ones there are."""
    value = default
    for argument, following in zip(argv[1:], [*argv[2:], default], strict=False):
        stem, equals, given = argument.lstrip("-").partition("=")
        if argument.startswith("-") and stem == name:
            value = given if equals else following
    return value


def _fail(error: Exception, code: int = EXIT_CODES["refused"]) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    hosts.abandon(code)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Where the user's settings meet the library: its ValueErrors become one line each."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def claim(workdir: Path, config: ConfigDict, resume: bool, free: Sequence[str] = ()) -> None:
    """Makes `workdir` this configuration's, or checks that it is, but for the settings in `free`.

    Raises:
      UsageError: when it holds a run of another configuration (the first difference is named) and
        `config.run.allow_changes` is not set, a run that is not to be resumed, or other files.
    """
    path = workdir / "config.json"
    partial = path.with_suffix(".partial")
    here = json.loads(json.dumps(lasting(config, free)))
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is not a folder")
    if path.exists():
        if not resume:
            raise UsageError(
                f"{workdir} holds a run; choose another folder, or leave out --noresume"
            )
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UsageError(f"{path} is damaged: it is no JSON") from None
        difference = first_difference(there, here)
        if difference is None:
            return
        if not config.run.allow_changes:
            raise UsageError(
                f"{workdir} holds a run of another configuration: {difference} "
                "(--config.run.allow_changes=True goes on all the same)"
            )
        print(f"{workdir}: {difference}; it is gone on with, as allowed", flush=True)
    elif workdir.exists() and any(file != partial for file in workdir.iterdir()):
        raise UsageError(f"{workdir} holds other files; choose a new or an empty folder")
    workdir.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(here, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock", *, wait: bool = False) -> Iterator[None]:
    """Holds a folder, which is made if absent; the lock goes with the process, however it ends.

    Args:
      folder: what to hold.
      name: of the lock's file.
      wait: whether to wait for another process that holds it.

    Raises:
      BlockingIOError: another process holds it.
      UsageError: the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            raise UsageError(
                f"{folder / name} cannot be locked ({error.strerror}): choose a folder on another "
                "file system, lest two processes write there at once"
            ) from None
        yield


class Recipe(NamedTuple):
    """One training.

    Attributes:
      init: `(key, batch) -> state`, the state before the first step.
      step: `(state, teacher_variables, batch) -> (state, metrics)`.
      teacher: the frozen variables, or None.
      steps: how many to take.
      steps_per_call: how many of them a call of `step` takes.
      probe: from `kd_jax.health.probe`, to be asked whenever quality is evaluated; None for never.
      diagnosis: from `kd_jax.health.diagnosis`, to be asked what was not finite; None for never.
      floors: the least values that terms can have, by their metrics' names.
      architecture: `batch -> description` of the generator, which checkpoints hold.
      nets: the networks; with `inputs`, the teacher's variables are checked against them.
      inputs: the task.
    """

    init: Callable[[Array, Batch], Any]
    step: Step[Any]
    teacher: Teacher | None
    steps: int
    steps_per_call: int = 1
    probe: Step[TrainState] | None = None
    diagnosis: Step[TrainState] | None = None
    floors: Mapping[str, float] = {}
    architecture: Callable[[Batch], Mapping[str, Any]] | None = None
    nets: Networks | None = None
    inputs: MakeInputs | None = None

    def wrapped(self, wrap: Callable[[Step[Any]], Step[Any]]) -> "Recipe":
        """This recipe with another step made of its own; what looks at it is wrapped alike."""
        return self._replace(
            step=wrap(self.step),
            probe=self.probe and wrap(self.probe),
            diagnosis=self.diagnosis and wrap(self.diagnosis),
        )


def train(
    directory: Path,
    recipe: Recipe,
    batches: kd_data.Endless,
    *,
    seed: int,
    configuration: Mapping[str, Any],
    quality: Callable[[Variables], Mapping[str, float]],
    log_every: int,
    evaluate_every: int,
    checkpoint_every: int,
    mesh: Mesh | None = None,
    rule: Rule = replicated,
    options: Options = CAREFUL,
) -> Teacher:
    """Trains, or goes on training, or finds it done; returns what it can teach.

    That is the averaged generator's variables, and those of the discriminator, if there is one.

    Writes `checkpoints/`, `metrics.jsonl` and `best/` into `directory`; the latter is the averaged
    generator with the lowest first figure of quality. A training that was killed or stopped at any
    moment and goes on ends with the same bits as one that was not.

    Args:
      directory: this training's folder.
      recipe: what to do.
      batches: the data.
      seed: of initial weights and all noise.
      configuration: what a checkpoint must agree with to be gone on from.
      quality: figures of the averaged generator, logged as `quality/NAME`.
      log_every: the window of steps over which metrics are averaged.
      evaluate_every: steps between figures of quality.
      checkpoint_every: steps between checkpoints.
      mesh: where to train.
      rule: how the state is split over the mesh.
      options: what to do when something goes wrong.

    Raises:
      UsageError: the recipe does not fit the data, or another process trains in this folder.
      CheckpointError: a checkpoint does not fit, or could not be written.
      NonFiniteError: a number became NaN or infinite, more often than `options.patience`; no
        checkpoint holds any.
      Stopped: `STOP` was asked to; the state is saved.
    """
    name = "/".join(directory.parts[-3:])
    example = _example(batches)

    def say(line: str) -> None:
        if hosts.is_first():
            print(f"{name}: {line}", flush=True)

    def init() -> Any:
        return recipe.init(jax.random.key(seed), example)

    if recipe.teacher is not None:
        configuration = {
            **configuration,
            "teacher's fingerprint": int(health.fingerprint(recipe.teacher)),
        }
    compiled = compile_step(guarded(recipe.step, options.patience), mesh, rule)
    like = jax.eval_shape(init)
    with user_errors():  # terms that do not fit are named before anything is compiled or written
        _check_teacher(recipe, example)
        _check(compiled, like, recipe.teacher, example)
    described = recipe.architecture(example) if recipe.architecture else None
    with contextlib.ExitStack() as closing:
        hosts.by_first(lambda: closing.enter_context(_alone(directory)), UsageError)
        checkpoints = Checkpoints(
            directory / "checkpoints",
            configuration,
            options.keep,
            described,
            keep_every=options.keep_every,
            allow_changes=options.allow_changes,
            tell=say,
        )
        closing.callback(checkpoints.close)
        if mesh is not None:
            like = jax.tree.map(
                lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
                like,
                shardings(like, mesh, rule),
            )
        window: list[Row] = []
        if restored := checkpoints.restore(like):
            state, position = restored
            window += position["window"]
            try:
                batches.set_state(position["batches"])
            except ValueError as error:
                if not options.allow_changes:
                    raise UsageError(str(error)) from error
                say(f"{error}; the data begin anew, as allowed")
            say(f"at step {int(state.step)} of {recipe.steps}")
        else:
            state = initialize(init, mesh, rule)
        metrics, step = directory / "metrics.jsonl", int(state.step)
        with user_errors():
            writer = hosts.by_first(lambda: JsonlWriter(metrics, step), UsageError)
        writer = writer or JsonlWriter(metrics, dry=True)

        def end(kind: type[BaseException] | None, *_: object) -> None:
            try:
                writer.close()
            except OSError as error:
                if kind is None:  # else what ended the run is what is told
                    raise CheckpointError(f"{metrics} not written: {error.strerror}") from None

        closing.push(end)
        best = Best(directory / "best", "the first figure of quality", described, tell=say)
        probe = recipe.probe and compile_step(recipe.probe, mesh, rule, donate=False)
        # Compiled when it is first asked, and once.
        diagnosis = recipe.diagnosis and compile_step(recipe.diagnosis, mesh, rule, donate=False)
        teacher = place(recipe.teacher, mesh)
        trend = health.Trend(recipe.floors)
        first_figures: dict[str, Any] = {}
        told: set[str] = set()
        latest: dict[str, float] = {}

        def warn(step: int, lines: Sequence[str]) -> None:
            for line in lines:
                subject = " ".join(line.split()[:3])
                if subject not in told:  # once is enough
                    told.add(subject)
                    say(f"step {step}: warning: {line}")

        def look(step: int, state: Any) -> None:
            if probe is None:
                return
            figures = jax.device_get(probe(state, teacher, place_batch(example, mesh))[1])
            numbers = {f"health/{k}": float(v) for k, v in figures.items()}
            finite(step, numbers)
            writer.write_scalars(step, numbers)
            first_figures.update({} if first_figures else figures)
            # Where none was given, the teacher is the student's average: it is meant to change.
            warn(step, health.warnings(figures, first_figures if recipe.teacher else None))

        def written(write: Callable[[], Any]) -> None:
            """Writes a checkpoint, or does what is to be done when that fails."""
            try:
                write()
            except CheckpointError as error:
                if options.save_errors == "stop":
                    raise
                say(f"warning: {error}; the training goes on")

        def finite(step: int, figures: Mapping[str, float]) -> None:
            """Before anything is written that is not."""
            for figure, value in figures.items():
                if not math.isfinite(value):
                    raise NonFiniteError(f"step {step}: {figure} is {value}")

        def evaluate(step: int, state: Any) -> None:
            variables = hosts.fetched(state.ema) if jax.process_count() > 1 else state.ema
            found = quality(variables)
            figures = {f"quality/{k}": v for k, v in found.items()}
            finite(step, figures)
            if found:
                value = next(iter(found.values()))
                # Several processes meet by name in Orbax, which mistakes one save for another.
                written(checkpoints.wait)
                written(lambda: best.offer(step, value, jax.device_get(variables)))
            writer.write_scalars(step, figures)
            say(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
            look(step, state)

        def flush(step: int) -> None:
            try:
                writer.flush()
            except OSError as error:
                raise CheckpointError(
                    f"step {step} not saved: {metrics} cannot be written: {error.strerror}"
                ) from None

        def save(step: int, state: Any) -> None:
            if fault := health.first_fault(state):
                raise NonFiniteError(f"step {step}: the state is not saved, {fault}")
            data = {"batches": batches.get_state(), "window": window}

            def save_all() -> None:
                flush(step)  # whoever goes on from this step needs the lines before it
                checkpoints.save(step, state, data)

            written(checkpoints.wait)  # of the step before
            written(save_all)

        def log(step: int, means: Mapping[str, float]) -> None:
            lost = getattr(batches, "skipped", 0)  # of the first process's part
            writer.write_scalars(step, {**means, **({"data/skipped": lost} if lost else {})})
            latest.update(means)
            warn(step, trend.look(means))
            written(checkpoints.check)

        def show(progress: Progress) -> None:
            rate = progress.examples_per_second * jax.process_count()
            say(
                f"step {progress.step}/{progress.steps}, {rate:.0f} images/s, "
                f"{progress.seconds_left:.0f} s left, "
                + ", ".join(
                    f"{k[0]} {latest[k]:.3f}" for k in ("g/total", "d/total") if k in latest
                )
            )

        def explain(state: Any, batch: Batch) -> str | None:
            fault = health.first_fault(batch)
            # All or none must ask for the diagnosis, which they compute together.
            whose = hosts.from_all(fault is not None)
            if fault:
                return f"the batch: {fault}"
            if any(whose):
                return f"the batch: that of process {whose.index(1)} is not finite"
            if diagnosis is None:
                return None
            return health.culprit(diagnosis(state, teacher, place_batch(batch, mesh))[1])

        def tell(step: int, count: int, why: str) -> None:
            say(
                f"step {step}: warning: {why}; the step is left out ({count} of at most "
                f"{options.patience})"
            )

        closing.enter_context(STOP.held())
        try:
            state = fit(
                lambda state, batch: compiled(state, teacher, place_batch(batch, mesh)),
                state,
                batches,
                steps=recipe.steps,
                log=log,
                log_every=log_every,
                hooks=[Hook(evaluate_every, evaluate), Hook(checkpoint_every, save, at_stop=True)],
                progress=show,
                steps_per_call=recipe.steps_per_call,
                window=window,
                stop=STOP,
                guard=Guard(options.patience, tell, explain),
            )
            checkpoints.wait()  # of the last step no failure is let pass
        except NonFiniteError as error:
            with contextlib.suppress(CheckpointError):
                checkpoints.wait()
            kept = checkpoints.latest_step()
            last = "no checkpoint was written yet" if kept is None else f"step {kept} is saved"
            raise NonFiniteError(f"{name}: {error}; {last} in {directory}") from error
        if int(state.step) < recipe.steps:
            say(
                f"stopped at step {int(state.step)} of {recipe.steps}; step "
                f"{checkpoints.latest_step()} is saved"
            )
            STOP.leave()
    judge = state.discriminator
    found: Teacher = hosts.fetched(Teacher(state.ema, judge.variables if judge else None))
    return found


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(directory, ".training"))
        except BlockingIOError:
            raise UsageError(f"another process is training in {directory}") from None
        yield


def _check_teacher(recipe: Recipe, batch: Batch) -> None:
    """Refuses a teacher whose variables are not its network's, or whose images are in other units.

    Raises:
      ValueError: one line.
    """
    nets, inputs, teacher = recipe.nets, recipe.inputs, recipe.teacher
    if nets is None or nets.teacher is None or inputs is None:
        return
    if teacher is None or teacher.generator is None:
        return
    network, few = nets.teacher, jax.tree.map(lambda x: x[:4], dict(batch))
    given = jax.eval_shape(inputs, jax.random.key(0), few).generator
    check_variables(network, teacher.generator, *given, name="the teacher")

    def ask(variables: Variables, few: Batch) -> tuple[Any, Any]:
        asked = inputs(jax.random.key(0), few)
        return network.apply(variables, *asked.generator)[0], asked.real

    made, real = jax.jit(ask)(teacher.generator, few)
    if real is not None and real.shape == made.shape:
        health.check_units(made, real)


def _check(compiled: Any, state: Any, teacher: Teacher | None, batch: Batch) -> None:
    """Traces a step for the global batch; the trace is kept for the first call."""
    count = jax.process_count()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count * leaf.shape[0], *leaf.shape[1:]), leaf.dtype),
        dict(batch),
    )
    compiled.eval_shape(state, teacher, shapes)


def _example(batches: kd_data.Endless) -> Batch:
    """The first batch, for its shapes, leaving the position where it was."""
    position = batches.get_state()
    batch = next(batches)
    batches.set_state(position)
    return batch


def mesh(settings: ConfigDict, batch_size: int) -> Mesh:
    """The mesh of `config.mesh`: `data` (0: as many devices as there are) times `model`.

    Raises:
      ValueError: when there are too few devices, or the batch does not divide by them.
    """
    devices = jax.devices()
    wanted = settings.data * settings.model
    if jax.process_count() > 1 and wanted not in (0, len(devices)):
        raise ValueError(
            f"config.mesh.data={settings.data} times config.mesh.model={settings.model} is not the "
            f"{len(devices)} devices of {jax.process_count()} processes; config.mesh.data=0 takes "
            "them all"
        )
    made = make_mesh(settings.data or None, settings.model, devices[: wanted or None])
    check_batch_size(batch_size, made)
    return made


def print_plan(config: ConfigDict, plan: Mapping[str, Recipe], batch: Batch) -> None:
    """Prints the configuration, the parameters, and each step's FLOPs and memory."""
    from clu import parameter_overview

    print(config)
    for name, recipe in plan.items():
        state = jax.eval_shape(recipe.init, jax.random.key(0), batch)
        for player in ("generator", "discriminator"):
            if not getattr(state, player):
                continue
            print(f"\n{name}, {player}")
            params = getattr(state, player).variables["params"]
            print(parameter_overview.get_parameter_overview(params, include_stats=False))
        compiled: Any = compile_step(recipe.step)
        program = compiled.lower(state, recipe.teacher, batch).compile()
        print(
            f"{name}: {recipe.steps} steps of {program.cost_analysis()['flops'] / 1e9:.2f} GFLOP "
            f"and {memory(program) / 2**20:.0f} MiB each"
        )


def memory(program: Any) -> int:
    """The bytes that a compiled program needs: arguments, results and all between."""
    sizes = program.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    return held + sizes.output_size_in_bytes - sizes.alias_size_in_bytes


def command_line() -> str:
    """The command that this process was started with, without this machine's paths."""
    shown, skip = [], False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        if not skip and name != "workdir":
            shown.append(argument)
        skip = not skip and name == "workdir" and not equals
    return " ".join(["python -m", f"experiments.{Path(sys.argv[0]).stem}", "--workdir=DIR", *shown])


def environment() -> dict[str, str]:
    """Versions and hardware, for reports."""
    device = jax.devices()[0]
    cores = os.cpu_count() if device.platform == "cpu" else jax.device_count()
    return {
        "device": f"{cores} x {device.device_kind}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "optax", "kd_jax")},
    }
