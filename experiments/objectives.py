"""Method comparison: losses, weights, training modes and initializations in one table.

    python -m experiments.objectives --workdir=runs/objectives                  # hours on two cores
    python -m experiments.objectives --workdir=runs/few --config.methods=from_scratch,pixel,cat
    python -m experiments.objectives --dry_run

The teachers, the student, the data, the steps and the learning rates are those of
`experiments.digits`, in its two regimes; where images are scarce, every method with a teacher
trains on the teacher's images in place of real ones. Each method has one hyperparameter, a factor
on its distillation weights, and the same tuning budget: in each regime, one training for each of
`strengths`, with a seed that is not in the table.

Finished trainings are not repeated: re-running the command resumes a stopped run. Several processes
started with one workdir share the trainings.

Hardware and results: two CPU cores; the table in docs/results.md.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import digits, generation, harness, methods, runner
from experiments.runner import Comparison, Result, Run
from kd_jax import data as kd_data
from kd_jax.core.cost import time_interleaved
from kd_jax.core.files import file_lock, read_json, write_json
from kd_jax.core.mesh import compile_step
from kd_jax.core.setup import Teacher
from kd_jax.core.types import Batch
from kd_jax.report import pictures
from kd_jax.report.columns import Column, Figure
from kd_jax.report.page import Gallery, Picture
from kd_jax.report.summary import Summary, summarize
from kd_jax.train.training import TrainingPlan

RUNTIME_FIELDS = ("methods", "seeds", "timing")
"""Settings that no training depends on: methods and seeds can be added to a run."""


def get_config(preset: str = "full") -> ConfigDict:
    """The configuration of `experiments.digits`, and the methods with their tuning and timing."""
    config = digits.get_config("full" if preset == "full" else "tiny")
    config.seeds = (0, 1, 2) if preset == "full" else (0,)
    config.methods = ""  # methods of the table, separated by commas; empty: all
    config.tuning = ConfigDict({"seed": 100, "strengths": (0.1, 1.0, 10.0)})
    config.timing = ConfigDict({"calls": 40})
    for regime in config.regimes.values():
        regime.distilled.initialization = ""  # random, unless the method has its own
    config.evaluate.draws = 1  # hundreds of trainings; seeds are the table's spread
    if preset == "full":
        config.student.steps = 1000
        config.evaluate_every = config.checkpoint_every = 500
        config.diagnostics = False  # saves one compilation in each of hundreds of trainings
    else:
        config.tuning.strengths = (1.0, 10.0)
        config.timing.calls = 2
    return config


def check(config: ConfigDict) -> None:
    """Checks the settings that `experiments.digits` does not have.

    Raises:
      ValueError: a one-line message.
    """
    select_methods(config)
    if jax.process_count() > 1:
        raise ValueError(
            "processes share these trainings through the run's folder: start each without "
            "--distributed"
        )
    if config.model != "dcgan":
        raise ValueError(f"config.model={config.model!r}: the methods use the taps of a dcgan")
    if config.tuning.seed in config.seeds:
        raise ValueError(f"config.tuning.seed={config.tuning.seed} is one of the table's seeds")
    if not config.tuning.strengths:
        raise ValueError("config.tuning.strengths needs at least one entry")
    if config.evaluate.features == "none":
        raise ValueError("config.evaluate.features='none': the methods are compared by a distance")


def build(config: ConfigDict) -> Comparison:
    """Checks the settings, opens the data, and builds the trainings of all methods and regimes.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    check(config)
    task = digits.make_task(config)
    if task.source.num_classes < 2:
        raise ValueError(
            f"{task.source.name} has one class; the methods are compared class-conditionally (one "
            "sub-folder per class)"
        )
    return Comparison(
        title="Method comparison",
        task=task.inputs,
        teacher=digits.teacher_training(config, task),
        students=[
            make_training(config, task, regime, name)
            for regime in config.regimes
            for name in select_methods(config)
        ],
        evaluation=partial(generation.make_evaluation, config, task),
        curves={},
        mesh=task.mesh,
        galleries=draw_distances,
    )


