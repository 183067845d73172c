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

Hardware and results: two CPU cores; the table in README.md.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import comparison, digits, harness, methods, report
from kd_jax import data as kd_data
from kd_jax.core.cost import time_interleaved
from kd_jax.core.mesh import compile_step, fully_sharded, replicated
from kd_jax.core.network import Network
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import init_state
from kd_jax.core.types import Batch, Variables
from kd_jax.report import pictures
from kd_jax.report.summary import gap_closed, summarize

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
    if preset == "full":
        config.student.steps = 1000
        config.evaluate_every = config.checkpoint_every = 500
        config.diagnostics = False  # saves one compilation in each of hundreds of trainings
    else:
        config.tuning.strengths = (1.0, 10.0)
        config.timing.calls = 2
    return config


def build(config: ConfigDict) -> digits.Task:
    """Checks the settings, opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
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
    if config.evaluate.features not in ("auto", "classifier"):
        raise ValueError(
            f"config.evaluate.features={config.evaluate.features!r}: the table has the accuracy of "
            "the classes, by the classifier"
        )
    task = digits.build(config)
    if task.source.num_classes < 2:
        raise ValueError(
            f"{task.source.name} has one class; the methods are compared class-conditionally (one "
            "sub-folder per class)"
        )
    return task


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


def plan(config: ConfigDict, task: digits.Task) -> tuple[dict[str, harness.TrainingPlan], Batch]:
    """All training plans, with shapes in place of the teacher's variables, and a batch."""
    batch = digits.example_batch(config, task)
    teacher = jax.eval_shape(
        lambda: init_state(
            Setup(
                networks=Networks(*task.teacher),
                losses=PerNetwork({}, {}),
                optimizers=PerNetwork(optax.sgd(0.0), optax.sgd(0.0)),
                task=task.inputs,
            ),
            jax.random.key(0),
            batch,
        )
    )
    frozen = methods.frozen_teacher(teacher.ema, teacher.discriminator.variables)
    images = partial(np.zeros, (2, *task.source.image_shape), np.float32)
    plans = {}
    for regime in config.regimes:
        for name in select_methods(config):
            setting = methods.Setting(config, task, regime, frozen, images, 1.0)
            plans[f"{regime}/{name}"] = methods.METHODS[name].make(setting)[0]
    return plans, batch


class Outcome(NamedTuple):
    """The result of one training.

    Attributes:
      frechet: the distance of its samples to the real images.
      right: the share of samples that the classifier assigns to their conditioning class.
      seconds: its duration, compilation and evaluation included; since the last restart, if it was
        stopped.
    """

    frechet: float
    right: float
    seconds: float


