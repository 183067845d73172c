"""Every way of distilling on equal footing: one table over recipes, modes, weights, first students.

    python -m experiments.objectives --workdir=runs/objectives                  # hours on two cores
    python -m experiments.objectives --workdir=runs/few --config.rows=alone,pixel,cat
    python -m experiments.objectives --dry_run

The teachers, the student, the data, the steps and the learning rates are those of
`experiments.digits`, in its two regimes; where images are scarce, every row with a teacher has its
images in the place of real ones. Each row has one knob, a factor on its distillation weights, and
the same budget to set it: in each regime, one training for each of `strengths` on a seed that is
not in the table.

A training that is done is not repeated: the same command again goes on where it was stopped.
Started several times at once, the processes share the trainings.

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

from experiments import comparison, digits, harness, report, ways
from experiments.benchmarks import timing
from kd_jax import data as kd_data
from kd_jax import sharding
from kd_jax.evaluate import pictures
from kd_jax.evaluate.summary import gap_closed, summarize
from kd_jax.network import Network
from kd_jax.state import Networks, Pair, Teacher, init_state
from kd_jax.types import Batch, Variables

FREE = ("rows", "seeds", "timing")
"""Settings that no training depends on: rows and seeds can be added to a run."""


def get_config(preset: str = "full") -> ConfigDict:
    """The configuration of `experiments.digits`, and which rows to run how."""
    config = digits.get_config("full" if preset == "full" else "tiny")
    config.seeds = (0, 1, 2) if preset == "full" else (0,)
    config.rows = ""  # all of them, or names with commas between
    config.tuning = ConfigDict({"seed": 100, "strengths": (0.1, 1.0, 10.0)})
    config.timing = ConfigDict({"calls": 40})
    for regime in config.regimes.values():
        regime.distilled.start = ""  # random, in every row that says nothing else
    if preset == "full":
        config.student.steps = 1000
        config.evaluate_every = config.checkpoint_every = 500
        config.health = False  # a compilation for each of hundreds of trainings
    else:
        config.tuning.strengths = (1.0, 10.0)
        config.timing.calls = 2
    return config


def build(config: ConfigDict) -> digits.Task:
    """Checks the settings, opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    chosen(config)
    if jax.process_count() > 1:
        raise ValueError(
            "several processes share these trainings by their folder: start each without "
            "--distributed"
        )
    if config.model != "dcgan":
        raise ValueError(f"config.model={config.model!r}: these rows name the taps of a dcgan")
    if config.tuning.seed in config.seeds:
        raise ValueError(f"config.tuning.seed={config.tuning.seed} is one of the table's seeds")
    if not config.tuning.strengths:
        raise ValueError("config.tuning.strengths needs at least one entry")
    return digits.build(config)


def chosen(config: ConfigDict) -> list[str]:
    """The names of the rows to run; those without a teacher always come first.

    Raises:
      ValueError: when one is unknown.
    """
    names = [name for name in config.rows.split(",") if name] or list(ways.ROWS)
    for name in names:
        if name not in ways.ROWS:
            raise ValueError(f"config.rows: no row {name!r}; there is {', '.join(ways.ROWS)}")
    return ["alone", *(name for name in names if name != "alone")]


def plan(config: ConfigDict, task: digits.Task) -> tuple[dict[str, harness.Recipe], Batch]:
    """Every row, with shapes in the place of the teacher's variables, and a batch."""
    batch = digits.example_batch(config, task)
    teacher = jax.eval_shape(
        lambda: init_state(
            jax.random.key(0),
            batch,
            nets=Networks(*task.teacher),
            optimizers=Pair(optax.sgd(0.0), optax.sgd(0.0)),
            g_terms={},
            d_terms={},
            inputs=task.inputs,
        )
    )
    frozen = ways.frozen(teacher.ema, teacher.discriminator.variables)
    images = partial(np.zeros, (2, *task.source.image_shape), np.float32)
    made = {}
    for regime in config.regimes:
        for name in chosen(config):
            setting = ways.Setting(config, task, regime, frozen, images, 1.0)
            made[f"{regime}/{name}"] = ways.ROWS[name].make(setting)[0]
    return made, batch