def make_training(
    config: ConfigDict, task: generation.Task, regime: str, name: str
) -> runner.Training:
    """A student's training by a method; its plan also takes the factor on the method's weights."""
    method = methods.METHODS[name]

    def subset(seed: int) -> kd_data.Source:
        return kd_data.subset(task.source, fraction=config.regimes[regime].fraction, seed=seed)

    def plan(teacher: Teacher | None, seed: int, strength: float = 1.0) -> TrainingPlan:
        assert teacher is not None
        frozen = methods.frozen_teacher(teacher.generator, teacher.discriminator)

        def images() -> np.ndarray:
            return kd_data.load_all(subset(seed))["image"]

        return method.make(methods.Setting(config, task, regime, frozen, images, strength))

    def batches(seed: int) -> kd_data.BatchIterator:
        if method.data_free:
            return kd_data.EmptyBatches()
        return runner.training_batches(config, subset(seed), seed)

    return runner.Training(
        name=f"{regime}/{name}",
        network=task.student.generator,
        plan=plan,
        batches=batches,
        steps=config.student.steps,
        images=0 if method.data_free else len(subset(config.seeds[0])),
    )


def with_strength(training: runner.Training, strength: float) -> runner.Training:
    """The training with this factor on the method's distillation weights."""
    plan: Any = training.plan
    return training._replace(
        name=f"{training.name}@{strength:g}",
        plan=partial(plan, strength=strength),
        settings={"strength": strength},
    )


def select_methods(config: ConfigDict) -> list[str]:
    """The names of the methods to run; `from_scratch` is always the first.

    Raises:
      ValueError: a name is unknown.
    """
    names = [name for name in config.methods.split(",") if name] or list(methods.METHODS)
    for name in names:
        if name not in methods.METHODS:
            raise ValueError(
                f"config.methods: no method {name!r}; there is {', '.join(methods.METHODS)}"
            )
    return ["from_scratch", *(name for name in names if name != "from_scratch")]


def plan(config: ConfigDict, comparison: Comparison) -> tuple[dict[str, TrainingPlan], Batch]:
    """All training plans, with shapes in place of the teacher's variables, and a batch."""
    seed, teacher = config.seeds[0], comparison.teacher
    batch = next(teacher.batches(seed))
    state = jax.eval_shape(teacher.plan(None, seed).init, jax.random.key(0), batch)
    shapes = Teacher(state.ema, state.discriminator.variables)
    return {t.name: t.plan(shapes, seed) for t in comparison.students}, batch


class Tuned(NamedTuple):
    """A method in one regime, with its tuned strength.

    Attributes:
      training: the training of the table.
      tried: the distance for each strength, with the tuning seed; empty for methods without.
      results: one per seed.
    """

    training: runner.Training
    tried: Mapping[str, float]
    results: Sequence[Result]


def run_all(run: Run) -> dict[str, Tuned]:
    """Tunes and runs all methods; other processes of the same run share the work."""
    done: dict[str, Tuned] = {}
    students, waiting = run.comparison.students, False
    while len(done) < len(students):
        before = len(done)
        for training in students:
            if training.name in done:
                continue
            try:
                done[training.name] = tuned = tune_and_run(run, training)
            except BlockingIOError:
                continue
            distance = summarize([r.metrics["frechet"].value for r in tuned.results]).mean
            line = f"[{len(done)}/{len(students)}] {tuned.training.name}: distance {distance:.2f}"
            print(line, flush=True)
        if len(done) == before:
            if not waiting:
                print(f"waiting for other processes, which train in {run.workdir}", flush=True)
            waiting = True
            time.sleep(2.0)
    return {training.name: done[training.name] for training in students}


def tune_and_run(run: Run, training: runner.Training) -> Tuned:
    """Chooses the strength with the tuning seed, and runs all seeds with it."""
    tuning, tried = run.config.tuning, {}
    if methods.METHODS[training.name.rpartition("/")[2]].tuned:
        for strength in tuning.strengths:
            result = run.result(with_strength(training, strength), tuning.seed)
            tried[f"{strength:g}"] = result.metrics["frechet"].value
        training = with_strength(training, float(min(tried, key=lambda name: tried[name])))
    return Tuned(training, tried, [run.result(training, seed) for seed in run.config.seeds])


STEP_COSTS = (
    Column("step", "step (ms)", "Median time, interleaved with all others'.", "cost", digits=1),
    Column(
        "overhead",
        "overhead",
        "The step's time over the sum of the `from_scratch` step's and a forward pass of the "
        "teacher.",
        "cost",
    ),
    Column("step_memory", "step memory (MiB)", "With the state.", "cost", digits=1),
)


