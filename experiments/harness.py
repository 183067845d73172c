"""What all experiments share: the command line, a run's folder, one resumable training."""

import contextlib
import difflib
import json
import logging
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
from kd_jax import health
from kd_jax.checkpoint import Best, CheckpointError, Checkpoints, first_difference
from kd_jax.logs import JsonlWriter
from kd_jax.loop import Hook, NonFiniteError, Progress, fit
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
from kd_jax.state import Teacher, TrainState
from kd_jax.step import Step
from kd_jax.types import Array, Batch, Variables


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line that says what would."""


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
        task = experiment.build(config)
    if dry_run:
        print_plan(config, *experiment.plan(config, task))
        return
    claim(workdir, config, resume, experiment.free)
    experiment.main(config, task, workdir)


def launch(experiment: Experiment) -> NoReturn:
    """The `__main__` of an experiment: flags, then `execute`; errors of use are one line each."""
    presets = experiment.presets
    flags.DEFINE_string("workdir", None, "The run's folder: new, or that of the run to go on with.")
    flags.DEFINE_enum("preset", presets[0], presets, "The configuration to start from.")
    flags.DEFINE_bool("resume", True, "Go on with the run that workdir holds, if it holds one.")
    flags.DEFINE_bool("dry_run", False, "Print configuration, networks and cost, and stop.")
    preset = _peek(sys.argv, "preset", presets[0])
    config = experiment.get_config(preset if preset in presets else presets[0])
    try:
        check_settings(sys.argv[1:], config)
    except UsageError as error:
        _fail(error)
    config_flags.DEFINE_config_dict("config", config)

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise UsageError(f"unexpected argument {rest[1]!r}; options start with --")
            if flags.FLAGS.workdir is None and not flags.FLAGS.dry_run:
                raise UsageError("--workdir=DIR is missing: the folder for the run's files")
            return rest
        except (flags.Error, UsageError) as error:
            _fail(error)

    def run(_: list[str]) -> None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        for name in ("absl", "jax"):  # app.run shows what they only note: backends not found
            logging.getLogger(name).setLevel(logging.WARNING)
        given = flags.FLAGS
        workdir = Path(given.workdir or ".").absolute()
        try:
            execute(
                experiment,
                given.config.lock(),
                workdir,
                resume=given.resume,
                dry_run=given.dry_run,
            )
        except (UsageError, CheckpointError, NonFiniteError) as error:
            _fail(error)

    app.run(run, flags_parser=parse)
    raise AssertionError("app.run returned")


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


def _fail(error: Exception) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(2)


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
      UsageError: when it holds a run of another configuration (the first difference is named), a
        run that is not to be resumed, or other files.
    """
    path = workdir / "config.json"
    here = json.loads(json.dumps({k: v for k, v in config.to_dict().items() if k not in free}))
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is not a folder")
    if path.exists():
        if not resume:
            raise UsageError(
                f"{workdir} holds a run; choose another folder, or leave out --noresume"
            )
        there = json.loads(path.read_text(encoding="utf-8"))
        if difference := first_difference(there, here):
            raise UsageError(f"{workdir} holds a run of another configuration: {difference}")
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise UsageError(f"{workdir} holds other files; choose a new or an empty folder")
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(here, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


class Recipe(NamedTuple):
    """One training.

    Attributes:
      init: `(key, batch) -> state`, the state before the first step.
      step: `(state, teacher_variables, batch) -> (state, metrics)`.
      teacher: the frozen variables, or None.
      steps: how many to take.
      steps_per_call: how many of them a call of `step` takes.
      probe: from `kd_jax.health.probe`, to be asked whenever quality is evaluated; None for never.
      architecture: `batch -> description` of the generator, which checkpoints hold.
    """

    init: Callable[[Array, Batch], Any]
    step: Step[Any]
    teacher: Teacher | None
    steps: int
    steps_per_call: int = 1
    probe: Step[TrainState] | None = None
    architecture: Callable[[Batch], Mapping[str, Any]] | None = None

    def wrapped(self, wrap: Callable[[Step[Any]], Step[Any]]) -> "Recipe":
        """This recipe with another step made of its own; the probe is wrapped alike."""
        return self._replace(step=wrap(self.step), probe=self.probe and wrap(self.probe))


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
) -> Teacher:
    """Trains, or goes on training, or finds it done; returns what it can teach.

    That is the averaged generator's variables, and those of the discriminator, if there is one.

    Writes `checkpoints/`, `metrics.jsonl` and `best/` into `directory`; the latter is the averaged
    generator with the lowest first figure of quality. A training that was killed at any moment and
    goes on ends with the same bits as one that was not.

    Args:
      directory: this training's folder.
      recipe: what to do.
      batches: the data.
      seed: of initial weights and all noise.
      configuration: what a checkpoint must agree with to be gone on from.
      quality: figures of the averaged generator, logged as `quality/NAME`.
      log_every: the window of steps over which metrics are averaged.
      evaluate_every: steps between figures of quality.
      checkpoint_every: steps between checkpoints; a multiple of `log_every`.
      mesh: where to train.
      rule: how the state is split over the mesh.
    """
    name = "/".join(directory.parts[-3:])
    example = _example(batches)

    def init() -> Any:
        return recipe.init(jax.random.key(seed), example)

    if recipe.teacher is not None:
        configuration = {
            **configuration,
            "teacher's fingerprint": int(health.fingerprint(recipe.teacher)),
        }
    compiled = compile_step(recipe.step, mesh, rule)
    like = jax.eval_shape(init)
    with user_errors():  # terms that do not fit are named before anything is compiled or written
        _check(compiled, like, recipe.teacher, example)
    described = recipe.architecture(example) if recipe.architecture else None
    checkpoints = Checkpoints(directory / "checkpoints", configuration, architecture=described)
    if mesh is not None:
        like = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            like,
            shardings(like, mesh, rule),
        )
    if restored := checkpoints.restore(like):
        state, position = restored
        with user_errors():
            batches.set_state(position)
        print(f"{name}: at step {int(state.step)} of {recipe.steps}", flush=True)
    else:
        state = initialize(init, mesh, rule)
    writer = JsonlWriter(directory / "metrics.jsonl", int(state.step))

    first_figures: dict[str, Any] = {}
    told: set[str] = set()

    def look(step: int, state: Any) -> None:
        if probe is None:
            return
        figures = jax.device_get(probe(state, teacher, place_batch(example, mesh))[1])
        writer.write_scalars(step, {f"health/{k}": float(v) for k, v in figures.items()})
        first_figures.update({} if first_figures else figures)
        # Where none was given, the teacher is the student's average: it is meant to change.
        for line in health.warnings(figures, first_figures if recipe.teacher else None):
            subject = " ".join(line.split()[:3])
            if subject not in told:  # once is enough
                told.add(subject)
                print(f"{name}: step {step}: warning: {line}", flush=True)

    def evaluate(step: int, state: Any) -> None:
        found = quality(state.ema)
        figures = {f"quality/{k}": v for k, v in found.items()}
        if found:
            best.offer(step, next(iter(found.values())), jax.device_get(state.ema))
        writer.write_scalars(step, figures)
        print(f"{name}: step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
        look(step, state)

    def save(step: int, state: Any) -> None:
        writer.flush()
        checkpoints.save(step, state, batches.get_state())

    best = Best(directory / "best", "the first figure of quality", described)
    probe = recipe.probe and compile_step(recipe.probe, mesh, rule, donate=False)
    teacher = place(recipe.teacher, mesh)
    latest: dict[str, float] = {}

    def log(step: int, means: Mapping[str, float]) -> None:
        writer.write_scalars(step, means)
        latest.update(means)

    def show(progress: Progress) -> None:
        print(
            f"{name}: step {progress.step}/{progress.steps}, "
            f"{progress.examples_per_second:.0f} images/s, {progress.seconds_left:.0f} s left, "
            + ", ".join(f"{k[0]} {latest[k]:.3f}" for k in ("g/total", "d/total") if k in latest),
            flush=True,
        )

    try:
        state = fit(
            lambda state, batch: compiled(state, teacher, place_batch(batch, mesh)),
            state,
            batches,
            steps=recipe.steps,
            log=log,
            log_every=log_every,
            hooks=[Hook(evaluate_every, evaluate), Hook(checkpoint_every, save)],
            progress=show,
            steps_per_call=recipe.steps_per_call,
        )
    except NonFiniteError as error:
        kept = checkpoints.latest_step()
        last = "no checkpoint was written yet" if kept is None else f"step {kept} is saved"
        raise NonFiniteError(f"{name}: {error}; {last} in {directory}") from error
    finally:
        writer.close()
        checkpoints.close()
    judge = state.discriminator
    return jax.device_get(Teacher(state.ema, judge.variables if judge else None))


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
