"""A resumable training: checkpoints, metrics, sample grids, diagnostics, graceful shutdown."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from kd_jax.core.architecture import describe
from kd_jax.core.checks import UsageError, user_errors
from kd_jax.core.files import file_lock, read_json, write_json
from kd_jax.core.mesh import (
    Rule,
    compile_step,
    initialize,
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
from kd_jax.data import BatchIterator, prefetch_to_device
from kd_jax.train import diagnostics, distributed
from kd_jax.train.checkpoint import BestCheckpoint, CheckpointError, Checkpoints, versions
from kd_jax.train.logs import JsonlWriter, TensorBoardWriter, duration
from kd_jax.train.loop import Hook, Metrics, NonFiniteError, NonFinitePolicy, Progress, fit
from kd_jax.train.shutdown import ShutdownSignal


class Options(NamedTuple):
    """The fault-tolerance and logging options. They may change when a run is resumed.

    Attributes:
      keep: the number of latest checkpoints to keep.
      keep_every: checkpoints at multiples of this step are kept forever; 0 for none.
      save_errors: what to do when a checkpoint cannot be written (the disk is full): `stop`, or
        `continue`, which continues with the older ones.
      patience: the number of steps with NaN or infinite values to skip before the run ends.
      skip_corrupt: whether an unreadable image is replaced by the next one.
      allow_changes: whether a run may be resumed with other settings, numbers of processes or
        library versions than it was started with.
      tensorboard: whether to write TensorBoard event files beside `metrics.jsonl`.
    """

    keep: int = 2
    keep_every: int = 0
    save_errors: str = "stop"
    patience: int = 0
    skip_corrupt: bool = False
    allow_changes: bool = False
    tensorboard: bool = False


DEFAULT_OPTIONS = Options()

_NUMERICS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
"""Settings of JAX that change numbers: all processes of a training must have the same."""
"""The default options: stop at the first error."""


class Schedule(NamedTuple):
    """Intervals in steps.

    Attributes:
      log_every: the number of steps over which logged metrics are averaged.
      evaluate_every: steps between evaluations, each with a grid of samples.
      checkpoint_every: steps between checkpoints.
    """

    log_every: int
    evaluate_every: int
    checkpoint_every: int


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
      learning_rates: schedules `step -> learning rate` to log, by the prefix of the metric: `g`,
        `d`.
    """

    init: Callable[[Array, Batch], Any]
    step: Step[Any]
    teacher: Teacher | None
    steps: int
    steps_per_call: int = 1
    probe: Step[TrainState] | None = None
    diagnosis: Step[TrainState] | None = None
    setup: Setup | None = None
    learning_rates: Mapping[str, Callable[[int], Any]] = {}

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
    plan: TrainingPlan,
    batches: BatchIterator,
    *,
    seed: int,
    configuration: Mapping[str, Any],
    quality: Callable[[Variables], Mapping[str, float]],
    schedule: Schedule,
    draw: Callable[[Variables, Path], None] | None = None,
    mesh: Mesh | None = None,
    rule: Rule = replicated,
    options: Options = DEFAULT_OPTIONS,
    stop: ShutdownSignal | None = None,
    name: str | None = None,
    steps_ahead: int = 0,
    prefetch: int | None = None,
) -> Teacher:
    """Trains from the start or from the latest checkpoint, and returns the trained variables.

    These are the variables of the averaged generator, and of the discriminator if there is one.

    Writes into `directory`: `checkpoints/`; `metrics.jsonl`; `best/`, the averaged generator with
    the lowest first metric of `quality`; `samples/STEP.png`, if there is `draw`; event files, if
    `options.tensorboard`; `changes.json`, the settings that changed on the way, if they did. A
    training that is killed or stopped at any time and resumed is bit-identical to an uninterrupted
    one.

    Args:
      directory: this training's folder.
      plan: the training.
      batches: the data.
      seed: of initial weights and all noise.
      configuration: the settings that must equal those of a checkpoint to resume from it.
      quality: `variables of the averaged generator -> metrics`, logged as `quality/NAME`.
      schedule: the intervals of logs, evaluations and checkpoints.
      draw: `(variables of the averaged generator, file)` writes a PNG of samples: before the first
        step, after the first logged window, and with each evaluation.
      mesh: the devices to train on.
      rule: how the state is sharded over the mesh.
      options: the fault-tolerance and logging options.
      stop: the shutdown signal of the process; by default there is none.
      name: the training's name in logged lines; by default the last parts of `directory`.
      steps_ahead: steps of other trainings that follow this one, for the estimate of the time.
      prefetch: the number of batches that are copied to the devices ahead of the step; None: 2, or
        0 on CPU, where the step needs the same cores.

    Raises:
      UsageError: the plan does not fit the data, or another process trains in this folder.
      CheckpointError: a checkpoint does not fit, or could not be written.
      NonFiniteError: a value became NaN or infinite in more than `options.patience` steps; no
        checkpoint holds such a value.
      ShutdownRequested: `stop` received a shutdown request; the state is saved.
    """
    stop = stop or ShutdownSignal()
    example = _peek_batch(batches)
    name = name or "/".join(directory.parts[-3:])

    def init() -> Any:
        return with_skip_count(plan.init(jax.random.key(seed), example))

    if plan.teacher is not None:
        fingerprint = int(diagnostics.fingerprint(plan.teacher))
        configuration = {**configuration, "teacher's fingerprint": fingerprint}
    distributed.check_same(
        "setting",
        {
            **configuration,
            "seed": seed,
            "schedule": schedule._asdict(),
            "options": options._asdict(),
            "steps": plan.steps,
            "versions": versions(),
            "jax": {name: getattr(jax.config, name) for name in _NUMERICS},
        },
        UsageError,
    )
    compiled = compile_step(skip_nonfinite(plan.step, options.patience), mesh, rule)
    like = jax.eval_shape(init)
    with user_errors():  # reports terms that do not fit before anything is compiled or written
        _check_teacher(plan, example)
        _trace_step(compiled, like, plan.teacher, example)
    with contextlib.ExitStack() as closing:
        distributed.run_on_primary(
            lambda: closing.enter_context(lock_training(directory)), UsageError
        )
        training = _Training(
            directory, name, plan, batches, example, mesh, rule, options, quality, draw, steps_ahead
        )
        training.open_checkpoints(configuration, closing)
        state = training.restore(like, mesh, rule)
        resumed = state is not None
        if state is None:
            training.log_line("initializing")
            state = initialize(init, mesh, rule)
        training.open_logs(int(state.step), closing)
        if not resumed:
            training.draw_samples(0, state)
        if int(state.step) < plan.steps:
            training.log_line(f"compiling the step; {plan.steps - int(state.step)} steps")
        if prefetch is None:
            platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
            prefetch = 0 if platform == "cpu" else 2
        if prefetch:
            ahead: Any = prefetch_to_device(batches, prefetch, lambda x: place_batch(x, mesh))
            batches = training.batches = ahead
            training.prefetched = True
        teacher, started = training.teacher, False
        # A shutdown before the first step loses nothing, so compilation need not be waited for;
        # with several processes, it must be agreed on.
        if jax.process_count() > 1:
            closing.enter_context(stop.deferred())

        def step(state: Any, batch: Batch) -> Any:
            nonlocal started
            result = compiled(state, teacher, batch if prefetch else place_batch(batch, mesh))
            if not started:
                started = True
                closing.enter_context(stop.deferred())
            return result

        try:
            state = fit(
                step,
                state,
                batches,
                steps=plan.steps,
                log=training.log,
                log_every=schedule.log_every,
                hooks=[
                    Hook(schedule.evaluate_every, training.evaluate),
                    # With each evaluation, and once soon after the start.
                    Hook(
                        schedule.evaluate_every,
                        training.draw_samples,
                        also=schedule.log_every if draw else None,
                    ),
                    Hook(schedule.checkpoint_every, training.save, at_stop=True),
                ],
                progress=training.log_progress,
                steps_per_call=plan.steps_per_call,
                window=training.window,
                stop=stop,
                nonfinite=NonFinitePolicy(options.patience, training.on_skip, training.diagnose),
            )
            training.checkpoints.wait()  # a failure to save the last step is always raised
        except NonFiniteError as error:
            with contextlib.suppress(CheckpointError):
                training.checkpoints.wait()
            latest = training.checkpoints.latest_step()
            saved = "no checkpoint was written yet" if latest is None else f"step {latest} is saved"
            raise NonFiniteError(f"{name}: {error}; {saved} in {directory}") from error
        if int(state.step) < plan.steps:
            training.log_line(
                f"stopped at step {int(state.step)} of {plan.steps}; step "
                f"{training.checkpoints.latest_step()} is saved"
            )
            stop.raise_if_requested()
    discriminator = state.discriminator
    trained: Teacher = distributed.device_get_global(
        Teacher(state.ema, discriminator.variables if discriminator else None)
    )
    return trained


