"""A teacher and one student architecture, trained from scratch and distilled, in several regimes.

The shared parts of such experiments: the evaluation of generators, the training of one of them, and
the report. A configuration has the sections `seeds`, `latent`, `batch_size`, `data`, `evaluate`,
`mesh`, `run`, `log_every`, `evaluate_every` and `checkpoint_every`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import harness, report
from kd_jax import data as kd_data
from kd_jax.core.mesh import fully_sharded, replicated
from kd_jax.core.network import Network, disconnect
from kd_jax.core.objective import MakeInputs
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import init_state
from kd_jax.core.step import make_train_step
from kd_jax.core.types import Batch, Variables
from kd_jax.metrics import extractor, frechet
from kd_jax.report import pictures
from kd_jax.train import diagnostics, distributed
from kd_jax.train.logs import read_jsonl

ARMS = ("from_scratch", "distilled")
"""The two trainings of a student in each regime."""


def open_source(config: ConfigDict) -> kd_data.Source:
    """Checks the settings that all these experiments share, and opens the images.

    Raises:
      ValueError, FileNotFoundError: a one-line message.
    """
    source = kd_data.open_source(
        config.data.source,
        "train",
        config.data.size,
        config.data.channels,
        harness.cache_dir() / "tfds",
        resize=config.data.resize,
        skip_corrupt=config.run.skip_corrupt,
    )
    check_schedule(config)
    features = config.evaluate.features
    if features == "classifier" and source.num_classes < 2:
        raise ValueError(
            f"config.evaluate.features='classifier' needs labels, and {source.name} has one class "
            "(one sub-folder per class); 'random' needs none"
        )
    if features not in ("auto", "classifier", "random") and not Path(features).is_file():
        raise ValueError(
            f"config.evaluate.features={features!r} is neither auto, classifier, random, nor a "
            "file of Inception weights"
        )
    if config.evaluate.samples < 2:
        raise ValueError(f"config.evaluate.samples={config.evaluate.samples} is less than 2")
    return source


def check_schedule(config: ConfigDict) -> None:
    """Checks the seeds and the logging, evaluation and checkpoint intervals.

    Raises:
      ValueError: a one-line message.
    """
    if not config.seeds:
        raise ValueError("config.seeds needs at least one entry")
    for name, every in (
        ("evaluate", config.evaluate_every),
        ("checkpoint", config.checkpoint_every),
    ):
        if config.log_every < 1 or every < 1 or every % config.log_every:
            raise ValueError(
                f"config.{name}_every={every} is not a multiple of config.log_every="
                f"{config.log_every}"
            )


def check_teacher(
    config: ConfigDict, network: Network, variables: Variables, *inputs: jax.ShapeDtypeStruct
) -> None:
    """Checks that a loaded teacher generates images of the data's shape.

    Args:
      config: the configuration.
      network: the loaded network.
      variables: its variables.
      *inputs: shapes of the inputs for one image; nothing is computed.

    Raises:
      ValueError: a one-line message.
    """
    image = jax.eval_shape(lambda v, *x: network.apply(v, *x)[0], variables, *inputs)
    expected = (1, config.data.size, config.data.size, config.data.channels)
    if image.shape != expected:
        raise ValueError(
            f"config.teacher={config.teacher} makes images {image.shape[1:]}; config.data expects "
            f"{expected[1:]}"
        )


class Evaluator(NamedTuple):
    """The evaluation of generators.

    Attributes:
      sample: `(network, variables) -> images` for fixed latents and labels.
      distance: the Frechet distance of images to the real ones.
      class_accuracy: the share of images that the classifier assigns to their conditioning class;
        None with other features, or unconditional generators.
      extractor: the name of the features.
      samples, reference: numbers of generated and of real images.
    """

    sample: Callable[[Network, Variables], np.ndarray]
    distance: Callable[[np.ndarray], float]
    class_accuracy: Callable[[np.ndarray], float] | None
    extractor: str
    samples: int
    reference: int

    def quality(self, network: Network) -> Callable[[Variables], Mapping[str, float]]:
        """The metrics logged during training, as a function of the generator's variables."""
        return lambda variables: {"frechet": self.distance(self.sample(network, variables))}


