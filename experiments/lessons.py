"""One task, taught: a teacher, a student alone and the same student distilled, on one exam.

What all experiments with answers to measure share, whatever the answers are: images, logits,
waveforms. A teacher learns the task; a much cheaper student learns it twice, with the same steps
and seeds: alone, and from the teacher too. All are asked the same of what none has seen, and
measured beside a classical method.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from numpy.typing import NDArray

from experiments import comparison, harness, report
from kd_jax import data as kd_data
from kd_jax import hosts, recipes
from kd_jax.evaluate import pictures
from kd_jax.evaluate.summary import Summary, summarize
from kd_jax.network import Network, connect_to, disconnect
from kd_jax.objective import Inputs, MakeInputs, Terms
from kd_jax.state import Networks, Pair, Teacher
from kd_jax.types import Batch, Variables

TRAININGS = ("teacher", *comparison.ARMS)

Answers: TypeAlias = NDArray[np.float32]


class Figure(NamedTuple):
    """One measure of an answer.

    Attributes:
      label: what a table calls it.
      more: whether more is better.
      digits: after the point.
      unit: of differences, in a sentence.
    """

    label: str
    more: bool
    digits: int = 2
    unit: str = ""


class Exam(NamedTuple):
    """What everybody is asked, and how the answers are measured.

    Attributes:
      inputs: everything asked, `[N, ...]`.
      figures: what is measured, by name; the first decides who is better.
      mark: `answers [N, ...] -> figures`.
      watch: the same in the midst of training; the network with the lowest first of these is kept.
      classical: the answers of methods that do not learn as networks do, by name.
      asked: what was asked, for people: "557 images that no network has seen".
      notes: sentences on how it is measured.
      draw: `(file, answers by name)`: a picture of some of them, beside what was asked.
    """

    inputs: Inputs
    figures: Mapping[str, Figure]
    mark: Callable[[Answers], Mapping[str, float]]
    watch: Callable[[Answers], Mapping[str, float]]
    classical: Mapping[str, Answers]
    asked: str
    notes: Sequence[str]
    draw: Callable[[Path, Mapping[str, Answers]], None]


class Lesson(NamedTuple):
    """One task, and who is to learn it.

    Attributes:
      title: the report's.
      batches: `seed -> batches`, without end.
      inputs: the task as it is trained.
      teacher, student: the generators.
      recipe: `(one of TRAININGS, the teacher's variables or None) -> recipe`.
      exam: makes it; may take time.
      watched: the figure that is drawn over the training, `quality/NAME`, and what it is called.
      mesh: where to train.
    """

    title: str
    batches: Callable[[int], kd_data.Endless]
    inputs: MakeInputs
    teacher: Network
    student: Network
    recipe: Callable[[str, Variables | None], harness.Recipe]
    exam: Callable[[], Exam]
    watched: tuple[str, str]
    mesh: Mesh


def settings() -> ConfigDict:
    """What all these experiments have; each adds its data and its networks."""
    return ConfigDict(
        {
            "seeds": (0, 1, 2),
            "batch_size": 16,
            "dtype": "float32",  # or bfloat16: what networks compute in; parameters are float32
            "teacher": {"steps": 1500, "rate": 1e-3},
            "student": {"steps": 1500, "rate": 2e-3},
            "ema": 0.999,
            "final_rate": 0.01,  # the cosine schedule's end, as a part of the learning rate
            "health": False,
            "log_every": 50,
            "evaluate_every": 500,
            "checkpoint_every": 500,
            "evaluate": {"seed": 1, "examples": 8},
            "mesh": {"data": 1, "model": 1},
            "run": harness.run_settings(),
        }
    )


def tiny(config: ConfigDict) -> ConfigDict:
    """For tests: seconds, and nothing learnt."""
    config.seeds = (0,)
    config.batch_size = 4
    config.teacher.steps = config.student.steps = 4
    config.log_every = config.evaluate_every = config.checkpoint_every = 2
    return config


def check(config: ConfigDict) -> None:
    """Refuses settings of `settings` that do not fit.

    Raises:
      ValueError: one line.
    """
    comparison.check_schedule(config)
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.dtype={config.dtype!r} is neither float32 nor bfloat16")
    if config.evaluate.examples < 1:
        raise ValueError(f"config.evaluate.examples={config.evaluate.examples} is not positive")
    if config.batch_size < 1:
        raise ValueError(f"config.batch_size={config.batch_size} is not positive")
    for seed in config.seeds:
        if seed < 0:
            raise ValueError(f"config.seeds={tuple(config.seeds)} has {seed}: none is negative")
    for name in ("teacher", "student"):
        if config[name].steps < 1:
            raise ValueError(f"config.{name}.steps={config[name].steps} is not positive")
    for name in ("teacher", "student", "discriminator"):
        rate = config[name].rate if name in config else 1.0
        if not 0 < rate < math.inf:
            raise ValueError(f"config.{name}.rate={rate} is not positive and finite")
    if not 0 <= config.ema < 1:
        raise ValueError(f"config.ema={config.ema} is not in [0, 1): 0 averages nothing")
    if not 0 <= config.final_rate <= 1:
        raise ValueError(
            f"config.final_rate={config.final_rate} is not in [0, 1]: it is a part of the rate"
        )


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuses weights, by what an error calls them, that are negative or not finite.

    Raises:
      ValueError: one line.
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name} is {weight}: it must be finite, not negative")


def check_distilled(config: ConfigDict) -> None:
    """Refuses weights of `config.distilled` that do not fit, or with which nothing would be learnt.

    Raises:
      ValueError: one line.
    """
    weights = {f"config.distilled.{name}": weight for name, weight in config.distilled.items()}
    check_weights(weights)
    if not config.adversarial and not any(weights.values()):
        raise ValueError(
            f"{', '.join(weights)} are all 0 and there is no game: the distilled student would "
            "learn nothing; one must be positive"
        )


def dtype(config: ConfigDict) -> Any:
    """What networks compute in."""
    return jnp.dtype(config.dtype)


def opened(config: ConfigDict, spec: str, split: str) -> kd_data.Source:
    """A set of images of the size, channels and fit that `config.data` asks for.

    Raises:
      ValueError, FileNotFoundError: one line.
    """
    settings = config.data
    return kd_data.open_source(
        spec,
        split,
        settings.size,
        settings.channels,
        harness.cache_dir() / "tfds",
        resize=settings.resize,
        in_patches=settings.get("patches", False),
        skip_corrupt=config.run.skip_corrupt,
    )


def split_of(spec: str, split: str) -> str:
    """The split to open: a folder has only `train`, whatever the default for other sets is."""
    return "train" if spec.startswith("folder:") else split


def check_unseen(train: kd_data.Source, test: kd_data.Source, flag: str) -> None:
    """Refuses an exam on images that are trained on, as far as that can be told.

    Args:
      train: what is learnt from.
      test: what is asked in the end.
      flag: what sets other images aside.

    Raises:
      ValueError: one line.
    """
    if kd_data.overlap(train, test):
        raise ValueError(
            f"{test.name} has images of {train.name}: what is trained on is asked in the end too; "
            f"set others aside by {flag}"
        )


def check_measured(count: int, source: kd_data.Source, flag: str) -> None:
    """Refuses fewer images than a Frechet distance takes.

    Raises:
      ValueError: one line.
    """
    if count < 2:
        raise ValueError(
            f"the exam has {count} image of {source.name}; a Frechet distance is of at least 2: "
            f"{flag}"
        )


def deal(config: ConfigDict, source: kd_data.Source) -> Callable[[int], kd_data.Endless]:
    """`seed -> batches` of a set of images.

    Raises:
      ValueError: there are fewer images than a batch has.
    """
    if len(source) < config.batch_size:
        raise ValueError(f"{source.name} has {len(source)} images, fewer than one batch")
    return partial(comparison.dealt, config, source)


def recipe(
    config: ConfigDict,
    name: str,
    nets: Networks,
    terms: Pair,
    inputs: MakeInputs,
    teacher: Variables | None,
    *,
    judge_rate: float = 2e-4,
    b1: float | None = None,
    b2: float = 0.999,
) -> harness.Recipe:
    """A training by Adam with a cosine schedule: the teacher's or the student's steps and rate.

    Args:
      config: the configuration.
      name: one of `TRAININGS`.
      nets: the networks.
      terms: both players'.
      inputs: the task.
      teacher: the teacher's variables, if it teaches.
      judge_rate: the discriminator's learning rate.
      b1: Adam's; by default 0.9, and 0.5 in a game, as Isola et al. 2017 have it.
      b2: Adam's.
    """
    sizes = config.teacher if name == "teacher" else config.student
    first = (0.5 if nets.discriminator else 0.9) if b1 is None else b1
    schedules = [
        optax.cosine_decay_schedule(rate, sizes.steps, config.final_rate)
        for rate in (sizes.rate, judge_rate)
    ]
    return comparison.recipe(
        config,
        nets,
        terms,
        Pair(*(optax.adam(schedule, b1=first, b2=b2) for schedule in schedules)),
        inputs,
        sizes.steps,
        None if teacher is None else Teacher(teacher),
    )


def in_game(terms: Terms, weight: float) -> Pair:
    """A generator's terms and a least-squares game of this weight; without one where it is 0."""
    if not weight:
        return Pair(terms, {})
    game = recipes.least_squares()
    adversarial = {"adversarial": game.generator["adversarial"]._replace(weight=weight)}
    return Pair({**terms, **adversarial}, game.discriminator)


