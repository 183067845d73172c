"""One teacher, a student alone and the same student distilled, in one or more regimes.

What experiments of this shape share: how generators are measured, how one of them is trained, and
the report. A configuration has the sections `seeds`, `latent`, `batch_size`, `data`, `evaluate`,
`mesh`, `run`, `log_every`, `evaluate_every` and `checkpoint_every`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import harness, report
from kd_jax import data as kd_data
from kd_jax import health, hosts, sharding
from kd_jax.architecture import describe
from kd_jax.evaluate import extractor, frechet, pictures
from kd_jax.logs import read_jsonl
from kd_jax.network import Network, disconnect
from kd_jax.objective import MakeInputs
from kd_jax.state import Networks, Pair, Teacher, init_state
from kd_jax.step import make_train_step
from kd_jax.types import Array, Batch, Variables

ARMS = ("alone", "distilled")
"""The two trainings of a student in each regime."""


def open_source(config: ConfigDict) -> kd_data.Source:
    """The images, once the settings that all these experiments have are known to fit.

    Raises:
      ValueError, FileNotFoundError: one line.
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
    if source.num_classes < 2:
        raise ValueError(
            f"{source.name} has one class; the distance here is measured in the features of a "
            "classifier, so at least two are needed (one sub-folder per class)"
        )
    if config.evaluate.samples < 2:
        raise ValueError(f"config.evaluate.samples={config.evaluate.samples} is less than 2")
    return source


def check_schedule(config: ConfigDict) -> None:
    """Refuses settings of when to do what that do not fit together.

    Raises:
      ValueError: one line.
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
    """Refuses a file whose network makes other images than the data's.

    Args:
      config: the configuration.
      network: the file's.
      variables: its variables.
      *inputs: for one image. Nothing is computed.

    Raises:
      ValueError: one line.
    """
    image = jax.eval_shape(lambda v, *x: network.apply(v, *x)[0], variables, *inputs)
    expected = (1, config.data.size, config.data.size, config.data.channels)
    if image.shape != expected:
        raise ValueError(
            f"config.teacher={config.teacher} makes images {image.shape[1:]}; config.data asks for "
            f"{expected[1:]}"
        )


class Judge(NamedTuple):
    """How generators are measured.

    Attributes:
      sample: `(network, variables) -> images` on the fixed latents and labels.
      distance: of images to the real ones.
      right: the share of images that the classifier gives the class asked for.
      extractor: the name of the features.
      samples, reference: N of generated and of real images.
    """

    sample: Callable[[Network, Variables], np.ndarray]
    distance: Callable[[np.ndarray], float]
    right: Callable[[np.ndarray], float]
    extractor: str
    samples: int
    reference: int

    def quality(self, network: Network) -> Callable[[Variables], Mapping[str, float]]:
        """What is logged during training."""
        return lambda variables: {"frechet": self.distance(self.sample(network, variables))}


def make_judge(config: ConfigDict, source: kd_data.Source, conditional: bool = True) -> Judge:
    """Trains the classifier or finds it in the cache, and the moments of the real images.

    Args:
      config: the configuration.
      source: the real images.
      conditional: whether the generators take labels beside the latents.
    """
    real = kd_data.arrays(source)
    features = extractor.classifier_extractor(
        real["image"],
        real["label"],
        name=config.data.source.partition(":")[0],
        classes=source.num_classes,
        cache=harness.cache_dir(),
    )
    reference = frechet.moments(features.features(real["image"]))
    count = config.evaluate.samples
    labels = np.arange(count, dtype=np.int32) % source.num_classes
    z = jax.random.normal(jax.random.key(config.evaluate.seed), (count, config.latent))
    condition = (labels,) if conditional else ()
    apply = jax.jit(lambda network, v, *inputs: network.apply(v, *inputs)[0], static_argnums=0)

    def sample(network: Network, variables: Variables) -> np.ndarray:
        return in_parts(partial(apply, network, variables), (z, *condition), at_most=256)

    return Judge(
        sample=sample,
        distance=lambda x: frechet.frechet_distance(
            frechet.moments(features.features(x)), reference
        ),
        right=lambda x: float((features.logits(x).argmax(axis=1) == labels).mean()),
        extractor=features.name,
        samples=count,
        reference=reference.examples,
    )


def in_parts(apply: Callable[..., Any], inputs: Sequence[Any], at_most: int) -> np.ndarray:
    """`apply(*inputs)` for all examples, so many at a time, by one compiled program.

    Args:
      apply: makes `[B, ...]` of them.
      inputs: `[N, ...]` each.
      at_most: examples at a time.
    """
    count = len(inputs[0])
    part = min(count, at_most)
    padded = np.arange(-(-count // part) * part) % count
    outputs = [
        np.asarray(apply(*(x[chosen] for x in inputs)))
        for chosen in np.split(padded, len(padded) // part)
    ]
    return np.concatenate(outputs)[:count]


def dealt(config: ConfigDict, source: kd_data.Source, seed: int) -> kd_data.Batches:
    """A set of images in batches without end, this process's part of them."""
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
    made: harness.Recipe,
    batches: kd_data.Endless,
    quality: Callable[[Variables], Mapping[str, float]],
    seed: int,
    mesh: Mesh,
) -> Teacher:
    """Trains one generator, or finds it trained; what it can teach."""
    return harness.train(
        directory,
        made,
        batches,
        seed=seed,
        configuration=harness.lasting(config),
        quality=quality,
        log_every=config.log_every,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        mesh=mesh,
        rule=sharding.fully_sharded() if config.mesh.model > 1 else sharding.replicated,
        options=harness.options(config),
    )