class Outcome(NamedTuple):
    """What one training came to.

    Attributes:
      frechet: the distance of its samples to the real images.
      right: the share of samples of the class asked for.
      seconds: how long it took, compilation and evaluation included; of the last part, if it was
        stopped between.
    """

    frechet: float
    right: float
    seconds: float


class Runner:
    """The trainings of one run, each done once, whichever process comes to it first."""

    def __init__(self, config: ConfigDict, task: digits.Task, workdir: Path):
        self.config, self.task, self.workdir = config, task, workdir
        self.judge = comparison.make_judge(config, task.source)
        self._settings = harness.lasting(config, FREE)
        self._teachers: dict[int, Teacher] = {}

    def teacher(self, seed: int) -> Teacher:
        """The seed's teacher, trained on all images."""
        if seed not in self._teachers:
            folder = self.workdir / f"seed{seed}" / "teacher"
            with harness.locked(folder, wait=True):
                made = digits.teacher_recipe(self.config, self.task)
                network = self.task.teacher.generator
                trained = self._train(folder, made, network, seed, self._batches("all", seed), {})
                if not (folder / "outcome.json").exists():
                    self._keep(folder, network, trained.generator, 0.0)
            self._teachers[seed] = ways.frozen(trained.generator, trained.discriminator)
        return self._teachers[seed]

    def outcome(self, regime: str, name: str, seed: int, strength: float) -> Outcome:
        """A row's training, done now unless it is done already.

        Raises:
          BlockingIOError: another process is at it.
        """
        row, folder = ways.ROWS[name], self._folder(regime, name, seed, strength)
        found = folder / "outcome.json"
        if not found.exists():
            teacher = self.teacher(seed)
            with harness.locked(folder):
                if not found.exists():
                    images = partial(self._images, regime, seed)
                    made, network = row.make(
                        ways.Setting(self.config, self.task, regime, teacher, images, strength)
                    )
                    batches = kd_data.NoBatches() if row.dataless else self._batches(regime, seed)
                    start = time.perf_counter()
                    marks = {"row": name, "regime": regime, "strength": strength}
                    trained = self._train(folder, made, network, seed, batches, marks)
                    seconds = time.perf_counter() - start
                    self._keep(folder, network, trained.generator, seconds)
        return Outcome(**json.loads(found.read_text(encoding="utf-8")))

    def samples(self, regime: str, name: str, seed: int, strength: float, count: int) -> np.ndarray:
        """The first samples of a training that is done."""
        return np.load(self._folder(regime, name, seed, strength) / "samples.npy")[:count]

    def _folder(self, regime: str, name: str, seed: int, strength: float) -> Path:
        label = f"{name}@{strength:g}" if ways.ROWS[name].tuned else name
        return self.workdir / f"seed{seed}" / regime / label

    def _source(self, regime: str, seed: int) -> kd_data.Source:
        fraction = self.config.regimes[regime].fraction if regime in self.config.regimes else 1.0
        return kd_data.subset(self.task.source, fraction=fraction, seed=seed)

    def _images(self, regime: str, seed: int) -> np.ndarray:
        return kd_data.arrays(self._source(regime, seed))["image"]

    def _batches(self, regime: str, seed: int) -> kd_data.Batches:
        return comparison.dealt(self.config, self._source(regime, seed), seed)

    def _train(
        self,
        folder: Path,
        made: harness.Recipe,
        network: Network,
        seed: int,
        batches: kd_data.Endless,
        marks: Mapping[str, Any],
    ) -> Teacher:
        return harness.train(
            folder,
            made,
            batches,
            seed=seed,
            configuration={**self._settings, "training": dict(marks)},
            quality=self.judge.quality(network),
            log_every=self.config.log_every,
            evaluate_every=self.config.evaluate_every,
            checkpoint_every=self.config.checkpoint_every,
            mesh=self.task.mesh,
            rule=sharding.fully_sharded() if self.config.mesh.model > 1 else sharding.replicated,
            options=harness.options(self.config),
        )

    def _keep(self, folder: Path, network: Network, variables: Variables, seconds: float) -> None:
        images = self.judge.sample(network, variables)
        np.save(folder / "samples.npy", images[:20])
        result = Outcome(self.judge.distance(images), self.judge.right(images), seconds)
        partial_file = folder / "outcome.partial"
        partial_file.write_text(json.dumps(result._asdict()) + "\n", encoding="utf-8")
        os.replace(partial_file, folder / "outcome.json")


