"""What experiments on images with a right answer share: super-resolution, inpainting, translation.

A teacher learns the task; a much cheaper student learns it twice, with the same steps and seeds:
alone, from the right answers, and distilled, from those and the teacher's. All are asked the same
of photographs that none has seen, and measured beside a classical method.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from numpy.typing import NDArray

from experiments import comparison, harness, report
from kd_jax import data as kd_data
from kd_jax import losses, recipes, tasks
from kd_jax.evaluate import extractor, frechet, paired, pictures
from kd_jax.evaluate.summary import Summary, summarize
from kd_jax.models import translation
from kd_jax.models.resnet import upsample
from kd_jax.network import Network, connect_to, disconnect
from kd_jax.objective import Inputs, MakeInputs, Term
from kd_jax.state import Networks, Pair, Teacher
from kd_jax.types import Array, Batch, Variables

TRAININGS = ("teacher", *comparison.ARMS)

_WINDOW = 11

FIGURES = {  # name: (its unit, whether more is better, digits)
    "psnr": ("PSNR, dB", True, 2),
    "ssim": ("SSIM", True, 4),
    "frechet": ("Frechet distance", False, 2),
}


def settings() -> ConfigDict:
    """What all these experiments have; each adds its networks to `teacher` and `student`."""
    return ConfigDict(
        {
            "seeds": (0, 1, 2),
            "batch_size": 16,
            "dtype": "float32",  # or bfloat16: what networks compute in; parameters are float32
            "data": {
                "source": "photos",  # or folder:PATH, tfds:NAME
                "test": "",  # where the unseen images are; by default the source's split `test`
                "size": 64,
                "channels": 3,
                "resize": False,  # make images of other sizes fit
                "turn": True,  # show them mirrored and turned by quarters
            },
            "teacher": {"steps": 1500, "rate": 1e-3},
            "student": {"steps": 1500, "rate": 2e-3},
            "distilled": {
                "truth": 1.0,  # weight of the L1 to the right answer
                "response": 1.0,  # to the teacher's
                "feature": 0.0,  # of the connected features' L2
            },
            "adversarial": 0.0,  # weight of a least-squares game with a PatchGAN; 0 for none
            "discriminator": {"width": 16, "layers": 2, "rate": 2e-4},
            "ema": 0.999,
            "final_rate": 0.01,  # the cosine schedule's end, as a part of the learning rate
            "health": False,
            "log_every": 50,
            "evaluate_every": 500,
            "checkpoint_every": 500,
            "evaluate": {"images": 0, "seed": 1, "examples": 8},  # 0: all there are
            "mesh": {"data": 1, "model": 1},
        }
    )


def tiny(config: ConfigDict) -> ConfigDict:
    """For tests: seconds, and nothing learnt."""
    config.seeds = (0,)
    config.batch_size = 4
    config.data.size = 16
    config.teacher.steps = config.student.steps = 4
    config.log_every = config.evaluate_every = config.checkpoint_every = 2
    config.evaluate.images = 12
    return config


class Lesson(NamedTuple):
    """One task, and who is to learn it.

    Attributes:
      train, test: the images.
      inputs: the task as it is trained.
      exam: the task as it is asked for in the end.
      teacher, student: the generators.
      discriminator: of all trainings; None where there is no game.
      taps: names of features, or `{student's: teacher's}`, that can be matched.
      baseline: the classical method's name.
      restore: it: `(what the generator is given, training images) -> [N, H, W, C]`.
      shown: what the generator is given, as images `[N, H, W, C]` for a picture.
      mesh: where to train.
    """

    train: kd_data.Source
    test: kd_data.Source
    inputs: MakeInputs
    exam: MakeInputs
    teacher: Network
    student: Network
    discriminator: Network | None
    taps: Sequence[str] | Mapping[str, str]
    baseline: str
    restore: Callable[[Inputs, kd_data.Source], Any]
    shown: Callable[[Inputs], Any]
    mesh: Mesh


def open_images(config: ConfigDict) -> tuple[kd_data.Source, kd_data.Source]:
    """The images to learn from and those to be examined on.

    Raises:
      ValueError, FileNotFoundError: one line.
    """
    comparison.check_schedule(config)
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.dtype={config.dtype!r} is neither float32 nor bfloat16")
    if config.data.source.startswith("folder:") and not config.data.test:
        raise ValueError(
            "a folder has no images set aside: --config.data.test=folder:PATH is needed too"
        )
    if config.data.size < _WINDOW:
        raise ValueError(
            f"config.data.size={config.data.size} is below {_WINDOW}, the side of SSIM's window"
        )
    if config.evaluate.images < 0 or config.evaluate.examples < 1:
        raise ValueError(
            f"config.evaluate.images={config.evaluate.images} and examples="
            f"{config.evaluate.examples}: neither may be negative, nor the latter 0"
        )
    where = harness.cache_dir() / "tfds"
    other = config.data.test or config.data.source
    split = "train" if other.startswith("folder:") else "test"
    shape = (config.data.size, config.data.channels, where)
    train, test = (
        kd_data.open_source(spec, part, *shape, resize=config.data.resize)
        for spec, part in ((config.data.source, "train"), (other, split))
    )
    if len(train) < config.batch_size:
        raise ValueError(f"{train.name} has {len(train)} images, fewer than one batch")
    return train, test


def lesson(
    config: ConfigDict,
    task: MakeInputs,
    teacher: Network,
    student: Network,
    taps: Sequence[str] | Mapping[str, str],
    *,
    baseline: str,
    restore: Callable[[Inputs, kd_data.Source], Any],
    shown: Callable[[Inputs], Any],
) -> Lesson:
    """Opens the images and puts everything together; see `Lesson`.

    Raises:
      ValueError, FileNotFoundError: one line.
    """
    train, test = open_images(config)
    made = Lesson(
        train=train,
        test=test,
        inputs=tasks.turned(task) if config.data.turn else task,
        exam=task,
        teacher=teacher,
        student=student,
        discriminator=discriminator(config),
        taps=taps,
        baseline=baseline,
        restore=restore,
        shown=shown,
        mesh=harness.mesh(config.mesh, config.batch_size),
    )
    batch = comparison.example_batch(config, train)
    example = jax.eval_shape(made.inputs, jax.random.key(0), batch)
    for name, network in (("teacher", teacher), ("student", student)):
        made_of = jax.eval_shape(
            lambda *x, network=network: network.apply(network.init(jax.random.key(0), *x), *x)[0],
            *example.generator,
        )
        if made_of.shape != example.real.shape:
            raise ValueError(
                f"the {name} makes images {made_of.shape[1:]}, {example.real.shape[1:]} are right"
            )
    if made.discriminator is not None:
        judge, key = made.discriminator, jax.random.key(0)
        jax.eval_shape(judge.init, key, example.real, *example.condition)
    return made


def discriminator(config: ConfigDict) -> Network | None:
    """The PatchGAN of Isola et al. 2017, which sees what the task lets it see; or none.

    Raises:
      ValueError: a setting does not fit.
    """
    if config.adversarial < 0:
        raise ValueError(f"config.adversarial={config.adversarial} is negative")
    if not config.adversarial:
        return None
    sizes = config.discriminator
    return translation.patch_discriminator(sizes.width, layers=sizes.layers, dtype=dtype(config))


def recipe(
    config: ConfigDict, given: Lesson, name: str, teacher: Variables | None = None
) -> harness.Recipe:
    """One of `TRAININGS`: the L1 to what is right and, distilled, to the teacher's."""
    sizes = config.teacher if name == "teacher" else config.student
    if name == "distilled":
        nets, terms = _distilled(config, given)
    else:
        nets = Networks(given.teacher if name == "teacher" else given.student)
        terms = {"truth": Term(lambda f: losses.response.l1(f.fake, f.real))}
    judged: dict[str, Term] = {}
    if given.discriminator is not None:
        nets = nets._replace(discriminator=given.discriminator)
        game = recipes.least_squares()
        terms["adversarial"] = game.generator["adversarial"]._replace(weight=config.adversarial)
        judged = dict(game.discriminator)
    rates = (sizes.rate, config.discriminator.rate)
    schedules = [
        optax.cosine_decay_schedule(rate, sizes.steps, config.final_rate) for rate in rates
    ]
    # Isola et al. 2017 have b1 = 0.5 in the game.
    first = 0.9 if given.discriminator is None else 0.5
    return comparison.recipe(
        config,
        nets,
        Pair(terms, judged),
        Pair(*(optax.adam(schedule, b1=first) for schedule in schedules)),
        given.inputs,
        sizes.steps,
        None if teacher is None else Teacher(teacher),
    )