def recipe(
    config: ConfigDict,
    nets: Networks,
    terms: Pair,
    optimizers: Pair,
    inputs: MakeInputs,
    steps: int,
    teacher: Teacher | None = None,
    start: Mapping[str, Variables] | None = None,
) -> harness.Recipe:
    """The alternating step of these networks and terms, with an average that warms up.

    Args:
      config: the configuration; `ema` and `health` of it.
      nets: the networks.
      terms: a `Pair` of dicts of terms.
      optimizers: a `Pair` of optax transformations.
      inputs: the task.
      steps: how many to take.
      teacher: the frozen variables.
      start: what the players begin with.
    """

    def average(step: Array) -> Array:
        return jnp.minimum(config.ema, (1.0 + step) / (10.0 + step))

    parts: dict[str, Any] = {
        "nets": nets,
        "optimizers": optimizers,
        "g_terms": terms.generator,
        "d_terms": terms.discriminator,
        "inputs": inputs,
    }
    return harness.Recipe(
        init=partial(init_state, **parts, start=start),
        step=make_train_step(**parts, ema=average),
        teacher=teacher,
        steps=steps,
        probe=health.probe(**parts) if config.health else None,
        diagnosis=health.diagnosis(**parts),
        floors={
            f"{player}/{name}": term.floor
            for player, of_one in (("g", terms.generator), ("d", terms.discriminator))
            for name, term in of_one.items()
            if term.floor is not None
        },
        architecture=lambda batch: describe(
            nets.generator, *inputs(jax.random.key(0), batch).generator
        ),
        nets=nets,
        inputs=inputs,
    )


def example_batch(config: ConfigDict, source: kd_data.Source) -> Batch:
    """A batch of zeros, for its shapes."""
    shape = (config.batch_size, *source.image_shape)
    return {
        "image": np.zeros(shape, np.float32),
        "label": np.zeros(config.batch_size, np.int32),
    }


class Lesson(NamedTuple):
    """One teacher and one student, with all images.

    Attributes:
      source: the images.
      teacher, student: the generators.
      given: the teacher's variables, where they come from a file.
      teacher_recipe: how it is trained otherwise.
      student_recipe: `(arm, teacher) -> recipe` of each of `ARMS`.
      inputs: the task.
      mesh: where to train.
      conditional: whether the generators take labels beside the latents.
    """

    source: kd_data.Source
    teacher: Network
    student: Network
    given: Teacher | None
    teacher_recipe: Callable[[], harness.Recipe]
    student_recipe: Callable[[str, Teacher], harness.Recipe]
    inputs: MakeInputs
    mesh: Mesh
    conditional: bool


REGIME = "all"
"""What a lesson's only regime is called."""


def teach(config: ConfigDict, lesson: Lesson, workdir: Path, title: str) -> None:
    """Trains everything that is not trained yet, measures it, and writes the report.

    Args:
      config: the configuration.
      lesson: what to do.
      workdir: the run's folder.
      title: the report's.
    """
    judge = make_judge(config, lesson.source, lesson.conditional)
    trained: dict[str, list[Variables]] = {}
    networks = {"teacher": lesson.teacher}

    def run(name: str, seed: int, made: harness.Recipe) -> Teacher:
        def quality(variables: Variables) -> Mapping[str, float]:
            return judge.quality(networks[name])(disconnect(variables))

        directory = workdir / f"seed{seed}" / name
        batches = dealt(config, lesson.source, seed)
        return train(config, directory, made, batches, quality, seed, lesson.mesh)

    for seed in config.seeds:
        teacher = lesson.given or run("teacher", seed, lesson.teacher_recipe())
        trained.setdefault("teacher", []).append(teacher.generator)
        for arm in ARMS:
            name = f"{REGIME}/{arm}"
            networks[name] = lesson.student
            learnt = run(name, seed, lesson.student_recipe(arm, teacher)).generator
            trained.setdefault(name, []).append(disconnect(learnt))
    write_report(
        config,
        workdir,
        title=title,
        judge=judge,
        source=lesson.source,
        networks=networks,
        trained=trained,
        images={REGIME: len(lesson.source)},
        inputs=lesson.inputs(jax.random.key(0), example_batch(config, lesson.source)).generator,
        conditional=lesson.conditional,
    )