class Result(NamedTuple):
    """A row's outcomes in one regime.

    Attributes:
      strength: what was chosen; NaN where there is none to choose.
      tried: the distance of each strength, on the tuning seed.
      outcomes: one per seed.
    """

    strength: float
    tried: Mapping[str, float]
    outcomes: Sequence[Outcome]


def run_all(runner: Runner, names: Sequence[str]) -> dict[str, dict[str, Result]]:
    """The results by regime and row; shares the work with other processes of the same run."""
    config = runner.config
    results: dict[str, dict[str, Result]] = {regime: {} for regime in config.regimes}
    total = len(names) * len(results)
    while (done := sum(map(len, results.values()))) < total:
        for name in names:
            for regime in results:
                if name in results[regime]:
                    continue
                try:
                    results[regime][name] = result = _result(runner, regime, name)
                except BlockingIOError:
                    continue
                distance = summarize([o.frechet for o in result.outcomes]).mean
                count = sum(map(len, results.values()))
                print(f"[{count}/{total}] {regime}, {name}: distance {distance:.2f}", flush=True)
        if done == sum(map(len, results.values())):
            time.sleep(2.0)  # all that is left is another process's
    return results


def _result(runner: Runner, regime: str, name: str) -> Result:
    config, tried, strength = runner.config, {}, 1.0
    if ways.ROWS[name].tuned:
        for value in config.tuning.strengths:
            outcome = runner.outcome(regime, name, config.tuning.seed, value)
            tried[f"{value:g}"] = outcome.frechet
        strength = float(min(tried, key=lambda value: tried[value]))
    outcomes = [runner.outcome(regime, name, seed, strength) for seed in config.seeds]
    return Result(strength if ways.ROWS[name].tuned else math.nan, tried, outcomes)


class Cost(NamedTuple):
    """What a row's step costs.

    Attributes:
      milliseconds: the median of its calls, which took turns with those of all other rows.
      overhead: that over the sum of the plain game's step and one forward pass of the teacher.
      mebibytes: what the compiled step needs, the state included.
    """

    milliseconds: float
    overhead: float
    mebibytes: float


def measure(config: ConfigDict, task: digits.Task, names: Sequence[str]) -> dict[str, Cost]:
    """Each row's step, in the regime with all images."""
    recipes_, batch = plan(config, task)
    regime = "all" if "all" in config.regimes else next(iter(config.regimes))
    contestants: dict[str, Callable[[], Any]] = {}
    sizes = {}
    latents_and_labels = task.inputs(jax.random.key(0), batch).generator
    generator = jax.jit(task.teacher.generator.init)(jax.random.key(0), *latents_and_labels)
    judge = jax.jit(task.teacher.discriminator.init)(
        jax.random.key(1), jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
    )
    frozen = ways.frozen(generator, judge)
    for name in names:
        made = recipes_[f"{regime}/{name}"]
        given = {} if ways.ROWS[name].dataless else jax.tree.map(jnp.asarray, batch)
        state = jax.jit(made.init)(jax.random.key(0), given)
        teacher = frozen if made.teacher is not None else None
        step: Any = sharding.compile_step(made.step, donate=False)
        program = step.lower(state, teacher, given).compile()
        contestants[name] = _call(program, state, teacher, given)
        sizes[name] = harness.memory(program) / 2**20
    forward = jax.jit(lambda v, *inputs: task.teacher.generator.apply(v, *inputs)[0])
    contestants["teacher's pass"] = _call(forward, generator, *latents_and_labels)
    times = timing.take_turns(contestants, config.timing.calls, 1)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    plain = medians["alone"] + medians["teacher's pass"]
    return {name: Cost(medians[name], medians[name] / plain, sizes[name]) for name in names}