class Runner:
    """The trainings of one run; each is done once, by the first process that reaches it."""

    def __init__(self, config: ConfigDict, task: digits.Task, workdir: Path):
        self.config, self.task, self.workdir = config, task, workdir
        self.evaluator = comparison.make_evaluator(config, task.source)
        self._settings = harness.persistent_config(config, RUNTIME_FIELDS)
        self._teachers: dict[int, Teacher] = {}

    def teacher(self, seed: int) -> Teacher:
        """The seed's teacher, trained on all images."""
        if seed not in self._teachers:
            folder = self.workdir / f"seed{seed}" / "teacher"
            with harness.file_lock(folder, wait=True):
                plan = digits.teacher_plan(self.config, self.task)
                network = self.task.teacher.generator
                trained = self._train(folder, plan, network, seed, self._batches("all", seed), {})
                if not (folder / "outcome.json").exists():
                    self._save_outcome(folder, network, trained.generator, 0.0)
            self._teachers[seed] = methods.frozen_teacher(trained.generator, trained.discriminator)
        return self._teachers[seed]

    def outcome(self, regime: str, name: str, seed: int, strength: float) -> Outcome:
        """The result of a method's training, which runs now unless it is finished.

        Raises:
          BlockingIOError: another process runs it.
        """
        method, folder = methods.METHODS[name], self._folder(regime, name, seed, strength)
        file = folder / "outcome.json"
        if not file.exists():
            teacher = self.teacher(seed)
            with harness.file_lock(folder):
                if not file.exists():
                    images = partial(self._images, regime, seed)
                    plan, network = method.make(
                        methods.Setting(self.config, self.task, regime, teacher, images, strength)
                    )
                    batches = (
                        kd_data.EmptyBatches() if method.data_free else self._batches(regime, seed)
                    )
                    start = time.perf_counter()
                    training = {"row": name, "regime": regime, "strength": strength}
                    trained = self._train(folder, plan, network, seed, batches, training)
                    seconds = time.perf_counter() - start
                    self._save_outcome(folder, network, trained.generator, seconds)
        return Outcome(**json.loads(file.read_text(encoding="utf-8")))

    def samples(self, regime: str, name: str, seed: int, strength: float, count: int) -> np.ndarray:
        """The first samples of a finished training."""
        return np.load(self._folder(regime, name, seed, strength) / "samples.npy")[:count]

    def _folder(self, regime: str, name: str, seed: int, strength: float) -> Path:
        label = f"{name}@{strength:g}" if methods.METHODS[name].tuned else name
        return self.workdir / f"seed{seed}" / regime / label

    def _source(self, regime: str, seed: int) -> kd_data.Source:
        fraction = self.config.regimes[regime].fraction if regime in self.config.regimes else 1.0
        return kd_data.subset(self.task.source, fraction=fraction, seed=seed)

    def _images(self, regime: str, seed: int) -> np.ndarray:
        return kd_data.load_all(self._source(regime, seed))["image"]

    def _batches(self, regime: str, seed: int) -> kd_data.Batches:
        return comparison.training_batches(self.config, self._source(regime, seed), seed)

    def _train(
        self,
        folder: Path,
        plan: harness.TrainingPlan,
        network: Network,
        seed: int,
        batches: kd_data.BatchIterator,
        training: Mapping[str, Any],
    ) -> Teacher:
        return harness.train(
            folder,
            plan,
            batches,
            seed=seed,
            configuration={**self._settings, "training": dict(training)},
            quality=self.evaluator.quality(network),
            log_every=self.config.log_every,
            evaluate_every=self.config.evaluate_every,
            checkpoint_every=self.config.checkpoint_every,
            mesh=self.task.mesh,
            rule=fully_sharded() if self.config.mesh.model > 1 else replicated,
            options=harness.options(self.config),
        )

    def _save_outcome(
        self, folder: Path, network: Network, variables: Variables, seconds: float
    ) -> None:
        images = self.evaluator.sample(network, variables)
        np.save(folder / "samples.npy", images[:20])
        accuracy = self.evaluator.class_accuracy
        assert accuracy is not None  # `build` requires labels
        result = Outcome(self.evaluator.distance(images), accuracy(images), seconds)
        partial_file = folder / "outcome.partial"
        partial_file.write_text(json.dumps(result._asdict()) + "\n", encoding="utf-8")
        os.replace(partial_file, folder / "outcome.json")


class Result(NamedTuple):
    """A method's outcomes in one regime.

    Attributes:
      strength: the tuned strength; NaN for a method without.
      tried: the distance for each strength, with the tuning seed.
      outcomes: one per seed.
    """

    strength: float
    tried: Mapping[str, float]
    outcomes: Sequence[Outcome]


def run_all(runner: Runner, names: Sequence[str]) -> dict[str, dict[str, Result]]:
    """The results by regime and method; other processes of the same run share the work."""
    config = runner.config
    results: dict[str, dict[str, Result]] = {regime: {} for regime in config.regimes}
    total = len(names) * len(results)
    while (done := sum(map(len, results.values()))) < total:
        for name in names:
            for regime in results:
                if name in results[regime]:
                    continue
                try:
                    results[regime][name] = result = _tune_and_run(runner, regime, name)
                except BlockingIOError:
                    continue
                distance = summarize([o.frechet for o in result.outcomes]).mean
                count = sum(map(len, results.values()))
                print(f"[{count}/{total}] {regime}, {name}: distance {distance:.2f}", flush=True)
        if done == sum(map(len, results.values())):
            time.sleep(2.0)  # other processes run all the trainings that are left
    return results


