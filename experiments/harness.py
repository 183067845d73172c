"""The command line, the run's folder and the resumable training that all experiments share."""

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
from kd_jax.core.architecture import describe
from kd_jax.core.mesh import (
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
from kd_jax.core.network import check_variables
from kd_jax.core.setup import PerNetwork, Setup, Teacher
from kd_jax.core.state import Step, TrainState
from kd_jax.core.types import Array, Batch, Variables
from kd_jax.core.wrappers import skip_nonfinite, with_skip_count
from kd_jax.train import diagnostics, distributed
from kd_jax.train.checkpoint import BestCheckpoint, CheckpointError, Checkpoints, first_difference
from kd_jax.train.logs import JsonlWriter
from kd_jax.train.loop import Hook, Metrics, NonFiniteError, NonFinitePolicy, Progress, fit
from kd_jax.train.shutdown import EXIT_CODE, ShutdownRequested, ShutdownSignal

EXIT_CODES = {"done": 0, "refused": 2, "not finite": 3, "stopped": EXIT_CODE}
"""Exit codes of a run: finished; settings, files or checkpoints do not fit; stopped by NaN or
infinity; stopped by a shutdown request, in which case the same command resumes it."""

STOP = ShutdownSignal()
"""The shutdown signal of this process."""


class UsageError(Exception):
    """A request that cannot be met; the message is one line that also says what is possible."""


class Options(NamedTuple):
    """The fault-tolerance options `config.run`. They may change when a run is resumed.

    Attributes:
      keep: the number of latest checkpoints to keep.
      keep_every: checkpoints at multiples of this step are kept forever; 0 for none.
      save_errors: what to do when a checkpoint cannot be written (the disk is full): `stop`, or
        `continue`, which continues with the older ones.
      patience: the number of steps with NaN or infinite values to skip before the run ends.
      skip_corrupt: whether an unreadable image is replaced by the next one.
      allow_changes: whether a run may be resumed with other settings, numbers of processes or
        library versions than it was started with.
    """

    keep: int = 2
    keep_every: int = 0
    save_errors: str = "stop"
    patience: int = 0
    skip_corrupt: bool = False
    allow_changes: bool = False


DEFAULT_OPTIONS = Options()
"""The default options: stop at the first error."""

RUNTIME_FIELDS = ("run",)
"""Top-level settings that may always change when a run is resumed."""


def run_settings() -> dict[str, Any]:
    """The defaults of `config.run`, which every experiment has."""
    return Options()._asdict()


def options(config: ConfigDict) -> Options:
    """Checks and returns `config.run`.

    Raises:
      ValueError: a one-line message.
    """
    run_options = Options(**config.run.to_dict())
    if run_options.save_errors not in ("stop", "continue"):
        raise ValueError(
            f"config.run.save_errors={run_options.save_errors!r} is neither 'stop' nor 'continue'"
        )
    for name, minimum in (("keep", 1), ("keep_every", 0), ("patience", 0)):
        value = getattr(run_options, name)
        if value < minimum:
            raise ValueError(f"config.run.{name}={value} is below {minimum}")
    return run_options


def persistent_config(config: ConfigDict, runtime_fields: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that must not change when a run is resumed."""
    excluded = (*runtime_fields, *RUNTIME_FIELDS)
    return {k: v for k, v in config.to_dict().items() if k not in excluded}


def cache_dir() -> Path:
    """The cache of datasets, classifiers and compiled programs, `$KD_JAX_CACHE`."""
    return Path(os.environ.get("KD_JAX_CACHE", Path.home() / ".cache" / "kd_jax"))


class Experiment(NamedTuple):
    """The interface of an experiment module.

    Attributes:
      get_config: `preset -> ConfigDict`; the flags `--config.path.to.value=...` change it.
      presets: the presets' names, the default first.
      build: `config -> task`: opens the data and makes the networks; raises a ValueError or a
        FileNotFoundError with a one-line message where a setting does not fit.
      plan: `(config, task) -> (training plans by name, batch)`: for the dry run, with shapes in
        place of variables.
      main: `(config, task, workdir)`: trains, evaluates and reports.
      runtime_fields: top-level settings that may change when a run is resumed.
    """

    get_config: Callable[[str], ConfigDict]
    presets: Sequence[str]
    build: Callable[[ConfigDict], Any]
    plan: Callable[[ConfigDict, Any], tuple[Mapping[str, "TrainingPlan"], Batch]]
    main: Callable[[ConfigDict, Any, Path], None]
    runtime_fields: Sequence[str] = ()


def execute(
    experiment: Experiment,
    config: ConfigDict,
    workdir: Path,
    *,
    resume: bool = True,
    dry_run: bool = False,
) -> None:
    """Runs or resumes an experiment; nothing is written before its settings are checked.

    Raises:
      UsageError: a setting does not fit, or `workdir` belongs to another run.
      CheckpointError: a checkpoint cannot be read or written.
      NonFiniteError: a metric is not finite.
    """
    with user_errors():
        options(config)
        task = experiment.build(config)
    if dry_run:
        print_plan(config, *experiment.plan(config, task))
        return
    distributed.run_on_primary(
        lambda: check_workdir(workdir, config, resume, experiment.runtime_fields), UsageError
    )
    experiment.main(config, task, workdir)


def launch(experiment: Experiment) -> NoReturn:
    """The `__main__` of an experiment: parses flags and calls `execute`.

    Usage errors print one line. The process ends with one of `EXIT_CODES`.
    """

    def parse_flags(argv: list[str]) -> list[str]:
        try:
            return parse(experiment, argv, flags.FLAGS)
        except UsageError as error:
            _fail(error)

    def run(_: list[str]) -> None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        for name in ("absl", "jax"):  # app.run shows their INFO lines, such as missing backends
            logging.getLogger(name).setLevel(logging.WARNING)
        values = flags.FLAGS
        workdir = Path(values.workdir or ".").absolute()
        cluster = (values.coordinator, values.processes, values.process)
        try:
            with user_errors():
                STOP.limit(values.max_minutes)
                if values.distributed or any(value is not None for value in cluster):
                    distributed.initialize(*cluster)
            with STOP:
                execute(
                    experiment,
                    values.config.lock(),
                    workdir,
                    resume=values.resume,
                    dry_run=values.dry_run,
                )
        except (UsageError, CheckpointError, kd_data.UnreadableError, OSError) as error:
            _fail(error)
        except NonFiniteError as error:
            _fail(error, EXIT_CODES["not finite"])
        except ShutdownRequested as error:
            print(f"stopped ({error}): the same command resumes", file=sys.stderr, flush=True)
            if not STOP.agreed:
                distributed.abort(EXIT_CODE)
            raise

    app.run(run, flags_parser=parse_flags)
    raise AssertionError("app.run returned")


def parse(experiment: Experiment, argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Parses a command line into `values`; `values.config` is the configuration.

    Args:
      experiment: the experiment whose presets and configuration define the flags.
      argv: the program's name and its arguments.
      values: the flags are defined on it and receive their values.

    Raises:
      UsageError: an argument is invalid; a one-line message.
    """
    presets = experiment.presets
    # As flags of the program, not of this module, so that --help lists them.
    define: dict[str, Any] = {"flag_values": values, "module_name": argv[0]}
    flags.DEFINE_string(
        "workdir", None, "The run's folder: new, or that of the run to resume.", **define
    )
    flags.DEFINE_enum(
        "preset",
        presets[0],
        presets,
        "The settings to start from; --config.PATH=VALUE changes one, --dry_run prints them all.",
        **define,
    )
    flags.DEFINE_bool("resume", True, "Resume the run in workdir, if there is one.", **define)
    flags.DEFINE_bool("dry_run", False, "Print settings, networks and cost, and stop.", **define)
    flags.DEFINE_float("max_minutes", 0.0, "Save and stop after these minutes; 0: never.", **define)
    flags.DEFINE_bool(
        "distributed", False, "Run as one of several processes (TPU, SLURM).", **define
    )
    flags.DEFINE_string("coordinator", None, "Address of process 0, as HOST:PORT.", **define)
    flags.DEFINE_integer("processes", None, "The number of processes.", **define)
    flags.DEFINE_integer("process", None, "The index of this process, from 0.", **define)
    preset = _peek(argv, "preset", presets[0])
    config = experiment.get_config(preset if preset in presets else presets[0])
    check_settings(argv[1:], config)
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
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
    """Refuses flags `--config.path.to.value` whose path is not in the configuration.

    Raises:
      UsageError: for the first of them; the message suggests the closest name, or lists all.
    """
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        node: Any = config
        for key in name.split(".")[1:]:
            known = list(node) if isinstance(node, ConfigDict) else []
            if key not in known:
                matches = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {matches[0]}?" if matches else f"there is {', '.join(known)}"
                raise UsageError(f"unknown setting --{name}: no {key!r} here; {hint}")
            node = node[key]


def _peek(argv: Sequence[str], name: str, default: str) -> str:
    """A flag's value before parsing: the preset determines which flags are defined."""
    value = default
    for argument, following in zip(argv[1:], [*argv[2:], default], strict=False):
        stem, equals, text = argument.lstrip("-").partition("=")
        if argument.startswith("-") and stem == name:
            value = text if equals else following
    return value


def _fail(error: Exception, code: int = EXIT_CODES["refused"]) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    distributed.abort(code)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns ValueErrors and FileNotFoundErrors caused by user settings into `UsageError`s."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def check_workdir(
    workdir: Path, config: ConfigDict, resume: bool, runtime_fields: Sequence[str] = ()
) -> None:
    """Claims `workdir` for this configuration, or checks that it already belongs to it.

    The settings in `runtime_fields` are not compared.

    Raises:
      UsageError: the folder holds a run of another configuration (the message names the first
        difference) and `config.run.allow_changes` is not set, a run that must not be resumed, or
        other files.
    """
    path = workdir / "config.json"
    partial = path.with_suffix(".partial")
    here = json.loads(json.dumps(persistent_config(config, runtime_fields)))
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
            raise UsageError(f"{path} is damaged: it is not valid JSON") from None
        difference = first_difference(there, here)
        if difference is None:
            return
        if not config.run.allow_changes:
            raise UsageError(
                f"{workdir} holds a run of another configuration: {difference} "
                "(--config.run.allow_changes=True resumes it anyway)"
            )
        print(f"{workdir}: {difference}; the run resumes, as allowed", flush=True)
    elif workdir.exists() and any(file != partial for file in workdir.iterdir()):
        raise UsageError(f"{workdir} holds other files; choose a new or an empty folder")
    workdir.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(here, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


@contextlib.contextmanager
def file_lock(folder: Path, name: str = ".lock", *, wait: bool = False) -> Iterator[None]:
    """Locks a folder, creating it if absent; the lock is released when the process ends.

    Args:
      folder: the folder to lock.
      name: the name of the lock file.
      wait: whether to wait while another process holds the lock.

    Raises:
      BlockingIOError: another process holds the lock.
      UsageError: the file system does not support locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            raise UsageError(
                f"{folder / name} cannot be locked ({error.strerror}): choose a folder on a file "
                "system with locks, so that two processes cannot write to it at once"
            ) from None
        yield


class TrainingPlan(NamedTuple):
    """The definition of one training.

    Attributes:
      init: `(key, batch) -> state`, the state before the first step.
      step: `(state, teacher_variables, batch) -> (state, metrics)`.
      teacher: the frozen variables, or None.
      steps: the number of training steps.
      steps_per_call: the number of training steps in one call of `step`.
      probe: from `diagnostics.probe`, run with each evaluation; None to disable.
      diagnosis: from `diagnostics.diagnosis`, which locates values that are not finite;
        None to disable.
      setup: the setup: the teacher's variables are checked against its networks, the lower bounds
        of its terms are monitored, and checkpoints describe its generator.
    """

    init: Callable[[Array, Batch], Any]
    step: Step[Any]
    teacher: Teacher | None
    steps: int
    steps_per_call: int = 1
    probe: Step[TrainState] | None = None
    diagnosis: Step[TrainState] | None = None
    setup: Setup | None = None

    def wrap_step(self, wrap: Callable[[Step[Any]], Step[Any]]) -> "TrainingPlan":
        """This plan with `wrap` applied to its step, its probe and its diagnosis."""
        return self._replace(
            step=wrap(self.step),
            probe=self.probe and wrap(self.probe),
            diagnosis=self.diagnosis and wrap(self.diagnosis),
        )

    def describe(self, batch: Batch) -> Mapping[str, Any] | None:
        """The generator as JSON values; None if it is unknown or has no description."""
        if self.setup is None or not (
            self.setup.networks.generator.module or self.setup.networks.generator.factory
        ):
            return None
        inputs = self.setup.task(jax.random.key(0), batch).generator
        return describe(self.setup.networks.generator, *inputs)

    def lower_bounds(self) -> dict[str, float]:
        """The lower bounds of terms that have one, by the names of their metrics."""
        losses = self.setup.losses if self.setup else PerNetwork({}, {})
        return {
            f"{prefix}/{name}": term.lower_bound
            for prefix, terms in zip("gd", losses, strict=True)
            for name, term in terms.items()
            if term.lower_bound is not None
        }


def train(
    directory: Path,
    training_plan: TrainingPlan,
    batches: kd_data.BatchIterator,
    *,
    seed: int,
    configuration: Mapping[str, Any],
    quality: Callable[[Variables], Mapping[str, float]],
    log_every: int,
    evaluate_every: int,
    checkpoint_every: int,
    mesh: Mesh | None = None,
    rule: Rule = replicated,
    options: Options = DEFAULT_OPTIONS,
) -> Teacher:
    """Trains from the start or from the latest checkpoint, and returns the trained variables.

    These are the variables of the averaged generator, and of the discriminator if there is one.

    Writes `checkpoints/`, `metrics.jsonl` and `best/` into `directory`; the latter is the averaged
    generator with the lowest first metric of `quality`. A training that is killed or stopped at any
    time and resumed is bit-identical to an uninterrupted one.

    Args:
      directory: this training's folder.
      training_plan: the training.
      batches: the data.
      seed: of initial weights and all noise.
      configuration: the settings that must equal those of a checkpoint to resume from it.
      quality: `variables of the averaged generator -> metrics`, logged as `quality/NAME`.
      log_every: the number of steps over which logged metrics are averaged.
      evaluate_every: steps between evaluations of `quality`.
      checkpoint_every: steps between checkpoints.
      mesh: the devices to train on.
      rule: how the state is sharded over the mesh.
      options: the fault-tolerance options.

    Raises:
      UsageError: the plan does not fit the data, or another process trains in this folder.
      CheckpointError: a checkpoint does not fit, or could not be written.
      NonFiniteError: a value became NaN or infinite in more than `options.patience` steps; no
        checkpoint holds such a value.
      ShutdownRequested: `STOP` received a shutdown request; the state is saved.
    """
    name = "/".join(directory.parts[-3:])
    example = _peek_batch(batches)

    def log_line(line: str) -> None:
        if distributed.is_primary():
            print(f"{name}: {line}", flush=True)

    def init() -> Any:
        return with_skip_count(training_plan.init(jax.random.key(seed), example))

    if training_plan.teacher is not None:
        configuration = {
            **configuration,
            "teacher's fingerprint": int(diagnostics.fingerprint(training_plan.teacher)),
        }
    compiled = compile_step(skip_nonfinite(training_plan.step, options.patience), mesh, rule)
    like = jax.eval_shape(init)
    with user_errors():  # reports terms that do not fit before anything is compiled or written
        _check_teacher(training_plan, example)
        _trace_step(compiled, like, training_plan.teacher, example)
    described = training_plan.describe(example)
    with contextlib.ExitStack() as closing:
        distributed.run_on_primary(
            lambda: closing.enter_context(_lock_training(directory)), UsageError
        )
        checkpoints = Checkpoints(
            directory / "checkpoints",
            configuration,
            options.keep,
            described,
            keep_every=options.keep_every,
            allow_changes=options.allow_changes,
            log=log_line,
        )
        closing.callback(checkpoints.close)
        if mesh is not None:
            like = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                like,
                shardings(like, mesh, rule),
            )
        window: list[Metrics] = []
        if restored := checkpoints.restore(like):
            state, position = restored
            window += position["window"]
            try:
                batches.set_state(position["batches"])
            except ValueError as error:
                if not options.allow_changes:
                    raise UsageError(str(error)) from error
                log_line(f"{error}; the data restart, as allowed")
            if int(state.step) > training_plan.steps:
                raise UsageError(
                    f"{directory} is at step {int(state.step)}, past the {training_plan.steps} "
                    "steps of these settings; set more steps, or choose another folder"
                )
            log_line(f"at step {int(state.step)} of {training_plan.steps}")
        else:
            state = initialize(init, mesh, rule)
        metrics, step = directory / "metrics.jsonl", int(state.step)
        with user_errors():
            writer = distributed.run_on_primary(lambda: JsonlWriter(metrics, step), UsageError)
        writer = writer or JsonlWriter(metrics, dry=True)

        def close_writer(kind: type[BaseException] | None, *_: object) -> None:
            try:
                writer.close()
            except OSError as error:
                if kind is None:  # otherwise the exception that ended the run is the one to report
                    raise CheckpointError(f"{metrics} not written: {error.strerror}") from None

        closing.push(close_writer)
        best = BestCheckpoint(
            directory / "best", "the first figure of quality", described, log=log_line
        )
        probe = training_plan.probe and compile_step(training_plan.probe, mesh, rule, donate=False)
        # Compiled once, at its first call.
        diagnosis = training_plan.diagnosis and compile_step(
            training_plan.diagnosis, mesh, rule, donate=False
        )
        teacher = place(training_plan.teacher, mesh)
        trend = diagnostics.Trend(training_plan.lower_bounds())
        first_figures: dict[str, Any] = {}
        warned: set[str] = set()
        latest: dict[str, float] = {}

        def warn(step: int, lines: Sequence[str]) -> None:
            for line in lines:
                subject = " ".join(line.split()[:3])
                if subject not in warned:  # each warning is logged once
                    warned.add(subject)
                    log_line(f"step {step}: warning: {line}")

        def run_diagnostics(step: int, state: Any) -> None:
            if probe is None:
                return
            figures = jax.device_get(probe(state, teacher, place_batch(example, mesh))[1])
            numbers = {f"health/{k}": float(v) for k, v in figures.items()}
            check_finite(step, numbers)
            writer.write_scalars(step, numbers)
            first_figures.update({} if first_figures else figures)
            # Without teacher variables, the teacher is the student's average, which must change.
            warn(
                step,
                diagnostics.warnings(figures, first_figures if training_plan.teacher else None),
            )

        def save_or_warn(write: Callable[[], Any]) -> None:
            """Writes a checkpoint; on failure raises or warns, as `save_errors` says."""
            try:
                write()
            except CheckpointError as error:
                if options.save_errors == "stop":
                    raise
                log_line(f"warning: {error}; the training continues")

        def check_finite(step: int, figures: Mapping[str, float]) -> None:
            """Raises before a value that is not finite is written."""
            for figure, value in figures.items():
                if not math.isfinite(value):
                    raise NonFiniteError(f"step {step}: {figure} is {value}")

        def evaluate(step: int, state: Any) -> None:
            variables = (
                distributed.device_get_global(state.ema) if jax.process_count() > 1 else state.ema
            )
            values = quality(variables)
            figures = {f"quality/{k}": v for k, v in values.items()}
            check_finite(step, figures)
            if values:
                value = next(iter(values.values()))
                # Orbax synchronises processes by name and confuses two saves at the same time.
                save_or_warn(checkpoints.wait)
                save_or_warn(lambda: best.update(step, value, jax.device_get(variables)))
            writer.write_scalars(step, figures)
            log_line(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
            run_diagnostics(step, state)

        def flush(step: int) -> None:
            try:
                writer.flush()
            except OSError as error:
                raise CheckpointError(
                    f"step {step} not saved: {metrics} cannot be written: {error.strerror}"
                ) from None

        def save(step: int, state: Any) -> None:
            if fault := diagnostics.first_nonfinite(state):
                raise NonFiniteError(f"step {step}: the state is not saved, {fault}")
            data = {"batches": batches.get_state(), "window": window}

            def save_all() -> None:
                flush(step)  # a training resumed from this step needs the lines before it
                checkpoints.save(step, state, data)

            save_or_warn(checkpoints.wait)  # for the previous checkpoint
            save_or_warn(save_all)

        def log(step: int, means: Mapping[str, float]) -> None:
            skipped = getattr(batches, "skipped", 0)  # of the primary process's part
            writer.write_scalars(step, {**means, **({"data/skipped": skipped} if skipped else {})})
            latest.update(means)
            warn(step, trend.update(means))
            save_or_warn(checkpoints.check)

        def log_progress(progress: Progress) -> None:
            rate = progress.examples_per_second * jax.process_count()
            log_line(
                f"step {progress.step}/{progress.steps}, {rate:.0f} images/s, "
                f"{progress.seconds_left:.0f} s left, "
                + ", ".join(
                    f"{k[0]} {latest[k]:.3f}" for k in ("g/total", "d/total") if k in latest
                )
            )

        def diagnose(state: Any, batch: Batch) -> str | None:
            fault = diagnostics.first_nonfinite(batch)
            # The diagnosis is a collective computation: all processes must run it, or none.
            faulty = distributed.allgather(fault is not None)
            if fault:
                return f"the batch: {fault}"
            if any(faulty):
                return f"the batch: that of process {faulty.index(1)} is not finite"
            if diagnosis is None:
                return None
            return diagnostics.locate_nonfinite(
                diagnosis(state, teacher, place_batch(batch, mesh))[1]
            )

        def on_skip(step: int, count: int, why: str) -> None:
            log_line(
                f"step {step}: warning: {why}; the step is left out ({count} of at most "
                f"{options.patience})"
            )

        closing.enter_context(STOP.deferred())
        try:
            state = fit(
                lambda state, batch: compiled(state, teacher, place_batch(batch, mesh)),
                state,
                batches,
                steps=training_plan.steps,
                log=log,
                log_every=log_every,
                hooks=[Hook(evaluate_every, evaluate), Hook(checkpoint_every, save, at_stop=True)],
                progress=log_progress,
                steps_per_call=training_plan.steps_per_call,
                window=window,
                stop=STOP,
                nonfinite=NonFinitePolicy(options.patience, on_skip, diagnose),
            )
            checkpoints.wait()  # a failure to save the last step is always raised
        except NonFiniteError as error:
            with contextlib.suppress(CheckpointError):
                checkpoints.wait()
            latest_step = checkpoints.latest_step()
            saved = (
                "no checkpoint was written yet"
                if latest_step is None
                else f"step {latest_step} is saved"
            )
            raise NonFiniteError(f"{name}: {error}; {saved} in {directory}") from error
        if int(state.step) < training_plan.steps:
            log_line(
                f"stopped at step {int(state.step)} of {training_plan.steps}; step "
                f"{checkpoints.latest_step()} is saved"
            )
            STOP.raise_if_requested()
    discriminator = state.discriminator
    trained: Teacher = distributed.device_get_global(
        Teacher(state.ema, discriminator.variables if discriminator else None)
    )
    return trained


@contextlib.contextmanager
def _lock_training(directory: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(directory, ".training"))
        except BlockingIOError:
            raise UsageError(f"another process is training in {directory}") from None
        yield


def _check_teacher(training_plan: TrainingPlan, batch: Batch) -> None:
    """Checks the teacher's variables against its network, and the units of its images.

    Raises:
      ValueError: a one-line message.
    """
    setup, teacher = training_plan.setup, training_plan.teacher
    if setup is None or setup.networks.teacher is None:
        return
    if teacher is None or teacher.generator is None:
        return
    network, examples = setup.networks.teacher, jax.tree.map(lambda x: x[:4], dict(batch))
    shapes = jax.eval_shape(setup.task, jax.random.key(0), examples).generator
    check_variables(network, teacher.generator, *shapes, name="the teacher")

    def generate(variables: Variables, examples: Batch) -> tuple[Any, Any]:
        drawn = setup.task(jax.random.key(0), examples)
        return network.apply(variables, *drawn.generator)[0], drawn.real

    images, real = jax.jit(generate)(teacher.generator, examples)
    if real is not None and real.shape == images.shape:
        diagnostics.check_units(images, real)


def _trace_step(compiled: Any, state: Any, teacher: Teacher | None, batch: Batch) -> None:
    """Traces a step for the global batch; the first call reuses the trace."""
    count = jax.process_count()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count * leaf.shape[0], *leaf.shape[1:]), leaf.dtype),
        dict(batch),
    )
    compiled.eval_shape(state, teacher, shapes)


def _peek_batch(batches: kd_data.BatchIterator) -> Batch:
    """The first batch, used for its shapes, without advancing the iterator."""
    position = batches.get_state()
    batch = next(batches)
    batches.set_state(position)
    return batch


def mesh(settings: ConfigDict, batch_size: int) -> Mesh:
    """The mesh of `config.mesh`: `data` (0: all devices) times `model`.

    Raises:
      ValueError: there are too few devices, or the batch is not divisible by them.
    """
    devices = jax.devices()
    count = settings.data * settings.model
    if jax.process_count() > 1 and count not in (0, len(devices)):
        raise ValueError(
            f"config.mesh.data={settings.data} times config.mesh.model={settings.model} is not the "
            f"{len(devices)} devices of {jax.process_count()} processes; config.mesh.data=0 takes "
            "them all"
        )
    device_mesh = make_mesh(settings.data or None, settings.model, devices[: count or None])
    check_batch_size(batch_size, device_mesh)
    return device_mesh


def print_plan(config: ConfigDict, plan: Mapping[str, TrainingPlan], batch: Batch) -> None:
    """Prints the configuration, the parameters, and each step's FLOPs and memory."""
    from clu import parameter_overview

    print(ConfigDict(json.loads(json.dumps(config.to_dict()))))  # tuples as lists, for YAML
    for name, training_plan in plan.items():
        state = jax.eval_shape(training_plan.init, jax.random.key(0), batch)
        for network in ("generator", "discriminator"):
            if not getattr(state, network):
                continue
            print(f"\n{name}, {network}")
            params = getattr(state, network).variables["params"]
            print(parameter_overview.get_parameter_overview(params, include_stats=False))
        compiled: Any = compile_step(training_plan.step)
        program = compiled.lower(state, training_plan.teacher, batch).compile()
        flops = program.cost_analysis()["flops"]
        print(
            f"{name}: {training_plan.steps} steps of {flops / 1e9:.2f} GFLOP and "
            f"{memory(program) / 2**20:.0f} MiB each"
        )


def memory(program: Any) -> int:
    """The bytes that a compiled program needs for arguments, results and temporaries."""
    sizes = program.memory_analysis()
    inputs = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    return inputs + sizes.output_size_in_bytes - sizes.alias_size_in_bytes


def command_line() -> str:
    """The command that started this process, without paths of this machine."""
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
