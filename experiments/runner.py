"""A teacher, a student from scratch and the same student distilled, compared on one task.

The shared parts of experiments whose predictions have targets: images, logits, waveforms. A teacher
is trained on the task; a much cheaper student is trained twice, with the same steps and seeds: from
scratch and distilled. All are evaluated on the same held-out data, against non-learned baselines.
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
from kd_jax import data as kd_data, methods
from kd_jax.core.network import Network, connect_to, disconnect
from kd_jax.core.objective import Inputs, MakeInputs, Terms
from kd_jax.core.setup import Networks, PerNetwork, Teacher
from kd_jax.core.types import Batch, Variables
from kd_jax.report import pictures
from kd_jax.report.summary import summarize
from kd_jax.train import distributed

TRAININGS = ("teacher", *comparison.ARMS)

Predictions: TypeAlias = NDArray[np.float32]


class Metric(NamedTuple):
    """A metric of predictions, as reports show it.

    Attributes:
      label: its column heading.
      higher_is_better: whether larger values are better.
      digits: decimal places.
      unit: the unit of differences, appended in sentences.
    """

    label: str
    higher_is_better: bool
    digits: int = 2
    unit: str = ""


class Evaluation(NamedTuple):
    """Held-out inputs, and the metrics of the predictions for them.

    Attributes:
      inputs: the inputs, `[N, ...]`.
      metrics: the metrics by name; the report's verdicts compare the first.
      compute: `predictions [N, ...] -> values by metric`.
      compute_validation: the same during training; the checkpoint with the lowest first value is
        the best one.
      baselines: the predictions of non-learned methods, by name.
      description: the held-out data, as reports name it: "557 held-out images".
      notes: the report's sentences on the metrics.
      draw: `(file, predictions by name)` saves a picture of some predictions and their inputs.
    """

    inputs: Inputs
    metrics: Mapping[str, Metric]
    compute: Callable[[Predictions], Mapping[str, float]]
    compute_validation: Callable[[Predictions], Mapping[str, float]]
    baselines: Mapping[str, Predictions]
    description: str
    notes: Sequence[str]
    draw: Callable[[Path, Mapping[str, Predictions]], None]


class Comparison(NamedTuple):
    """A task, the networks that are trained on it, and their evaluation.

    Attributes:
      title: the report's title.
      batches: `seed -> batches`, an endless iterator.
      inputs: the task, as it is trained.
      teacher, student: the generators.
      training_plan: `(one of TRAININGS, the teacher's variables or None) -> training plan`.
      evaluation: builds the evaluation, which may take time.
      tracked: the name and the caption of the metric `quality/NAME` that the report plots over
        training.
      mesh: the devices to train on.
    """

    title: str
    batches: Callable[[int], kd_data.BatchIterator]
    inputs: MakeInputs
    teacher: Network
    student: Network
    training_plan: Callable[[str, Variables | None], harness.TrainingPlan]
    evaluation: Callable[[], Evaluation]
    tracked: tuple[str, str]
    mesh: Mesh


def base_config() -> ConfigDict:
    """The settings that these experiments share; each adds its data and its networks."""
    return ConfigDict(
        {
            "seeds": (0, 1, 2),
            "batch_size": 16,
            "dtype": "float32",  # or bfloat16: of activations; parameters are float32
            "teacher": {"steps": 1500, "rate": 1e-3},
            "student": {"steps": 1500, "rate": 2e-3},
            "ema": 0.999,
            "final_rate": 0.01,  # the cosine schedule's end, as a fraction of the learning rate
            "diagnostics": False,
            "log_every": 50,
            "evaluate_every": 500,
            "checkpoint_every": 500,
            "evaluate": {"seed": 1, "examples": 8},
            "mesh": {"data": 1, "model": 1},
            "run": harness.run_settings(),
        }
    )


def tiny(config: ConfigDict) -> ConfigDict:
    """Shrinks the settings for tests: seconds of training, too few steps to learn anything."""
    config.seeds = (0,)
    config.batch_size = 4
    config.teacher.steps = config.student.steps = 4
    config.log_every = config.evaluate_every = config.checkpoint_every = 2
    return config


def check(config: ConfigDict) -> None:
    """Checks the settings of `base_config`.

    Raises:
      ValueError: a one-line message.
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
            raise ValueError(f"config.seeds={tuple(config.seeds)} has {seed}, which is negative")
    for name in ("teacher", "student"):
        if config[name].steps < 1:
            raise ValueError(f"config.{name}.steps={config[name].steps} is not positive")
    for name in ("teacher", "student", "discriminator"):
        rate = config[name].rate if name in config else 1.0
        if not 0 < rate < math.inf:
            raise ValueError(f"config.{name}.rate={rate} is not positive and finite")
    if not 0 <= config.ema < 1:
        raise ValueError(f"config.ema={config.ema} is not in [0, 1): 0 disables the average")
    if not 0 <= config.final_rate <= 1:
        raise ValueError(
            f"config.final_rate={config.final_rate} is not in [0, 1]: it is a fraction of the rate"
        )