def connected(
    student: Network,
    teacher: Network,
    taps: Sequence[str] | Mapping[str, str],
    inputs: MakeInputs,
    batch: Batch,
) -> Network:
    """The student with what its features need to be compared with the teacher's."""
    example = jax.eval_shape(inputs, jax.random.key(0), batch).generator
    return connect_to(student, teacher, taps, *example)


def example(lesson: Lesson) -> Batch:
    """The first batch, for its shapes."""
    return next(lesson.batches(0))


def answers(network: Network, exam: Exam) -> Callable[[Variables], Answers]:
    """`variables -> [N, ...]`: what a network makes of everything asked."""
    apply = jax.jit(lambda v, *x: network.apply(v, *x)[0])
    return lambda variables: comparison.in_parts(
        partial(apply, variables), exam.inputs.generator, at_most=32
    )


def main(config: ConfigDict, lesson: Lesson, workdir: Path) -> None:
    """Trains everything that is not trained yet, measures it, and writes the report."""
    exam = lesson.exam()
    networks = dict.fromkeys(TRAININGS, lesson.student) | {"teacher": lesson.teacher}
    trained: dict[str, list[Variables]] = {name: [] for name in TRAININGS}
    ask = {name: answers(network, exam) for name, network in networks.items()}

    def quality(variables: Variables, name: str) -> Mapping[str, float]:
        return exam.watch(ask[name](disconnect(variables)))

    for seed in config.seeds:
        teacher = None
        for name in TRAININGS:
            variables = comparison.train(
                config,
                workdir / f"seed{seed}" / name,
                lesson.recipe(name, teacher if name == "distilled" else None),
                lesson.batches(seed),
                partial(quality, name=name),
                seed,
                lesson.mesh,
            ).generator
            trained[name].append(disconnect(variables))
            teacher = variables if name == "teacher" else teacher
    if not hosts.is_first():
        return
    figures, first = marked(exam, ask, trained)
    batch = [x[: config.batch_size] for x in exam.inputs.generator]
    costs = {
        name: report.measure_cost(networks[arm], trained[arm][0], batch)
        for name, arm in (("teacher", "teacher"), ("student", "alone"))
    }
    text = page(lesson.title, config, exam, figures, costs)
    (workdir / "report.md").write_text(text, encoding="utf-8")
    everything = {
        "title": lesson.title,
        "command": harness.command_line(),
        "asked": exam.asked,
        "figures": figures,
        "notes": list(exam.notes),
        "costs": {name: report.plain(cost) for name, cost in costs.items()},
        "configuration": config.to_dict(),
        "environment": harness.environment(),
    }
    (workdir / "report.json").write_text(
        json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    print(f"\n{text}")
    for file in ("report.md", "report.json"):
        print(f"written:  {workdir / file}")
    # After the figures, which took the longest and must not be lost where a picture fails.
    for file, draw in (
        ("examples.png", lambda file: exam.draw(file, first)),
        ("quality.png", partial(save_quality, config, lesson.watched, workdir)),
    ):
        draw(workdir / file)
        print(f"written:  {workdir / file}")


def marked(
    exam: Exam,
    ask: Mapping[str, Callable[[Variables], Answers]],
    trained: Mapping[str, Sequence[Variables]],
) -> tuple[dict[str, list[dict[str, float]]], dict[str, Answers]]:
    """Everybody's figures, and the answers of the first seed, which are drawn.

    The other seeds' answers are let go of once they have their figures: there may be gigabytes.

    Args:
      exam: what is asked.
      ask: `variables -> answers`, by network.
      trained: the networks' variables, a version for each seed.
    """
    figures = {name: [dict(exam.mark(x))] for name, x in exam.classical.items()}
    first = dict(exam.classical)
    for name, versions in trained.items():
        figures[name] = []
        for variables in versions:
            found = ask[name](variables)
            figures[name].append(dict(exam.mark(found)))
            first.setdefault(name, found)
            del found  # before the next ones are made
    return figures, first


def save_quality(config: ConfigDict, watched: tuple[str, str], workdir: Path, file: Path) -> None:
    """Draws what was watched over the trainings."""
    name, caption = watched
    histories = comparison.logged(config, workdir, TRAININGS)
    pictures.save_curves(file, {caption: comparison.curves(histories, f"quality/{name}")})


def page(
    title: str,
    config: ConfigDict,
    exam: Exam,
    figures: Mapping[str, Sequence[Mapping[str, float]]],
    costs: Mapping[str, report.Cost],
) -> str:
    """The report as Markdown."""
    seeds = len(config.seeds)
    large, small = costs["teacher"], costs["student"]
    known = [name for name in exam.figures if name in figures["teacher"][0]]
    lines = [
        f"# {title}",
        "",
        f"The student needs **{large.multiply_accumulates / small.multiply_accumulates:.1f} times "
        f"fewer multiply-accumulates** than its teacher and has "
        f"{large.parameters / small.parameters:.1f} times fewer parameters.",
        "",
        *_verdicts(exam, figures),
        "",
        "## Quality",
        "",
        f"{exam.asked}, "
        + (f"mean ± standard deviation over {seeds} seeds." if seeds > 1 else "one seed."),
        *exam.notes,
        "",
        f"| network | {' | '.join(exam.figures[name].label for name in known)} |",
        "|---" + "|---:" * len(known) + "|",
    ]
    for name, versions in figures.items():
        cells = [
            report.spread(summarize([v[key] for v in versions]), exam.figures[key].digits)
            if key in versions[0]
            else ""
            for key in known
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *report.cost_section(costs, harness.environment()["device"])]
    for caption, file in (("Examples", "examples.png"), ("During training", "quality.png")):
        lines += ["", f"## {caption}", "", f"![{caption}]({file})"]
    lines += ["", "## How to get this", "", "```", harness.command_line(), "```", ""]
    return "\n".join(
        [*lines, ", ".join(f"{k} {v}" for k, v in harness.environment().items()) + ".", ""]
    )


def _verdicts(exam: Exam, figures: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """In the first figure: does the teacher beat what is classical, and distilled what is not?"""
    name, figure = next(iter(exam.figures.items()))
    pairs = [
        *(("teacher", method) for method in exam.classical),
        ("distilled", "alone"),
        *(("distilled", method) for method in exam.classical),
    ]
    for better, worse in pairs:
        ours, theirs = ([v[name] for v in figures[arm]] for arm in (better, worse))
        theirs = theirs * (len(ours) if len(theirs) == 1 else 1)
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        found = summarize(differences)
        sign = 1 if figure.more else -1
        word = "beats" if sign * found.mean > 0 else "does not beat"
        wins = sum(sign * d > 0 for d in differences)
        yield (
            f"* {better} **{word}** {worse}: {figure.label} {found.mean:+.{figure.digits}f}"
            f"{figure.unit}{_interval(found, figure)}, better in {wins} of {len(differences)} "
            f"seeds."
        )


def _interval(found: Summary, figure: Figure) -> str:
    if math.isnan(found.low):
        return ""
    low, high = (f"{value:+.{figure.digits}f}" for value in (found.low, found.high))
    return f" (95% confidence interval {low} to {high})"


def plan(config: ConfigDict, lesson: Lesson) -> tuple[dict[str, harness.Recipe], Batch]:
    """Every training, with shapes in the place of the teacher's variables, and a batch."""
    del config
    batch = example(lesson)
    inputs = jax.eval_shape(lesson.inputs, jax.random.key(0), batch).generator
    teacher = jax.eval_shape(lesson.teacher.init, jax.random.key(0), *inputs)
    made = {
        name: lesson.recipe(name, teacher if name == "distilled" else None) for name in TRAININGS
    }
    return made, batch


def experiment(
    get_config: Callable[[str], ConfigDict],
    build: Callable[[ConfigDict], Lesson],
    presets: Sequence[str] = ("laptop", "full", "tiny"),
) -> harness.Experiment:
    """An experiment that is one lesson."""
    return harness.Experiment(get_config, presets, build, plan, main)