def make_evaluator(
    config: ConfigDict, source: kd_data.Source, conditional: bool = True
) -> Evaluator:
    """Makes the feature extractor, and computes the moments of the real images' features.

    `config.evaluate.features` is `classifier` (trained on the data, or read from the cache),
    `random` (a network with random weights), a file of Inception weights, or `auto`: the classifier
    for labelled data, else the random network.

    Args:
      config: the configuration.
      source: the real images.
      conditional: whether the generators take labels in addition to latents.
    """
    real = kd_data.load_all(source)
    kind = config.evaluate.features
    if kind == "auto":
        kind = "classifier" if source.num_classes > 1 else "random"
    if kind == "classifier":
        features = extractor.classifier_extractor(
            real["image"],
            real["label"],
            name=config.data.source.partition(":")[0],
            classes=source.num_classes,
            cache=harness.cache_dir(),
        )
    elif kind == "random":
        features = extractor.random_network()
    else:
        features = extractor.inception(kind)

    def compute_moments(images: np.ndarray) -> frechet.Moments:
        # Published networks are defined for images in [-1, 1]; generators may exceed the range.
        images = images if kind == "classifier" else np.clip(images, -1.0, 1.0)
        return frechet.moments(features.features(images))

    reference = compute_moments(real["image"])
    count = config.evaluate.samples
    labels = np.arange(count, dtype=np.int32) % source.num_classes
    z = jax.random.normal(jax.random.key(config.evaluate.seed), (count, config.latent))
    condition = (labels,) if conditional else ()
    apply = jax.jit(lambda network, v, *inputs: network.apply(v, *inputs)[0], static_argnums=0)

    def sample(network: Network, variables: Variables) -> np.ndarray:
        return apply_in_chunks(partial(apply, network, variables), (z, *condition), chunk_size=256)

    def class_accuracy(images: np.ndarray) -> float:
        return float((features.logits(images).argmax(axis=1) == labels).mean())

    return Evaluator(
        sample=sample,
        distance=lambda x: frechet.frechet_distance(compute_moments(x), reference),
        class_accuracy=class_accuracy if conditional and kind == "classifier" else None,
        extractor=features.name,
        samples=count,
        reference=reference.examples,
    )