def read_changes(directory: Path) -> list[str]:
    """The settings of a training that changed when it was resumed, one line each.

    Raises:
      ValueError: the file is damaged.
    """
    path = directory / "changes.json"
    changes: list[str] = read_json(path, checked=True)["changes"] if path.exists() else []
    return changes


class _Training:
    """The files of a training and the hooks of its loop."""

    checkpoints: Checkpoints
    prefetched = False
    _checksum: str | None = None  # of the metrics at the restored step

    def __init__(
        self,
        directory: Path,
        name: str,
        plan: TrainingPlan,
        batches: BatchIterator,
        example: Batch,
        mesh: Mesh | None,
        rule: Rule,
        options: Options,
        quality: Callable[[Variables], Mapping[str, float]],
        draw: Callable[[Variables, Path], None] | None,
        steps_ahead: int,
    ):
        self.directory, self.name, self.plan, self.options = directory, name, plan, options
        self.batches, self.example, self.mesh = batches, example, mesh
        self.quality, self.draw, self.steps_ahead = quality, draw, steps_ahead
        self.teacher = place(plan.teacher, mesh)
        self.window: list[Metrics] = []
        self.changes: list[str] = []
        # Each is compiled once, at its first call.
        self.probe, self.diagnosis = (
            step and compile_step(step, mesh, rule, donate=False)
            for step in (plan.probe, plan.diagnosis)
        )
        self._trend = diagnostics.Trend(plan.lower_bounds())
        self._first_figures: dict[str, Any] = {}
        self._warned: set[str] = set()
        self._latest: dict[str, float] = {}

    def log_line(self, line: str) -> None:
        if distributed.is_primary():
            print(f"{self.name}: {line}", flush=True)

    # The files.

    def open_checkpoints(
        self, configuration: Mapping[str, Any], closing: contextlib.ExitStack
    ) -> None:
        described = self.plan.describe(self.example)
        self.checkpoints = Checkpoints(
            self.directory / "checkpoints",
            configuration,
            self.options.keep,
            described,
            keep_every=self.options.keep_every,
            allow_changes=self.options.allow_changes,
            log=self.log_line,
        )
        closing.callback(self.checkpoints.close)
        self._best = BestCheckpoint(
            self.directory / "best", "the first figure of quality", described, log=self.log_line
        )

    def restore(self, like: Any, mesh: Mesh | None, rule: Rule) -> Any:
        """The state of the latest checkpoint, and sets the position in the data; None without."""
        if mesh is not None:
            like = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                like,
                shardings(like, mesh, rule),
            )
        restored = self.checkpoints.restore(like)
        if restored is None:
            return None
        state, position = restored
        step, steps = int(state.step), self.plan.steps
        self.window += position["window"]
        if not self.options.allow_changes:
            self._checksum = position.get("metrics")
        self.changes += position.get("changes", [])
        self.changes += [f"until step {step}: {line}" for line in self.checkpoints.changes]
        try:
            self.batches.set_state(position["batches"])
        except ValueError as error:
            if not self.options.allow_changes:
                raise UsageError(str(error)) from error
            self.log_line(f"{error}; the data restart, as allowed")
            self.changes.append(f"until step {step}: other data; {error}")
        if step > steps:
            raise UsageError(
                f"{self.directory} is at step {step}, past the {steps} steps of these settings; "
                "set more steps, or choose another folder"
            )
        if self.changes and distributed.is_primary():
            write_json(self.directory / "changes.json", {"changes": self.changes})
        self.log_line(f"at step {step} of {steps}")
        return state

    def open_logs(self, step: int, closing: contextlib.ExitStack) -> None:
        """Opens the metrics' files; lines after `step`, if any, are removed."""
        self._metrics = self.directory / "metrics.jsonl"
        with user_errors():
            writer = distributed.run_on_primary(
                lambda: JsonlWriter(self._metrics, step, checksum=self._checksum), UsageError
            )
        self._writer = writer or JsonlWriter(self._metrics, dry=True)
        closing.push(self._close_writer)
        self._board = None
        if self.options.tensorboard and distributed.is_primary():
            self._board = TensorBoardWriter(self.directory, step)
            closing.callback(self._board.close)

    def _close_writer(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._writer.close()
        except OSError as error:
            if kind is None:  # otherwise the exception that ended the run is the one to report
                raise CheckpointError(f"{self._metrics} not written: {error.strerror}") from None

    def _flush(self, step: int) -> None:
        try:
            self._writer.flush()
        except OSError as error:
            raise CheckpointError(
                f"step {step} not saved: {self._metrics} cannot be written: {error.strerror}"
            ) from None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs figures; raises before a value that is not finite is written."""
        for figure, value in figures.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"step {step}: {figure} is {value}")
        if figures:
            self._writer.write_scalars(step, {**figures, "wall_time": time.time()})
        if self._board is not None:
            self._board.write_scalars(step, figures)

    # The hooks of the loop.

    def evaluate(self, step: int, state: Any) -> None:
        variables = _averaged(state)
        values = self.quality(variables)
        figures = {f"quality/{k}": v for k, v in values.items()}
        self.write(step, figures)
        if values:
            value = next(iter(values.values()))
            # Orbax synchronises processes by name and confuses two saves at the same time.
            self._save_or_warn(self.checkpoints.wait)
            self._save_or_warn(lambda: self._best.update(step, value, jax.device_get(variables)))
            self.log_line(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
        self._run_probe(step, state)

    def draw_samples(self, step: int, state: Any) -> None:
        if self.draw is None:
            return
        variables = _averaged(state)  # a collective operation
        if not distributed.is_primary():
            return
        file = self.directory / "samples" / f"{step:06d}.png"
        file.parent.mkdir(exist_ok=True)
        self.draw(variables, file)
        if not step:
            self.log_line(f"samples during training: {file.parent}")
        if self._board is not None:
            self._board.write_picture(step, file)

    def save(self, step: int, state: Any) -> None:
        if fault := diagnostics.first_nonfinite(state):
            raise NonFiniteError(f"step {step}: the state is not saved, {fault}")
        data: dict[str, Any] = {"batches": self.batches.get_state(), "window": self.window}
        if self.changes:
            data["changes"] = self.changes

        def save_all() -> None:
            self._flush(step)  # a training resumed from this step needs the lines before it
            self.checkpoints.save(step, state, {**data, "metrics": self._writer.checksum()})

        self._save_or_warn(self.checkpoints.wait)  # for the previous checkpoint
        self._save_or_warn(save_all)

    def _save_or_warn(self, write: Callable[[], Any]) -> None:
        """Writes a checkpoint; on failure raises or warns, as `save_errors` says."""
        try:
            write()
        except CheckpointError as error:
            if self.options.save_errors == "stop":
                raise
            self.log_line(f"warning: {error}; the training continues")

    def log(self, step: int, means: Mapping[str, float]) -> None:
        skipped = getattr(self.batches, "skipped", 0)  # of the primary process's part
        rates = {
            f"{prefix}/learning_rate": float(schedule(step - 1))
            for prefix, schedule in self.plan.learning_rates.items()
        }
        self.write(step, {**means, **({"data/skipped": skipped} if skipped else {}), **rates})
        self._latest.update(means)
        self._warn(step, self._trend.update(means))
        self._save_or_warn(self.checkpoints.check)

    def log_progress(self, progress: Progress) -> None:
        rate = progress.examples_per_second * jax.process_count()
        left = duration(progress.seconds_left) + " left"
        if self.steps_ahead:
            total = progress.seconds_left + self.steps_ahead * progress.seconds_per_step
            left += f", about {duration(total)} for all trainings"
        losses = [
            f"{network} loss {self._latest[key]:.3f}"
            for network, key in (("generator", "g/total"), ("discriminator", "d/total"))
            if key in self._latest
        ]
        self.log_line(
            f"step {progress.step}/{progress.steps}, {rate:.0f} images/s, {left}, "
            + ", ".join(losses)
        )

    def _warn(self, step: int, lines: Sequence[str]) -> None:
        for line in lines:
            subject = " ".join(line.split()[:3])
            if subject not in self._warned:  # each warning is logged once
                self._warned.add(subject)
                self.log_line(f"step {step}: warning: {line}")

    def _run_probe(self, step: int, state: Any) -> None:
        if self.probe is None:
            return
        batch = place_batch(self.example, self.mesh)
        figures = jax.device_get(self.probe(state, self.teacher, batch)[1])
        self.write(step, {f"health/{k}": float(v) for k, v in figures.items()})
        self._first_figures.update({} if self._first_figures else figures)
        # Without teacher variables, the teacher is the student's average, which must change.
        first = self._first_figures if self.plan.teacher else None
        self._warn(step, diagnostics.warnings(figures, first))

    def diagnose(self, state: Any, batch: Batch) -> str | None:
        fault = diagnostics.first_nonfinite(batch)
        # The diagnosis is a collective computation: all processes must run it, or none.
        faulty = distributed.allgather(fault is not None)
        if fault:
            return f"the batch: {fault}"
        if any(faulty):
            return f"the batch: that of process {faulty.index(1)} is not finite"
        if self.diagnosis is None:
            return None
        placed = batch if self.prefetched else place_batch(batch, self.mesh)
        return diagnostics.locate_nonfinite(self.diagnosis(state, self.teacher, placed)[1])

    def on_skip(self, step: int, count: int, why: str) -> None:
        self.log_line(
            f"step {step}: warning: {why}; the step is left out ({count} of at most "
            f"{self.options.patience})"
        )


def _averaged(state: Any) -> Variables:
    """The averaged generator's variables, complete in each process."""
    return distributed.device_get_global(state.ema) if jax.process_count() > 1 else state.ema


@contextlib.contextmanager
def lock_training(directory: Path, name: str = ".training") -> Iterator[None]:
    """Locks a folder, as `file_lock`, for its only training.

    Raises:
      UsageError: another process is training in it, or the file system does not support locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(directory, name))
        except BlockingIOError:
            raise UsageError(f"another process is training in {directory}") from None
        yield


def _check_teacher(plan: TrainingPlan, batch: Batch) -> None:
    """Checks the teacher's variables against its network, and the units of its images.

    Raises:
      ValueError: a one-line message.
    """
    setup, teacher = plan.setup, plan.teacher
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

    def globally(leaf: Array) -> jax.ShapeDtypeStruct:
        dtype = jax.typeof(leaf).dtype  # as on the device, where int64 becomes int32
        return jax.ShapeDtypeStruct((count * leaf.shape[0], *leaf.shape[1:]), dtype)

    shapes = jax.tree.map(globally, dict(batch))
    compiled.eval_shape(state, teacher, shapes)


def _peek_batch(batches: BatchIterator) -> Batch:
    """The first batch, used for its shapes, without advancing the iterator."""
    position = batches.get_state()
    batch = next(batches)
    batches.set_state(position)
    return batch