def measure_step_costs(config: ConfigDict, comparison: Comparison) -> dict[str, dict[str, float]]:
    """The figures of `STEP_COSTS` for each method, in the regime with all images if there is one.

    All are timed in turn in this process, as ratios require.
    """
    plans, batch = plan(config, comparison)
    regime = "all" if "all" in config.regimes else next(iter(config.regimes))
    calls: dict[str, Callable[[], Any]] = {}
    sizes = {}
    teacher_training = comparison.teacher
    state = jax.jit(teacher_training.plan(None, 0).init)(jax.random.key(0), batch)
    frozen = methods.frozen_teacher(state.ema, state.discriminator.variables)
    for name in select_methods(config):
        method_plan = plans[f"{regime}/{name}"]
        images = {} if methods.METHODS[name].data_free else jax.tree.map(jnp.asarray, batch)
        state = jax.jit(method_plan.init)(jax.random.key(0), images)
        teacher = frozen if method_plan.teacher is not None else None
        step: Any = compile_step(method_plan.step, donate=False)
        program = step.lower(state, teacher, images).compile()
        calls[name] = _call(program, state, teacher, images)
        sizes[name] = harness.memory(program) / 2**20
    inputs = comparison.task(jax.random.key(0), batch).generator
    forward = jax.jit(lambda v, *x: teacher_training.network.apply(v, *x)[0])
    calls["teacher's pass"] = _call(forward, frozen.generator, *inputs)
    times = time_interleaved(calls, config.timing.calls, 1)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    plain = medians[runner.FROM_SCRATCH] + medians["teacher's pass"]
    return {
        name: {
            "step": medians[name],
            "overhead": medians[name] / plain,
            "step_memory": sizes[name],
        }
        for name in sizes
    }


def _call(function: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def main(config: ConfigDict, comparison: Comparison, workdir: Path) -> None:
    """Runs unfinished trainings, times the steps, and writes the report."""
    run = Run(config, comparison, workdir, RUNTIME_FIELDS, shared=True)
    tuned = run_all(run)
    results: dict[str, Sequence[Result]]
    results = {runner.TEACHER: [run.result(comparison.teacher, seed) for seed in config.seeds]}
    results |= {method.training.name: method.results for method in tuned.values()}
    students = [method.training for method in tuned.values()]
    run.comparison = comparison._replace(students=students)
    names = select_methods(config)
    with file_lock(workdir / "report", wait=True):
        path = workdir / "costs.json"
        costs = read_json(path, checked=True) if path.exists() else {}
        if costs.keys() != set(names):
            costs = measure_step_costs(config, comparison)
            write_json(path, costs)
        figures: dict[str, dict[str, Figure | str]] = {}
        for name, method in tuned.items():
            name = name.rpartition("/")[2]
            figures[method.training.name] = {
                "kind": methods.METHODS[name].kind,
                "added": methods.METHODS[name].description,
                **{key: Figure(value) for key, value in costs[name].items()},
            }
        strengths = ", ".join(f"{strength:g}" for strength in config.tuning.strengths)
        runner.write_report(
            run,
            results,
            columns=(
                Column("kind", "kind", group="", better=""),
                Column("added", "added to the adversarial loss", group="", better=""),
                *STEP_COSTS,
            ),
            figures=figures,
            notes=[
                f"Each student is trained for {config.student.steps:,} steps. After @, the factor "
                f"on the method's distillation weights, selected from {strengths} with a seed that "
                "is not in the table."
            ],
            details={"tried": {name: method.tried for name, method in tuned.items()}},
        )


def draw_distances(run: Run, results: Mapping[str, Sequence[Result]]) -> Sequence[Gallery]:
    """A bar chart of all methods' distances in each regime."""

    def summary(name: str) -> Summary:
        return summarize([result.metrics["frechet"].value for result in results[name]])

    panels, marks = {}, {}
    for regime in run.config.regimes:
        title = f"{regime}: Frechet distance"
        names = [t.name for t in run.comparison.students if t.group == f"{regime}/"]
        bars = {name.rpartition("/")[2]: summary(name) for name in names}
        panels[title] = {name: (s.mean, s.deviation) for name, s in bars.items()}
        marks[title] = {
            "teacher": summary(runner.TEACHER).mean,
            "from_scratch": bars[runner.FROM_SCRATCH].mean,
        }
    pictures.save_bars(run.workdir / "distances.png", panels, marks)
    about = "Means over seeds; lower is better."
    return [Gallery("Distances", about, [Picture("", "distances.png")])]


EXPERIMENT = harness.Experiment(
    get_config, ("full", "tiny"), build, plan, main, RUNTIME_FIELDS, shared=True
)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