def _tune_and_run(runner: Runner, regime: str, name: str) -> Result:
    config, tried, strength = runner.config, {}, 1.0
    if methods.METHODS[name].tuned:
        for value in config.tuning.strengths:
            outcome = runner.outcome(regime, name, config.tuning.seed, value)
            tried[f"{value:g}"] = outcome.frechet
        strength = float(min(tried, key=lambda value: tried[value]))
    outcomes = [runner.outcome(regime, name, seed, strength) for seed in config.seeds]
    return Result(strength if methods.METHODS[name].tuned else math.nan, tried, outcomes)


class Cost(NamedTuple):
    """The cost of a method's step.

    Attributes:
      milliseconds: the median time of its calls, interleaved with those of all other methods.
      overhead: this time over the sum of the `from_scratch` step's and a teacher forward pass's.
      mebibytes: the memory of the compiled step, the state included.
    """

    milliseconds: float
    overhead: float
    mebibytes: float


def measure_costs(config: ConfigDict, task: digits.Task, names: Sequence[str]) -> dict[str, Cost]:
    """The cost of each method's step, in the regime with all images."""
    plans, batch = plan(config, task)
    regime = "all" if "all" in config.regimes else next(iter(config.regimes))
    calls: dict[str, Callable[[], Any]] = {}
    sizes = {}
    latents_and_labels = task.inputs(jax.random.key(0), batch).generator
    generator = jax.jit(task.teacher.generator.init)(jax.random.key(0), *latents_and_labels)
    discriminator = jax.jit(task.teacher.discriminator.init)(
        jax.random.key(1), jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
    )
    frozen = methods.frozen_teacher(generator, discriminator)
    for name in names:
        training_plan = plans[f"{regime}/{name}"]
        images = {} if methods.METHODS[name].data_free else jax.tree.map(jnp.asarray, batch)
        state = jax.jit(training_plan.init)(jax.random.key(0), images)
        teacher = frozen if training_plan.teacher is not None else None
        step: Any = compile_step(training_plan.step, donate=False)
        program = step.lower(state, teacher, images).compile()
        calls[name] = _call(program, state, teacher, images)
        sizes[name] = harness.memory(program) / 2**20
    forward = jax.jit(lambda v, *inputs: task.teacher.generator.apply(v, *inputs)[0])
    calls["teacher's pass"] = _call(forward, generator, *latents_and_labels)
    times = time_interleaved(calls, config.timing.calls, 1)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    plain = medians["from_scratch"] + medians["teacher's pass"]
    return {name: Cost(medians[name], medians[name] / plain, sizes[name]) for name in names}