def plan(
    config: ConfigDict, lesson: Lesson, teacher: Teacher
) -> tuple[dict[str, harness.Recipe], Batch]:
    """Every training of a lesson, for the dry run.

    Args:
      config: the configuration.
      lesson: what would be done.
      teacher: zeros in the place of its variables.
    """
    found = {} if lesson.given else {"teacher": lesson.teacher_recipe()}
    for arm in ARMS:
        found[f"{REGIME}/{arm}"] = lesson.student_recipe(arm, teacher)
    return found, example_batch(config, lesson.source)


def write_report(
    config: ConfigDict,
    workdir: Path,
    *,
    title: str,
    judge: Judge,
    source: kd_data.Source,
    networks: Mapping[str, Network],
    trained: Mapping[str, list[Variables]],
    images: Mapping[str, int],
    inputs: Sequence[Any],
    conditional: bool = True,
) -> None:
    """Measures everything that was trained, writes `report.md` and its pictures, and prints it.

    Of several processes the first one does.

    Args:
      config: the configuration.
      workdir: the run's folder.
      title: of the page.
      judge: how generators are measured.
      source: the real images.
      networks: by the trainings' names: `teacher`, `REGIME/alone`, `REGIME/distilled`.
      trained: the variables, one for each seed.
      images: how many images each regime has.
      inputs: a batch of the generators' inputs.
      conditional: whether they are made for classes that were asked for.
    """
    if not hosts.is_first():
        return
    samples = {
        name: [judge.sample(networks[name], variables) for variables in versions]
        for name, versions in trained.items()
    }
    distances = {name: [judge.distance(x) for x in xs] for name, xs in samples.items()}
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
            extractor=judge.extractor,
            samples=judge.samples,
            reference=judge.reference,
            classes_right={
                name: [judge.right(x) for x in xs] for name, xs in samples.items() if conditional
            },
            teacher=teacher_cost,
            student=student_cost,
            regimes={
                regime: report.Regime(
                    images[regime],
                    distances["teacher"],
                    distances[f"{regime}/alone"],
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
    columns = min(20, judge.samples)
    pictures.save_grid(
        workdir / figures["Samples"],
        {
            "real": _real_examples(source, columns),
            **{name: xs[0][:columns] for name, xs in samples.items()},
        },
    )
    histories = logged(config, workdir, trained)
    pictures.save_curves(
        workdir / figures["Quality during training"],
        {"Frechet distance": curves(histories, "quality/frechet")},
    )
    pictures.save_curves(
        workdir / figures["Losses"],
        {
            "generator, adversarial": curves(histories, "g/adversarial"),
            "discriminator, adversarial": curves(histories, "d/adversarial"),
            "generator, towards the teacher's image": curves(histories, "g/pixel"),
        },
    )
    print(f"\n{text}")
    print(f"report:   {workdir / 'report.md'}\nfigures:  {workdir / 'report.json'}")
    for file in figures.values():
        print(f"picture:  {workdir / file}")


def _real_examples(source: kd_data.Source, count: int) -> np.ndarray:
    """Real images of the classes that the samples' columns have."""
    labels = source.read_labels()
    classes = np.unique(labels)  # a part of the data may lack some
    chosen = [
        np.flatnonzero(labels == classes[column % len(classes)])[column // len(classes)]
        for column in range(count)
    ]
    return np.stack([source[int(i)]["image"] for i in chosen])


def logged(
    config: ConfigDict, workdir: Path, names: Iterable[str]
) -> dict[str, list[list[dict[str, Any]]]]:
    """What the trainings of these names wrote into their logs, one for each seed."""
    return {
        name: [
            read_jsonl(workdir / f"seed{seed}" / name / "metrics.jsonl") for seed in config.seeds
        ]
        for name in names
    }


def curves(histories: Mapping[str, Any], name: str) -> dict[str, tuple[list[float], list[float]]]:
    """The mean over the seeds of one metric, for each training that has it."""
    found = {}
    for training, runs in histories.items():
        rows = [[row for row in run if name in row] for run in runs]
        if rows[0]:
            values = np.mean([[row[name] for row in run] for run in rows], axis=0)
            found[training] = ([row["step"] for row in rows[0]], values.tolist())
    return found