def check_weights(weights: Mapping[str, float]) -> None:
    """Checks that all weights are finite and not negative; their names appear in the message.

    Raises:
      ValueError: a one-line message.
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name} is {weight}: it must be finite, not negative")


def check_distilled(config: ConfigDict) -> None:
    """Checks the weights of `config.distilled`, of which one must be positive without a GAN loss.

    Raises:
      ValueError: a one-line message.
    """
    weights = {f"config.distilled.{name}": weight for name, weight in config.distilled.items()}
    check_weights(weights)
    if not config.adversarial and not any(weights.values()):
        raise ValueError(
            f"{', '.join(weights)} are all 0 and there is no adversarial loss: the distilled "
            "student has no loss; one weight must be positive"
        )


def dtype(config: ConfigDict) -> Any:
    """The dtype of activations."""
    return jnp.dtype(config.dtype)


def open_split(config: ConfigDict, spec: str, split: str) -> kd_data.Source:
    """Opens a split of a data set, with the image size, channels and resizing of `config.data`.

    Raises:
      ValueError, FileNotFoundError: a one-line message.
    """
    data = config.data
    return kd_data.open_source(
        spec,
        split,
        data.size,
        data.channels,
        harness.cache_dir() / "tfds",
        resize=data.resize,
        in_patches=data.get("patches", False),
        skip_corrupt=config.run.skip_corrupt,
    )


def split_name(spec: str, split: str) -> str:
    """The split to open: a folder has only `train`; other data sets have `split`."""
    return "train" if spec.startswith("folder:") else split


def check_held_out(train: kd_data.Source, test: kd_data.Source, flag: str) -> None:
    """Checks that no training image is evaluated on, as far as the sources can be compared.

    Args:
      train: the training images.
      test: the images of the evaluation.
      flag: the flag that selects other images, for the message.

    Raises:
      ValueError: a one-line message.
    """
    if kd_data.overlap(train, test):
        raise ValueError(
            f"{test.name} has images of {train.name}: training images cannot be evaluated on; "
            f"hold others out by {flag}"
        )


def check_frechet_count(count: int, source: kd_data.Source, flag: str) -> None:
    """Checks that there are enough images for a Frechet distance.

    Raises:
      ValueError: a one-line message.
    """
    if count < 2:
        raise ValueError(
            f"the evaluation has {count} image of {source.name}; a Frechet distance needs at least "
            f"2: {flag}"
        )


def make_batches(
    config: ConfigDict, source: kd_data.Source
) -> Callable[[int], kd_data.BatchIterator]:
    """`seed -> batches` of a set of images.

    Raises:
      ValueError: there are fewer images than one batch holds.
    """
    if len(source) < config.batch_size:
        raise ValueError(f"{source.name} has {len(source)} images, fewer than one batch")
    return partial(comparison.training_batches, config, source)


def training_plan(
    config: ConfigDict,
    name: str,
    nets: Networks,
    terms: PerNetwork,
    inputs: MakeInputs,
    teacher: Variables | None,
    *,
    d_rate: float = 2e-4,
    b1: float | None = None,
    b2: float = 0.999,
) -> harness.TrainingPlan:
    """A training by Adam with a cosine schedule, with the teacher's or student's steps and rate.

    Args:
      config: the configuration.
      name: one of `TRAININGS`.
      nets: the networks.
      terms: the terms of both networks.
      inputs: the task.
      teacher: the teacher's variables, if the student is distilled.
      d_rate: the discriminator's learning rate.
      b1: Adam's; by default 0.9, or 0.5 with a discriminator, as in Isola et al. 2017.
      b2: Adam's.
    """
    sizes = config.teacher if name == "teacher" else config.student
    first = (0.5 if nets.discriminator else 0.9) if b1 is None else b1
    schedules = [
        optax.cosine_decay_schedule(rate, sizes.steps, config.final_rate)
        for rate in (sizes.rate, d_rate)
    ]
    return comparison.training_plan(
        config,
        nets,
        terms,
        PerNetwork(*(optax.adam(schedule, b1=first, b2=b2) for schedule in schedules)),
        inputs,
        sizes.steps,
        None if teacher is None else Teacher(teacher),
    )


def with_adversarial(terms: Terms, weight: float) -> PerNetwork:
    """A generator's terms and a least-squares adversarial loss of this weight, or none if 0."""
    if not weight:
        return PerNetwork(terms, {})
    loss = methods.least_squares()
    adversarial = {"adversarial": loss.generator["adversarial"]._replace(weight=weight)}
    return PerNetwork({**terms, **adversarial}, loss.discriminator)