def _distilled(config: ConfigDict, given: Lesson) -> tuple[Networks, dict[str, Term]]:
    weights = config.distilled
    terms = {
        "truth": Term(lambda f: losses.response.l1(f.fake, f.real), weights.truth),
        "response": Term(lambda f: losses.response.l1(f.fake, f.teacher), weights.response),
        "feature": Term(
            recipes.on_taps(losses.feature.l2, given.taps, connect=True), weights.feature
        ),
    }
    terms = {name: term for name, term in terms.items() if term.weight}
    student = given.student
    if "feature" in terms:
        batch = comparison.example_batch(config, given.train)
        example = jax.eval_shape(given.inputs, jax.random.key(0), batch).generator
        student = connect_to(student, given.teacher, given.taps, *example)
    return Networks(student, teacher=given.teacher), terms


class Exam(NamedTuple):
    """What everybody is asked, and how the answers are measured.

    Attributes:
      inputs: everything asked, `[N, ...]`.
      mark: `images -> figures`.
      extractor: in whose features the Frechet distance is; None where there is none.
    """

    inputs: Inputs
    mark: Callable[[NDArray[np.float32]], dict[str, float]]
    extractor: str | None


def make_exam(config: ConfigDict, given: Lesson) -> Exam:
    """Draws what is asked of the unseen images, and finds the classifier."""
    count = min(config.evaluate.images or len(given.test), len(given.test))
    # Of an ordered set, some of everything.
    chosen = np.linspace(0, len(given.test) - 1, count).astype(int)
    examples = [given.test[int(i)] for i in chosen]
    batch = {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples]),
    }
    inputs = jax.jit(given.exam)(jax.random.key(config.evaluate.seed), batch)
    right = batch["image"]
    name, reference = None, None
    if given.train.num_classes > 1:
        real = kd_data.arrays(given.train)
        features = extractor.classifier_extractor(
            real["image"],
            real["label"],
            name=config.data.source.partition(":")[0],
            classes=given.train.num_classes,
            cache=harness.cache_dir(),
            steps=300,  # of large patches; it is only to see textures
            batch=32,
        )
        name, reference = features.name, frechet.moments(features.features(right))

    def mark(images: NDArray[np.float32]) -> dict[str, float]:
        images = np.clip(images, -1, 1)
        figures = {
            "psnr": float(np.minimum(paired.psnr(images, right), 100.0).mean()),
            "ssim": float(paired.ssim(images, right, window=_WINDOW).mean()),
        }
        if reference is not None:
            found = frechet.moments(features.features(images))
            figures["frechet"] = frechet.frechet_distance(found, reference)
        return figures

    return Exam(inputs, mark, name)