def apply_in_chunks(
    apply: Callable[..., Any], inputs: Sequence[Any], chunk_size: int
) -> np.ndarray:
    """`apply(*inputs)` for all examples, in chunks of one size, so that it compiles once.

    Args:
      apply: maps inputs `[B, ...]` to an output `[B, ...]`.
      inputs: `[N, ...]` each.
      chunk_size: the largest number of examples in a chunk.
    """
    count = len(inputs[0])
    size = min(count, chunk_size)
    padded = np.arange(-(-count // size) * size) % count
    outputs = [
        np.asarray(apply(*(x[indices] for x in inputs)))
        for indices in np.split(padded, len(padded) // size)
    ]
    return np.concatenate(outputs)[:count]


def training_batches(config: ConfigDict, source: kd_data.Source, seed: int) -> kd_data.Batches:
    """An endless iterator over this process's part of the batches."""
    return kd_data.batches(
        source,
        config.batch_size,
        seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        skip_corrupt=config.run.skip_corrupt,
    )


def train(
    config: ConfigDict,
    directory: Path,
    plan: harness.TrainingPlan,
    batches: kd_data.BatchIterator,
    quality: Callable[[Variables], Mapping[str, float]],
    seed: int,
    mesh: Mesh,
) -> Teacher:
    """Trains one generator, unless it is trained already, and returns its variables."""
    return harness.train(
        directory,
        plan,
        batches,
        seed=seed,
        configuration=harness.persistent_config(config),
        quality=quality,
        log_every=config.log_every,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        mesh=mesh,
        rule=fully_sharded() if config.mesh.model > 1 else replicated,
        options=harness.options(config),
    )


def training_plan(
    config: ConfigDict,
    nets: Networks,
    terms: PerNetwork,
    optimizers: PerNetwork,
    inputs: MakeInputs,
    steps: int,
    teacher: Teacher | None = None,
    initial: Mapping[str, Variables] | None = None,
) -> harness.TrainingPlan:
    """The alternating step of these networks and terms.

    Args:
      config: the configuration, of which `ema` and `diagnostics` are read.
      nets: the networks.
      terms: a `PerNetwork` of dicts of terms.
      optimizers: a `PerNetwork` of optax transformations.
      inputs: the task.
      steps: the number of training steps.
      teacher: the frozen variables.
      initial: initial variables by network, where they are not random.
    """
    setup = Setup(nets, terms, optimizers, inputs, config.ema)
    return harness.TrainingPlan(
        init=partial(init_state, setup, initial=initial),
        step=make_train_step(setup),
        teacher=teacher,
        steps=steps,
        probe=diagnostics.probe(setup) if config.diagnostics else None,
        diagnosis=diagnostics.diagnosis(setup),
        setup=setup,
    )


def example_batch(config: ConfigDict, source: kd_data.Source) -> Batch:
    """A batch of zeros with the shapes of real batches."""
    shape = (config.batch_size, *source.image_shape)
    return {
        "image": np.zeros(shape, np.float32),
        "label": np.zeros(config.batch_size, np.int32),
    }


class Comparison(NamedTuple):
    """A teacher and a student, in a single regime with all images.

    Attributes:
      source: the images.
      teacher, student: the generators.
      teacher_variables: the teacher's variables from a file, or None to train the teacher.
      teacher_plan: the teacher's training plan.
      student_plan: `(arm, teacher) -> training plan` for each of `ARMS`.
      inputs: the task.
      mesh: the devices to train on.
      conditional: whether the generators take labels in addition to latents.
    """

    source: kd_data.Source
    teacher: Network
    student: Network
    teacher_variables: Teacher | None
    teacher_plan: Callable[[], harness.TrainingPlan]
    student_plan: Callable[[str, Teacher], harness.TrainingPlan]
    inputs: MakeInputs
    mesh: Mesh
    conditional: bool


REGIME = "all"
"""The name of a comparison's only regime."""


def run_comparison(config: ConfigDict, comparison: Comparison, workdir: Path, title: str) -> None:
    """Runs the trainings that are not finished, evaluates all, and writes the report.

    Args:
      config: the configuration.
      comparison: the networks and training plans.
      workdir: the run's folder.
      title: the report's title.
    """
    evaluator = make_evaluator(config, comparison.source, comparison.conditional)
    trained: dict[str, list[Variables]] = {}
    networks = {"teacher": comparison.teacher}

    def run(name: str, seed: int, plan: harness.TrainingPlan) -> Teacher:
        def quality(variables: Variables) -> Mapping[str, float]:
            return evaluator.quality(networks[name])(disconnect(variables))

        directory = workdir / f"seed{seed}" / name
        batches = training_batches(config, comparison.source, seed)
        return train(config, directory, plan, batches, quality, seed, comparison.mesh)

    for seed in config.seeds:
        teacher = comparison.teacher_variables or run("teacher", seed, comparison.teacher_plan())
        trained.setdefault("teacher", []).append(teacher.generator)
        for arm in ARMS:
            name = f"{REGIME}/{arm}"
            networks[name] = comparison.student
            variables = run(name, seed, comparison.student_plan(arm, teacher)).generator
            trained.setdefault(name, []).append(disconnect(variables))
    write_report(
        config,
        workdir,
        title=title,
        evaluator=evaluator,
        source=comparison.source,
        networks=networks,
        trained=trained,
        images={REGIME: len(comparison.source)},
        inputs=comparison.inputs(
            jax.random.key(0), example_batch(config, comparison.source)
        ).generator,
    )


def plan(
    config: ConfigDict, comparison: Comparison, teacher: Teacher
) -> tuple[dict[str, harness.TrainingPlan], Batch]:
    """All training plans of a comparison, and a batch, for the dry run.

    Args:
      config: the configuration.
      comparison: the networks and training plans.
      teacher: the teacher's variables, or zeros of their shapes.
    """
    plans = {} if comparison.teacher_variables else {"teacher": comparison.teacher_plan()}
    for arm in ARMS:
        plans[f"{REGIME}/{arm}"] = comparison.student_plan(arm, teacher)
    return plans, example_batch(config, comparison.source)


def write_report(
    config: ConfigDict,
    workdir: Path,
    *,
    title: str,
    evaluator: Evaluator,
    source: kd_data.Source,
    networks: Mapping[str, Network],
    trained: Mapping[str, list[Variables]],
    images: Mapping[str, int],
    inputs: Sequence[Any],
) -> None:
    """Evaluates all trained generators, writes and prints `report.md`, and saves its pictures.

    Only the primary process does so.

    Args:
      config: the configuration.
      workdir: the run's folder.
      title: the report's title.
      evaluator: the evaluation of generators.
      source: the real images.
      networks: by training: `teacher`, `REGIME/from_scratch`, `REGIME/distilled`.
      trained: the variables by training, one entry per seed.
      images: the number of images in each regime.
      inputs: a batch of the generators' inputs.
    """
    if not distributed.is_primary():
        return
    samples = {
        name: [evaluator.sample(networks[name], variables) for variables in versions]
        for name, versions in trained.items()
    }
    distances = {name: [evaluator.distance(x) for x in xs] for name, xs in samples.items()}
    teacher_cost, student_cost = (
        report.measure_cost(networks[name], trained[name][0], inputs)
        for name in ("teacher", f"{next(iter(images))}/{ARMS[0]}")
    )
    figures = {
        "Samples": "samples.png",
        "Quality during training": "quality.png",
        "Losses": "losses.png",
    }
    text = report.write(
        report.Report(
            title=title,
            command=harness.command_line(),
            extractor=evaluator.extractor,
            samples=evaluator.samples,
            reference=evaluator.reference,
            classes_right={
                name: [evaluator.class_accuracy(x) for x in xs]
                for name, xs in samples.items()
                if evaluator.class_accuracy
            },
            teacher=teacher_cost,
            student=student_cost,
            regimes={
                regime: report.Regime(
                    images[regime],
                    distances["teacher"],
                    distances[f"{regime}/from_scratch"],
                    distances[f"{regime}/distilled"],
                )
                for regime in images
            },
            pictures=figures,
            configuration=config.to_dict(),
            environment=harness.environment(),
        ),
        workdir,
    )
    columns = min(20, evaluator.samples)
    pictures.save_grid(
        workdir / figures["Samples"],
        {
            "real": _real_examples(source, columns),
            **{name: xs[0][:columns] for name, xs in samples.items()},
        },
    )
    histories = read_histories(config, workdir, trained)
    pictures.save_curves(
        workdir / figures["Quality during training"],
        {"Frechet distance": mean_curves(histories, "quality/frechet")},
    )
    pictures.save_curves(
        workdir / figures["Losses"],
        {
            "generator, adversarial": mean_curves(histories, "g/adversarial"),
            "discriminator, adversarial": mean_curves(histories, "d/adversarial"),
            "generator, L1 to the teacher's image": mean_curves(histories, "g/pixel"),
        },
    )
    print(f"\n{text}")
    print(f"report:   {workdir / 'report.md'}\nfigures:  {workdir / 'report.json'}")
    for file in figures.values():
        print(f"picture:  {workdir / file}")


def _real_examples(source: kd_data.Source, count: int) -> np.ndarray:
    """Real images whose classes are those of the samples' columns."""
    labels = source.read_labels()
    classes = np.unique(labels)  # a subset of the data may lack some
    indices = [
        np.flatnonzero(labels == classes[column % len(classes)])[column // len(classes)]
        for column in range(count)
    ]
    return np.stack([source[int(i)]["image"] for i in indices])


def read_histories(
    config: ConfigDict, workdir: Path, names: Iterable[str]
) -> dict[str, list[list[dict[str, Any]]]]:
    """The logged metrics of each training, one list of rows per seed."""
    return {
        name: [
            read_jsonl(workdir / f"seed{seed}" / name / "metrics.jsonl") for seed in config.seeds
        ]
        for name in names
    }


def mean_curves(
    histories: Mapping[str, Any], name: str
) -> dict[str, tuple[list[float], list[float]]]:
    """`(steps, values)` of one metric, averaged over seeds, for each training that logs it."""
    curves = {}
    for training, runs in histories.items():
        rows = [[row for row in run if name in row] for run in runs]
        if rows[0]:
            values = np.mean([[row[name] for row in run] for run in rows], axis=0)
            curves[training] = ([row["step"] for row in rows[0]], values.tolist())
    return curves