def _call(function: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def main(config: ConfigDict, task: digits.Task, workdir: Path) -> None:
    """Trains what is not trained yet, times the steps, and writes the table and its pictures."""
    names = chosen(config)
    runner = Runner(config, task, workdir)
    results = run_all(runner, names)
    teachers = [
        Outcome(**json.loads((workdir / f"seed{seed}" / "teacher" / "outcome.json").read_text()))
        for seed in config.seeds
    ]
    with harness.locked(workdir / "report", wait=True):
        path = workdir / "costs.json"
        costs = json.loads(path.read_text()) if path.exists() else {}
        if costs.keys() != set(names):  # all of them in one go, or ratios mean nothing
            costs = {k: v._asdict() for k, v in measure(config, task, names).items()}
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
        _pictures(config, runner, teachers, results, names)
    print(f"\n{page}\nreport:   {workdir / 'report.md'}")


def markdown(
    config: ConfigDict,
    runner: Runner,
    teachers: Sequence[Outcome],
    results: Mapping[str, Mapping[str, Result]],
    costs: Mapping[str, Cost],
) -> str:
    """The table, best rows first within each kind's heading."""
    reached = [o.frechet for o in teachers]
    regimes = list(results)
    lines = [
        "# Every way of distilling, on equal footing",
        "",
        f"Frechet distance of {runner.judge.samples:,} samples to the {runner.judge.reference:,} "
        f"real images in the features of `{runner.judge.extractor}`, lower is better, mean ± "
        f"standard deviation over {len(teachers)} seeds; the teacher's is "
        f"{report.spread(summarize(reached))}. Each "
        f"student takes {config.student.steps:,} steps. In brackets, the factor on the row's "
        f"distillation weights, chosen of {', '.join(f'{s:g}' for s in config.tuning.strengths)} "
        "on a seed that is not in the table.",
        "",
        "| | row | what it adds to the game |"
        + "".join(f" {regime} | gap closed |" for regime in regimes)
        + " step | overhead | memory |",
        "|---|---|---|" + "---:|---:|" * len(regimes) + "---:|---:|---:|",
    ]
    for name in next(iter(results.values())):
        row, cells = ways.ROWS[name], []
        for regime in regimes:
            result = results[regime][name]
            distances = [o.frechet for o in result.outcomes]
            factor = "" if math.isnan(result.strength) else f" ({result.strength:g})"
            cells.append(f"{report.spread(summarize(distances))}{factor}")
            alone = [o.frechet for o in results[regime]["alone"].outcomes]
            cells.append("" if name == "alone" else _closed(alone, distances, reached))
        cost = costs[name]
        cells += [
            f"{cost.milliseconds:.1f} ms",
            f"{cost.overhead:.2f}",
            f"{cost.mebibytes:.1f} MiB",
        ]
        lines.append(f"| {row.kind} | {name} | {row.says} | {' | '.join(cells)} |")
    lines += [
        "",
        "Gap closed: (alone − distilled) / (alone − teacher), of the seeds' means. Overhead: the "
        "step's median time over that of the plain game's step and one pass of the teacher.",
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


def _closed(alone: Sequence[float], distilled: Sequence[float], teacher: Sequence[float]) -> str:
    means = [summarize(values).mean for values in (alone, distilled, teacher)]
    if means[0] <= means[2]:
        return "no gap"
    return f"{100 * gap_closed(means[0], means[1], means[2]):.0f}%"


def _pictures(
    config: ConfigDict,
    runner: Runner,
    teachers: Sequence[Outcome],
    results: Mapping[str, Mapping[str, Result]],
    names: Sequence[str],
) -> None:
    reached = summarize([o.frechet for o in teachers]).mean
    panels, marks = {}, {}
    for regime, rows in results.items():
        title = f"{regime}: Frechet distance"
        summaries = {n: summarize([o.frechet for o in rows[n].outcomes]) for n in names}
        panels[title] = {n: (s.mean, s.deviation) for n, s in summaries.items()}
        marks[title] = {"teacher": reached, "alone": summaries["alone"].mean}
    pictures.save_bars(runner.workdir / "distances.png", panels, marks)
    seed, columns = config.seeds[0], min(20, runner.judge.samples)
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


EXPERIMENT = harness.Experiment(get_config, ("full", "tiny"), build, plan, main, FREE)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