def _call(function: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def main(config: ConfigDict, task: digits.Task, workdir: Path) -> None:
    """Runs unfinished trainings, times the steps, and writes the table and its pictures."""
    names = select_methods(config)
    runner = Runner(config, task, workdir)
    results = run_all(runner, names)
    teachers = [
        Outcome(**json.loads((workdir / f"seed{seed}" / "teacher" / "outcome.json").read_text()))
        for seed in config.seeds
    ]
    with harness.file_lock(workdir / "report", wait=True):
        path = workdir / "costs.json"
        costs = json.loads(path.read_text()) if path.exists() else {}
        if costs.keys() != set(names):  # ratios require that all are timed in one process
            costs = {k: v._asdict() for k, v in measure_costs(config, task, names).items()}
            path.write_text(json.dumps(costs, indent=1), encoding="utf-8")
        costs = {name: Cost(**costs[name]) for name in names}
        page = markdown(config, runner, teachers, results, costs)
        (workdir / "report.md").write_text(page, encoding="utf-8")
        figures = {
            "teacher": [o._asdict() for o in teachers],
            "costs": {name: cost._asdict() for name, cost in costs.items()},
            "results": {
                regime: {
                    name: {
                        "strength": None if math.isnan(r.strength) else r.strength,
                        "tried": r.tried,
                        "outcomes": [o._asdict() for o in r.outcomes],
                    }
                    for name, r in rows.items()
                }
                for regime, rows in results.items()
            },
            "configuration": config.to_dict(),
            "environment": harness.environment(),
        }
        text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        (workdir / "report.json").write_text(text, encoding="utf-8")
        _save_pictures(config, runner, teachers, results, names)
    print(f"\n{page}\nreport:   {workdir / 'report.md'}")


def markdown(
    config: ConfigDict,
    runner: Runner,
    teachers: Sequence[Outcome],
    results: Mapping[str, Mapping[str, Result]],
    costs: Mapping[str, Cost],
) -> str:
    """The report as Markdown: one row per method."""
    teacher_distances = [o.frechet for o in teachers]
    regimes = list(results)
    lines = [
        "# Method comparison",
        "",
        f"Frechet distance of {runner.evaluator.samples:,} samples to the "
        f"{runner.evaluator.reference:,} real images in the features of "
        f"`{runner.evaluator.extractor}`, lower is better, mean ± standard deviation over "
        f"{len(teachers)} seeds; the teacher's is {report.spread(summarize(teacher_distances))}. "
        f"Each student is trained for {config.student.steps:,} steps. In brackets, the factor on "
        "the method's distillation weights, selected from "
        f"{', '.join(f'{s:g}' for s in config.tuning.strengths)} with a seed that is not in the "
        "table.",
        "",
        "| | method | added to the adversarial loss |"
        + "".join(f" {regime} | gap closed |" for regime in regimes)
        + " step | overhead | memory |",
        "|---|---|---|" + "---:|---:|" * len(regimes) + "---:|---:|---:|",
    ]
    for name in next(iter(results.values())):
        method, cells = methods.METHODS[name], []
        for regime in regimes:
            result = results[regime][name]
            distances = [o.frechet for o in result.outcomes]
            factor = "" if math.isnan(result.strength) else f" ({result.strength:g})"
            cells.append(f"{report.spread(summarize(distances))}{factor}")
            from_scratch = [o.frechet for o in results[regime]["from_scratch"].outcomes]
            cells.append(
                ""
                if name == "from_scratch"
                else _format_gap(from_scratch, distances, teacher_distances)
            )
        cost = costs[name]
        cells += [
            f"{cost.milliseconds:.1f} ms",
            f"{cost.overhead:.2f}",
            f"{cost.mebibytes:.1f} MiB",
        ]
        lines.append(f"| {method.kind} | {name} | {method.description} | {' | '.join(cells)} |")
    lines += [
        "",
        "Gap closed: (from scratch − distilled) / (from scratch − teacher), of the means over "
        "seeds. Overhead: the step's median time over the sum of the `from_scratch` step's and one "
        "forward pass of the teacher.",
        "",
        "![distances](distances.png)",
        "",
        "![samples](samples.png)",
        "",
        "```",
        harness.command_line(),
        "```",
        "",
        ", ".join(f"{k} {v}" for k, v in harness.environment().items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _format_gap(
    from_scratch: Sequence[float], distilled: Sequence[float], teacher: Sequence[float]
) -> str:
    means = [summarize(values).mean for values in (from_scratch, distilled, teacher)]
    if means[0] <= means[2]:
        return "no gap"
    return f"{100 * gap_closed(means[0], means[1], means[2]):.0f}%"


def _save_pictures(
    config: ConfigDict,
    runner: Runner,
    teachers: Sequence[Outcome],
    results: Mapping[str, Mapping[str, Result]],
    names: Sequence[str],
) -> None:
    teacher_distance = summarize([o.frechet for o in teachers]).mean
    panels, marks = {}, {}
    for regime, rows in results.items():
        title = f"{regime}: Frechet distance"
        summaries = {n: summarize([o.frechet for o in rows[n].outcomes]) for n in names}
        panels[title] = {n: (s.mean, s.deviation) for n, s in summaries.items()}
        marks[title] = {
            "teacher": teacher_distance,
            "from_scratch": summaries["from_scratch"].mean,
        }
    pictures.save_bars(runner.workdir / "distances.png", panels, marks)
    seed, columns = config.seeds[0], min(20, runner.evaluator.samples)
    regime, folder = next(iter(results)), runner.workdir / f"seed{seed}"
    pictures.save_grid(
        runner.workdir / "samples.png",
        {
            "teacher": np.load(folder / "teacher" / "samples.npy")[:columns],
            **{
                name: runner.samples(regime, name, seed, results[regime][name].strength, columns)
                for name in names
            },
        },
        scale=2,
    )


EXPERIMENT = harness.Experiment(get_config, ("full", "tiny"), build, plan, main, RUNTIME_FIELDS)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