def answers(network: Network, exam: Exam) -> Callable[[Variables], NDArray[np.float32]]:
    """`variables -> [N, H, W, C]`: what a network makes of everything asked."""
    apply = jax.jit(lambda v, *x: network.apply(v, *x)[0])
    return lambda variables: comparison.in_parts(
        partial(apply, variables), exam.inputs.generator, at_most=32
    )


def main(config: ConfigDict, given: Lesson, workdir: Path, title: str) -> None:
    """Trains everything that is not trained yet, measures it, and writes the report."""
    exam = make_exam(config, given)
    networks = {"teacher": given.teacher, "alone": given.student, "distilled": given.student}
    trained: dict[str, list[Variables]] = {name: [] for name in TRAININGS}
    ask = {name: answers(network, exam) for name, network in networks.items()}

    def quality(variables: Variables, name: str) -> Mapping[str, float]:
        images = np.clip(ask[name](disconnect(variables)), -1, 1)
        right = np.asarray(exam.inputs.real)
        return {
            "squared_error": float(((images - right) ** 2).mean()),
            "psnr": float(np.minimum(paired.psnr(images, right), 100.0).mean()),
        }

    for seed in config.seeds:
        teacher = None
        for name in TRAININGS:
            variables = comparison.train(
                config,
                workdir / f"seed{seed}" / name,
                recipe(config, given, name, teacher if name == "distilled" else None),
                given.train,
                partial(quality, name=name),
                seed,
                given.mesh,
            ).generator
            trained[name].append(disconnect(variables))
            teacher = variables if name == "teacher" else teacher
    found = {name: [ask[name](v) for v in versions] for name, versions in trained.items()}
    baseline = np.asarray(given.restore(exam.inputs, given.train), np.float32)
    figures = {given.baseline: [exam.mark(baseline)]}
    figures |= {name: [exam.mark(images) for images in found[name]] for name in TRAININGS}
    examples = np.linspace(0, len(baseline) - 1, min(config.evaluate.examples, len(baseline)))
    chosen = examples.astype(int)
    shown = {
        "input": np.asarray(given.shown(exam.inputs)),
        given.baseline: baseline,
        **{name: images[0] for name, images in found.items()},
        "truth": np.asarray(exam.inputs.real),
    }
    pictures.save_grid(
        workdir / "examples.png", {name: images[chosen] for name, images in shown.items()}
    )
    histories = comparison.logged(config, workdir, TRAININGS)
    pictures.save_curves(
        workdir / "quality.png", {"PSNR, dB": comparison.curves(histories, "quality/psnr")}
    )
    batch = [x[: config.batch_size] for x in exam.inputs.generator]
    costs = {
        name: report.measure_cost(networks[arm], trained[arm][0], batch)
        for name, arm in (("teacher", "teacher"), ("student", "alone"))
    }
    text = page(title, config, exam, figures, costs)
    (workdir / "report.md").write_text(text, encoding="utf-8")
    everything = {
        "title": title,
        "command": harness.command_line(),
        "figures": figures,
        "images": len(baseline),
        "extractor": exam.extractor,
        "costs": {name: report.plain(cost) for name, cost in costs.items()},
        "configuration": config.to_dict(),
        "environment": harness.environment(),
    }
    (workdir / "report.json").write_text(
        json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    print(f"\n{text}")
    for file in ("report.md", "report.json", "examples.png", "quality.png"):
        print(f"written:  {workdir / file}")


def page(
    title: str,
    config: ConfigDict,
    exam: Exam,
    figures: Mapping[str, Sequence[Mapping[str, float]]],
    costs: Mapping[str, report.Cost],
) -> str:
    """The report as Markdown; the first of the figures are the classical method's."""
    baseline, seeds = next(iter(figures)), len(config.seeds)
    large, small = costs["teacher"], costs["student"]
    known = [name for name in FIGURES if name in figures[baseline][0]]
    lines = [
        f"# {title}",
        "",
        f"The student needs **{large.multiply_accumulates / small.multiply_accumulates:.0f} times "
        f"fewer multiply-accumulates** than its teacher and has "
        f"{large.parameters / small.parameters:.0f} times fewer parameters.",
        "",
        *(
            _verdict(better, worse, figures)
            for better, worse in (
                ("teacher", baseline),
                ("distilled", "alone"),
                ("distilled", baseline),
            )
        ),
        "",
        "## Quality",
        "",
        f"{len(exam.inputs.generator[0]):,} images that no network has seen, "
        + (f"mean ± standard deviation over {seeds} seeds." if seeds > 1 else "one seed."),
        "PSNR and SSIM are means over images, of all channels, without a border cut off.",
        "",
        f"| network | {' | '.join(FIGURES[name][0] for name in known)} |",
        "|---" + "|---:" * len(known) + "|",
    ]
    for name, versions in figures.items():
        cells = [
            report.spread(summarize([v[key] for v in versions]), FIGURES[key][2]) for key in known
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if exam.extractor:
        lines += [
            "",
            f"Frechet distance: to the right answers, in the features of `{exam.extractor}` (a "
            "small classifier trained on this data; comparable only with itself, and not an FID).",
        ]
    lines += ["", *report.cost_section(costs, harness.environment()["device"])]
    for caption, file in (("Examples", "examples.png"), ("During training", "quality.png")):
        lines += ["", f"## {caption}", "", f"![{caption}]({file})"]
    lines += ["", "## How to get this", "", "```", harness.command_line(), "```", ""]
    return "\n".join(
        [*lines, ", ".join(f"{k} {v}" for k, v in harness.environment().items()) + ".", ""]
    )


def _verdict(better: str, worse: str, figures: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """One line: is it better in PSNR, by how much, and in every seed?"""
    ours = [v["psnr"] for v in figures[better]]
    theirs = [v["psnr"] for v in figures[worse]]
    theirs = theirs * (len(ours) if len(theirs) == 1 else 1)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = summarize(differences)
    word = "beats" if found.mean > 0 else "does not beat"
    wins = sum(d > 0 for d in differences)
    return (
        f"* {better} **{word}** {worse}: {found.mean:+.2f} dB{_interval(found)}, better in "
        f"{wins} of {len(differences)} seeds."
    )


def _interval(found: Summary) -> str:
    if math.isnan(found.low):
        return ""
    return f" (95% confidence interval {found.low:+.2f} to {found.high:+.2f})"


def plan(config: ConfigDict, given: Lesson) -> tuple[dict[str, harness.Recipe], Batch]:
    """Every training, with shapes in the place of the teacher's variables, and a batch."""
    batch = comparison.example_batch(config, given.train)
    example = jax.eval_shape(given.inputs, jax.random.key(0), batch).generator
    teacher = jax.eval_shape(given.teacher.init, jax.random.key(0), *example)
    made = {
        name: recipe(config, given, name, teacher if name == "distilled" else None)
        for name in TRAININGS
    }
    return made, batch


def dtype(config: ConfigDict) -> Any:
    """What networks compute in."""
    return jnp.dtype(config.dtype)


def as_large(images: Array, size: int) -> Array:
    """Images enlarged to another height, pixel by pixel, to be shown beside others of it."""
    return upsample(images, size // images.shape[1])