def connect_features(
    student: Network,
    teacher: Network,
    taps: Sequence[str] | Mapping[str, str],
    inputs: MakeInputs,
    batch: Batch,
) -> Network:
    """The student with projections of its features to the teacher's number of channels."""
    example = jax.eval_shape(inputs, jax.random.key(0), batch).generator
    return connect_to(student, teacher, taps, *example)


def first_batch(task: Comparison) -> Batch:
    """The first batch, used for its shapes."""
    return next(task.batches(0))


def make_predictor(network: Network, evaluation: Evaluation) -> Callable[[Variables], Predictions]:
    """`variables -> [N, ...]`: a network's predictions for the evaluation's inputs."""
    apply = jax.jit(lambda v, *x: network.apply(v, *x)[0])
    return lambda variables: comparison.apply_in_chunks(
        partial(apply, variables), evaluation.inputs.generator, chunk_size=32
    )


def main(config: ConfigDict, task: Comparison, workdir: Path) -> None:
    """Runs the trainings that are not finished, evaluates all, and writes the report."""
    evaluation = task.evaluation()
    networks = dict.fromkeys(TRAININGS, task.student) | {"teacher": task.teacher}
    trained: dict[str, list[Variables]] = {name: [] for name in TRAININGS}
    predictors = {name: make_predictor(network, evaluation) for name, network in networks.items()}

    def quality(variables: Variables, name: str) -> Mapping[str, float]:
        return evaluation.compute_validation(predictors[name](disconnect(variables)))

    for seed in config.seeds:
        teacher = None
        for name in TRAININGS:
            variables = comparison.train(
                config,
                workdir / f"seed{seed}" / name,
                task.training_plan(name, teacher if name == "distilled" else None),
                task.batches(seed),
                partial(quality, name=name),
                seed,
                task.mesh,
            ).generator
            trained[name].append(disconnect(variables))
            teacher = variables if name == "teacher" else teacher
    if not distributed.is_primary():
        return
    figures, first = evaluate_all(evaluation, predictors, trained)
    batch = [x[: config.batch_size] for x in evaluation.inputs.generator]
    costs = {
        name: report.measure_cost(networks[arm], trained[arm][0], batch)
        for name, arm in (("teacher", "teacher"), ("student", "from_scratch"))
    }
    text = markdown(task.title, config, evaluation, figures, costs)
    (workdir / "report.md").write_text(text, encoding="utf-8")
    contents = {
        "title": task.title,
        "command": harness.command_line(),
        "evaluation": evaluation.description,
        "figures": figures,
        "notes": list(evaluation.notes),
        "costs": {name: report.plain(cost) for name, cost in costs.items()},
        "configuration": config.to_dict(),
        "environment": harness.environment(),
    }
    (workdir / "report.json").write_text(
        json.dumps(contents, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    print(f"\n{text}")
    for file in ("report.md", "report.json"):
        print(f"written:  {workdir / file}")
    # After the metrics, which take the longest and must not be lost when a picture fails.
    for file, draw in (
        ("examples.png", lambda file: evaluation.draw(file, first)),
        ("quality.png", partial(save_quality, config, task.tracked, workdir)),
    ):
        draw(workdir / file)
        print(f"written:  {workdir / file}")


def evaluate_all(
    evaluation: Evaluation,
    predictors: Mapping[str, Callable[[Variables], Predictions]],
    trained: Mapping[str, Sequence[Variables]],
) -> tuple[dict[str, list[dict[str, float]]], dict[str, Predictions]]:
    """The metrics of all networks and baselines, and the first seed's predictions for the picture.

    The other seeds' predictions, which may be gigabytes, are freed as soon as they are evaluated.

    Args:
      evaluation: the evaluation.
      predictors: `variables -> predictions`, by network.
      trained: the variables by network, one entry per seed.
    """
    figures = {name: [dict(evaluation.compute(x))] for name, x in evaluation.baselines.items()}
    first = dict(evaluation.baselines)
    for name, versions in trained.items():
        figures[name] = []
        for variables in versions:
            predictions = predictors[name](variables)
            figures[name].append(dict(evaluation.compute(predictions)))
            first.setdefault(name, predictions)
            del predictions  # before the next ones are allocated
    return figures, first


def save_quality(config: ConfigDict, tracked: tuple[str, str], workdir: Path, file: Path) -> None:
    """Plots the tracked metric over training."""
    name, caption = tracked
    histories = comparison.read_histories(config, workdir, TRAININGS)
    pictures.save_curves(file, {caption: comparison.mean_curves(histories, f"quality/{name}")})


def markdown(
    title: str,
    config: ConfigDict,
    evaluation: Evaluation,
    figures: Mapping[str, Sequence[Mapping[str, float]]],
    costs: Mapping[str, report.Cost],
) -> str:
    """The report as Markdown."""
    seeds = len(config.seeds)
    large, small = costs["teacher"], costs["student"]
    names = [name for name in evaluation.metrics if name in figures["teacher"][0]]
    lines = [
        f"# {title}",
        "",
        f"The student needs **{large.multiply_accumulates / small.multiply_accumulates:.1f} times "
        f"fewer multiply-accumulates** than its teacher and has "
        f"{large.parameters / small.parameters:.1f} times fewer parameters.",
        "",
        *_verdicts(evaluation, figures),
        "",
        "## Quality",
        "",
        f"{evaluation.description}, "
        + (f"mean ± standard deviation over {seeds} seeds." if seeds > 1 else "one seed."),
        *evaluation.notes,
        "",
        f"| network | {' | '.join(evaluation.metrics[name].label for name in names)} |",
        "|---" + "|---:" * len(names) + "|",
    ]
    for name, versions in figures.items():
        cells = [
            report.spread(summarize([v[key] for v in versions]), evaluation.metrics[key].digits)
            if key in versions[0]
            else ""
            for key in names
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *report.cost_section(costs, harness.environment()["device"])]
    for caption, file in (("Examples", "examples.png"), ("During training", "quality.png")):
        lines += ["", f"## {caption}", "", f"![{caption}]({file})"]
    lines += ["", "## Command", "", "```", harness.command_line(), "```", ""]
    return "\n".join(
        [*lines, ", ".join(f"{k} {v}" for k, v in harness.environment().items()) + ".", ""]
    )


def _verdicts(
    evaluation: Evaluation, figures: Mapping[str, Sequence[Mapping[str, float]]]
) -> Iterator[str]:
    """Lines that compare teacher and distilled student with the others by the first metric."""
    name, metric = next(iter(evaluation.metrics.items()))
    pairs = [
        *(("teacher", method) for method in evaluation.baselines),
        ("distilled", "from_scratch"),
        *(("distilled", method) for method in evaluation.baselines),
    ]
    for better, worse in pairs:
        ours, theirs = ([v[name] for v in figures[arm]] for arm in (better, worse))
        theirs = theirs * (len(ours) if len(theirs) == 1 else 1)
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        summary = summarize(differences)
        sign = 1 if metric.higher_is_better else -1
        change = f"{metric.label} {summary.mean:+.{metric.digits}f}{metric.unit}"
        if len(differences) == 1:
            yield f"* {better} against {worse}: {change}; a single seed decides nothing."
            continue
        low, high = (f"{value:+.{metric.digits}f}" for value in (summary.low, summary.high))
        verb = "beats" if sign * summary.mean > 0 else "does not beat"
        wins = sum(sign * d > 0 for d in differences)
        yield (
            f"* {better} **{verb}** {worse}: {change} (95% confidence interval {low} to {high}), "
            f"better in {wins} of {len(differences)} seeds."
        )


def plan(config: ConfigDict, task: Comparison) -> tuple[dict[str, harness.TrainingPlan], Batch]:
    """All training plans, with shapes in place of the teacher's variables, and a batch."""
    del config
    batch = first_batch(task)
    inputs = jax.eval_shape(task.inputs, jax.random.key(0), batch).generator
    teacher = jax.eval_shape(task.teacher.init, jax.random.key(0), *inputs)
    plans = {
        name: task.training_plan(name, teacher if name == "distilled" else None)
        for name in TRAININGS
    }
    return plans, batch


def experiment(
    get_config: Callable[[str], ConfigDict],
    build: Callable[[ConfigDict], Comparison],
    presets: Sequence[str] = ("laptop", "full", "tiny"),
) -> harness.Experiment:
    """An experiment that runs one comparison."""
    return harness.Experiment(get_config, presets, build, plan, main)
