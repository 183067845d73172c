"""The command line and the run's folder, which all experiments share."""

import contextlib
import difflib
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from experiments import settings
from kd_jax import data as kd_data
from kd_jax.core.checks import UsageError, differences, shorten, user_errors
from kd_jax.core.files import cache_dir, file_lock, naming, write_atomically
from kd_jax.core.mesh import check_batch_size, compile_step, make_mesh
from kd_jax.core.streams import survive_closed_streams
from kd_jax.core.types import Batch
from kd_jax.train import distributed
from kd_jax.train.checkpoint import CheckpointError
from kd_jax.train.loop import NonFiniteError
from kd_jax.train.shutdown import EXIT_CODE, ShutdownRequested, ShutdownSignal, exit_at_once
from kd_jax.train.training import Options, TrainingPlan, lock_training

EXIT_CODES = {"done": 0, "refused": 2, "not finite": 3, "stopped": EXIT_CODE}
"""Exit codes of a run: finished; settings, files or checkpoints do not fit; stopped by NaN or
infinity; stopped by a shutdown request, in which case the same command resumes it."""

STOP = ShutdownSignal()
"""The shutdown signal of this process."""


RUNTIME_FIELDS = ("run", "seeds")
"""Top-level settings that may always change when a run is resumed: no training depends on them."""


def run_settings() -> dict[str, Any]:
    """The defaults of `config.run`, which every experiment has."""
    return Options(tensorboard=True)._asdict()


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
    if run_options.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "config.run.tensorboard=True needs tensorboardX: pip install 'kd_jax[experiments]', or "
            "--config.run.tensorboard=False"
        )
    return run_options


def persistent_config(config: ConfigDict, runtime_fields: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that must not change when a run is resumed."""
    excluded = (*runtime_fields, *RUNTIME_FIELDS)
    result = {k: v for k, v in config.to_dict().items() if k not in excluded}
    if result.get("data", {}).get("background") == "":
        del result["data"]["background"]  # which older runs lack
    return result


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
      shared: whether several processes may share a folder and its trainings.
    """

    get_config: Callable[[str], ConfigDict]
    presets: Sequence[str]
    build: Callable[[ConfigDict], Any]
    plan: Callable[[ConfigDict, Any], tuple[Mapping[str, TrainingPlan], Batch]]
    main: Callable[[ConfigDict, Any, Path], None]
    runtime_fields: Sequence[str] = ()
    shared: bool = False


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
    if not dry_run and distributed.is_primary():
        print("preparing data and networks", flush=True)
    with user_errors(), naming("read the data or a network"):
        settings.check_ranges(config)
        options(config)
        distributed.check_same("setting", json.loads(json.dumps(config.to_dict())), UsageError)
        task = experiment.build(config)
    if dry_run:
        print_plan(config, *experiment.plan(config, task))
        return
    distributed.run_on_primary(
        lambda: check_workdir(workdir, config, resume, experiment.runtime_fields), UsageError
    )
    with contextlib.ExitStack() as stack:
        if not experiment.shared:
            # A training's own lock is free between trainings.
            lock = lock_training(workdir, ".run")
            distributed.run_on_primary(lambda: stack.enter_context(lock), UsageError)
        with naming(f"continue the run of {workdir}"):
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

    survive_closed_streams()

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
            if jax.process_count() == 1:
                # JAX raises from a compilation that continues in its own thread, for which the
                # interpreter's end would wait, and which it can crash.
                exit_at_once(EXIT_CODE)
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


CLAIM = ".config"
"""The lock of a folder's `config.json`."""

CHANGED = "settings changed on the way"
"""The entry of `config.json` with the changes that `config.run.allow_changes` allowed."""


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
    if _claim(workdir, config, resume, runtime_fields) is None:
        return
    # Of processes that start at the same time, the others compare theirs with the first one's.
    with naming(f"write --workdir={workdir}"), file_lock(workdir, CLAIM, wait=True):
        if claim := _claim(workdir, config, resume, runtime_fields):
            text, line = claim
            if line:
                print(line, flush=True)
            write_atomically(workdir / "config.json", text)


def _claim(
    workdir: Path, config: ConfigDict, resume: bool, runtime_fields: Sequence[str]
) -> tuple[str, str] | None:
    """The `config.json` to be written, and a line on what it changes; None if it is there.

    Raises:
      UsageError: as `check_workdir`.
    """
    path = workdir / "config.json"
    here = json.loads(json.dumps(persistent_config(config, runtime_fields)))
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is not a folder")
    # Listed first: another process may write the file at any time.
    files = list(workdir.iterdir()) if workdir.exists() else []
    others = any(not file.match("config.json.*.partial") and file.name != CLAIM for file in files)
    if path.exists():
        if not resume:
            raise UsageError(
                f"{workdir} holds a run; choose another folder, or leave out --noresume"
            )
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UsageError(f"{path} is damaged: it is not valid JSON") from None
        changed = there.pop(CHANGED, [])
        changes = list(differences(there, here))
        if not changes:
            return None
        if not config.run.allow_changes:
            raise UsageError(
                f"{workdir} holds a run of another configuration: {shorten(changes)} "
                "(--config.run.allow_changes=True resumes it anyway)"
            )
        here[CHANGED] = [*changed, *changes]
        line = f"{workdir}: {shorten(changes)}; the run resumes, as allowed"
        return json.dumps(here, indent=1) + "\n", line
    if others:
        raise UsageError(f"{workdir} holds other files; choose a new or an empty folder")
    return json.dumps(here, indent=1) + "\n", ""


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
