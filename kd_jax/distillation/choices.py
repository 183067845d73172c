"""The parts of a distillation: what the caller passes, and choices for everything else."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from kd_jax import data as kd_data
from kd_jax.core import cost
from kd_jax.core.architecture import describe
from kd_jax.core.family import Family, Interface
from kd_jax.core.files import naming, read_json
from kd_jax.core.network import CONNECTORS, Network, tap_shapes
from kd_jax.core.representation import record_repr
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import init_state
from kd_jax.core.step import make_train_step
from kd_jax.core.types import Batch, Variables
from kd_jax.distillation.answers import variables_digest
from kd_jax.distillation.examples import (
    Examples,
    check_degradation,
    image_examples,
    image_inputs,
    latent_examples,
)
from kd_jax.distillation.methods import METHODS, Parts, make_losses
from kd_jax.distillation.prune import prune, shapes_of, student_of
from kd_jax.methods import nonsaturating
from kd_jax.metrics.extractor import Perceptual, lpips
from kd_jax.model import Model, load
from kd_jax.models.families import family_named, family_of, make_discriminator
from kd_jax.models.perceptual import HEADS
from kd_jax.models.quantised import quantised, rounded_convolutions
from kd_jax.pretrained import perceptual as perceptual_weights, registry
from kd_jax.pretrained.convert import Converted
from kd_jax.tasks import answered
from kd_jax.train.training import TrainingPlan

DEFAULT_STEPS = 5000

DEFAULT_BUDGET = 1 / 10
"""The share of the teacher's multiply-accumulates that a student has by default."""

SETTINGS = "distillation.json"
"""The file of a distillation's folder with its settings."""

HELD_OUT = 10
"""Of a folder of images, one of so many is held out for the measurement."""


class Distillation(NamedTuple):
    """Everything that a distillation consists of, before it runs; `_replace` changes a part.

    Attributes:
      teacher: the teacher.
      family: the teacher's.
      student: the student's generator, without connectors.
      make_setup: `steps -> setup`: networks, losses, optimizers and task of the student's training.
      initial: initial variables by network, where they are not random.
      frozen: the variables of the frozen networks.
      examples: the inputs to train on.
      held_out: inputs to measure on, of a teacher that takes images; None for latents.
      real: real images to train on; None if the teacher's images stand for them.
      perceptual: LPIPS; None without weights.
      batch_size: the size of the global batch.
      quantise: whether the generator that is trained computes as in 8 bits.
      choices: one line for each choice that was made, and why.
      settings: the settings that a folder of this distillation is compared by, as JSON values.
    """

    teacher: Model
    family: Family
    student: Network
    make_setup: Callable[[int], Setup]
    initial: Mapping[str, Variables]
    frozen: Teacher
    examples: Examples
    held_out: Examples | None
    real: kd_data.Source | None
    perceptual: Perceptual | None
    batch_size: int
    quantise: bool
    choices: Sequence[str]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        return record_repr(self)


def make_distillation(
    teacher: Model | str | os.PathLike[str],
    *,
    part: str | None = None,
    load_options: Mapping[str, Any] = {},
    macs: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    student: Model | Network | str | None = None,
    family: Family | None = None,
    method: str = "auto",
    losses: PerNetwork | None = None,
    discriminator: Network | None = None,
    teacher_discriminator: Model | None = None,
    optimizers: PerNetwork | None = None,
    images: kd_data.Source | str | None = None,
    resize: bool = False,
    size: int | None = None,
    degradation: str = "bicubic",
    latents: int | None = None,
    perceptual: Sequence[str | os.PathLike[str]] = (),
    batch_size: int | None = None,
    learning_rate: float = 2e-3,
    ema: float = 0.999,
    quantise: bool = False,
    folder: str | os.PathLike[str] | None = None,
) -> Distillation:
    """Chooses the parts of a distillation; nothing is written, and no network runs.

    Args:
      teacher: a model, or what `kd_jax.load` reads.
      part: of a file, the name of the network; by default the averaged generator.
      load_options: of a file, arguments of the network's factory that it does not determine.
      macs: the student's budget of multiply-accumulates of an image: below 1, a share of the
        teacher's. By default a tenth of them, unless there is another budget or a student.
      parameters: or of parameters, in the same way.
      latency: or in seconds for one image on this machine.
      student: a model or a network with the teacher's interface; or the name of a family of
        `kd_jax.models.families`. By default the teacher with fewer channels.
      family: the description of the teacher's architecture; by default that of its module.
      method: a name in `kd_jax.distillation.METHODS`, or `auto`: that of the family.
      losses: or the losses of both networks.
      discriminator: the student's discriminator; by default the teacher's, with its variables, or
        else one of the family's. Not used by methods without a discriminator.
      teacher_discriminator: the teacher's discriminator; by default that of the file, if it has
        one for the same images.
      optimizers: of both networks; by default Adam with warm-up and cosine decay, which is made for
        the number of steps.
      images: real images: a source, or what `kd_jax.data.open_source` reads. A teacher of images is
        trained on them; by default on the embedded photographs. For a teacher that takes latents,
        its own samples stand for real images by default.
      resize: whether to convert images of other sizes and colours.
      size: of a teacher that takes images, the side of the outputs to train on.
      degradation: of a teacher that enlarges images, how they are made smaller: a name in
        `kd_jax.distillation.examples.DEGRADATIONS`.
      latents: the number of different latents; by default they are new in every batch.
      perceptual: files for a perceptual distance: a torchvision network, and LPIPS's weights.
      batch_size: by default 32, or 8 for a teacher that takes images.
      learning_rate: of the generator; that of the discriminator is less than half of it.
      ema: the decay of the student's average.
      quantise: whether the student computes as in 8 bits during the training, for an int8 file; see
        `kd_jax.models.quantised`. It is measured in float.
      folder: the folder of the run, if there is one. A student that was chosen by its latency there
        is chosen again, whatever the latency is now.

    Raises:
      ValueError: an argument does not fit; one line.
      OSError, CheckpointError: a file cannot be read.
    """
    _check_numbers(batch_size=batch_size, latents=latents, size=size, learning_rate=learning_rate)
    path = None if isinstance(teacher, Model) else Path(teacher).expanduser()
    if not isinstance(teacher, Model):
        with naming(f"read the teacher {teacher}"):
            teacher = load(teacher, part, options=load_options, latest=True, generator=True)
    elif part is not None or load_options:
        raise ValueError("part and load_options are those of a file, and the teacher is a model")
    interface = teacher.interface
    interface.check_drawn()
    family = family or family_of(teacher.network)
    if not interface.takes_images and len(interface.inputs) > 1 + (interface.classes > 0):
        raise ValueError(f"a teacher with {interface.describe()} is not supported")
    check_degradation(degradation, interface, family)
    name = family.method if method == "auto" else method
    if losses is None and name not in METHODS:
        raise ValueError(f"no method {name!r}; there are {', '.join(METHODS)}")
    if interface.takes_images:
        if latents is not None:
            raise ValueError(f"latents={latents}: the teacher takes images")
        teacher, examples, held_out = _open_images(
            teacher, images, size, family, resize, degradation
        )
        interface, real = teacher.interface, None
        inputs = f"{examples.name}; the teacher's answers are the targets"
    else:
        if size is not None:
            raise ValueError(f"size={size}: the teacher takes latents; its images have their size")
        examples, held_out = latent_examples(interface, latents), None
        real = None if images is None else _open_real(interface, images, resize)
        stand = "the teacher's images stand for real ones" if real is None else f"real: {real.name}"
        inputs = f"{examples.name}; {stand}"
    choices = [f"teacher: {family.name}, {interface.describe()}"]
    budget = {"macs": macs, "parameters": parameters, "latency": latency}
    if latency is not None and (earlier := _earlier_settings(folder)).get("latency") == latency:
        budget = {"macs": earlier["macs"]}
    network, initial = _choose_student(teacher, family, student, budget, choices)
    choices.append(f"inputs: {inputs}")
    batch_size = batch_size or (8 if interface.takes_images else 32)
    example = tuple(
        jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for x in teacher.inputs
    )
    adversarial = bool(losses.discriminator) if losses else METHODS[name].adversarial
    if teacher_discriminator is None and path is not None:
        teacher_discriminator = file_discriminator(path, interface)
    own = teacher_discriminator.network if teacher_discriminator else None
    if discriminator is None and adversarial:
        discriminator = own or make_discriminator(family, interface)
        if teacher_discriminator is not None:
            initial["discriminator"] = teacher_discriminator.variables
        owner = ", the teacher's" if own else ""
        choices.append(f"discriminator: {discriminator}{owner}")
    if quantise:
        count = rounded_convolutions(network, *example)
        if not count:
            raise ValueError(f"quantise: no convolution of {network} can be rounded to 8 bits")
        choices.append(f"training: {count} convolutions of the student as in 8 bits")
    extractor, distance = _open_perceptual(perceptual)
    shapes, theirs = (tap_shapes(net, *example) for net in (network, teacher.network))
    parts = Parts(
        student=network,
        teacher=teacher.network,
        teacher_variables=teacher.variables,
        inputs=example,
        taps=[
            tap
            for tap in family.taps(theirs)
            if tap in shapes and shapes[tap][:-1] == theirs[tap][:-1]
        ],
        adversarial=adversarial_losses(),
        discriminator_taps=_taps_of(discriminator, interface),
        teacher_discriminator_taps=_taps_of(own, interface),
        layers=_layers(extractor),
        heads=extractor.variables.get(HEADS) if extractor else None,
        steps=DEFAULT_STEPS,
    )
    if losses is None:
        why = f"the default of {family.name}" if method == "auto" else "as requested"
        choices.append(f"method: {name}, {METHODS[name].about} ({why})")
    if extractor is not None:
        choices.append(f"perceptual distance: {distance.name if distance else 'equal weights'}")

    def make_setup(steps: int) -> Setup:
        if losses is not None:
            trained, terms = network, losses
        else:
            trained, terms = make_losses(name, METHODS[name], parts._replace(steps=steps))
        return Setup(
            Networks(
                quantised(trained) if quantise else trained,
                discriminator if adversarial else None,
                teacher.network,
                own,
                extractor.network if extractor else None,
            ),
            terms,
            optimizers or default_optimizers(learning_rate, steps, adversarial),
            answered(conditional=interface.classes > 0),
            ema,
        )

    distillation = Distillation(
        teacher=teacher,
        family=family,
        student=network,
        make_setup=make_setup,
        initial=initial,
        frozen=Teacher(
            teacher.variables,
            teacher_discriminator.variables if teacher_discriminator else None,
            extractor.variables if extractor else None,
        ),
        examples=examples,
        held_out=held_out,
        real=real,
        perceptual=distance,
        batch_size=batch_size,
        quantise=quantise,
        choices=choices,
        settings={
            "teacher": variables_digest(teacher.variables),
            "student": describe(network, *teacher.inputs),
            "latency": latency,
            "macs": cost.multiply_accumulates(
                network, shapes_of(network, teacher.inputs), *teacher.inputs
            ),
            "inputs": [examples.name, examples.fingerprint],
            "real images": real.fingerprint if real else None,
            "method": "own" if losses else name,
            "losses": _describe_losses(make_setup(DEFAULT_STEPS).losses),
            "discriminator": _name(discriminator) if adversarial else None,
            "perceptual": distance.name if distance else None,
            "batch size": batch_size,
            "learning rate": learning_rate,
            "optimizers": "own" if optimizers else "default",
            "average": ema,
            "quantise": quantise,
        },
    )
    _trace(distillation)
    return distillation


def default_optimizers(learning_rate: float, steps: int, adversarial: bool) -> PerNetwork:
    """Adam with a warm-up of a fiftieth of the steps and a cosine decay to a tenth of the rate.

    Args:
      learning_rate: of the generator; the discriminator's is 0.4 of it.
      steps: the number of training steps.
      adversarial: whether there is a discriminator; the generator's momentum is then 0.
    """

    def adam(rate: float) -> optax.GradientTransformation:
        warmup = max(1, steps // 50)
        schedule = optax.warmup_cosine_decay_schedule(
            0.1 * rate, rate, warmup, max(steps, warmup + 1), 0.1 * rate
        )
        return optax.adam(schedule, b1=0.0 if adversarial else 0.9, b2=0.99)

    return PerNetwork(adam(learning_rate), adam(0.4 * learning_rate))


def make_plan(distillation: Distillation, steps: int, baseline: bool = False) -> TrainingPlan:
    """The training plan of the student, or of the baseline, which has the adversarial losses only.

    Args:
      distillation: the distillation.
      steps: the number of steps.
      baseline: whether to plan the baseline.
    """
    setup = distillation.make_setup(steps)
    if baseline:
        networks = setup.networks
        discriminator = networks.discriminator or make_discriminator(
            distillation.family, distillation.teacher.interface
        )
        student = distillation.student
        setup = Setup(
            networks._replace(
                generator=quantised(student) if distillation.quantise else student,
                discriminator=discriminator,
            ),
            adversarial_losses(),
            setup.optimizers,
            setup.task,
            setup.ema,
        )

    def init(key: Any, batch: Batch) -> Any:
        initial = dict(distillation.initial)
        if "generator" in initial and setup.networks.generator != distillation.student:
            inputs = setup.task(key, batch).generator
            fresh = setup.networks.generator.init(key, *inputs)
            connectors = {k: v for k, v in fresh["params"].items() if k == CONNECTORS}
            own = initial["generator"]
            initial["generator"] = {**own, "params": {**own["params"], **connectors}}
        return init_state(setup, key, batch, initial=initial)

    return TrainingPlan(
        init=init,
        step=make_train_step(setup),
        teacher=distillation.frozen,
        steps=steps,
        setup=setup,
    )


def adversarial_losses() -> PerNetwork:
    """The adversarial losses of all methods: non-saturating, with R1 at every fourth step."""
    return nonsaturating(gamma=1.0, every=4)


def _name(network: Network | None) -> str:
    """A network as its module, if it has one."""
    return repr(network) if network is not None and network.module is not None else "own"


def _describe_losses(losses: PerNetwork) -> list[dict[str, Any]]:
    """The names of the terms and their weights, as JSON values."""
    return [
        {
            name: term.weight if isinstance(term.weight, int | float) else "scheduled"
            for name, term in terms.items()
        }
        for terms in losses
    ]


def _check_numbers(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} is not a positive number")


def _earlier_settings(folder: str | os.PathLike[str] | None) -> Mapping[str, Any]:
    """The settings of the distillation in a folder; none if there is none, or it is damaged."""
    if folder is None:
        return {}
    try:
        return read_json(Path(folder).expanduser() / SETTINGS, checked=True)
    except (OSError, ValueError):  # the folder is checked when it is claimed
        return {}


def _choose_student(
    teacher: Model,
    family: Family,
    student: Model | Network | str | None,
    budget: Mapping[str, float | None],
    choices: list[str],
) -> tuple[Network, dict[str, Variables]]:
    """The student's network, and its initial variables unless they are random."""
    limits: dict[str, Any] = {name: value for name, value in budget.items() if value is not None}
    if isinstance(student, Model | Network):
        if limits:
            raise ValueError(f"{next(iter(limits))} is a budget, and the student is there already")
        network = student if isinstance(student, Network) else student.network
        variables = None if isinstance(student, Network) else student.variables
        example = variables or jax.eval_shape(network.init, jax.random.key(0), *teacher.inputs)
        output = jax.eval_shape(
            lambda v, *x: network.apply(v, *x)[0], example, *teacher.inputs
        ).shape[1:]
        if output != teacher.interface.output:
            raise ValueError(
                f"the student generates {output}, and the teacher {teacher.interface.output}"
            )
        choices.append("student: as passed")
        return network, {} if variables is None else {"generator": variables}
    limits = limits or {"macs": DEFAULT_BUDGET}
    wish = ", ".join(f"{name} {value:.4g}" for name, value in limits.items())
    if isinstance(student, str):
        chosen = family_named(student)
        network = student_of(chosen, teacher, **limits)
        choices.append(f"student: {chosen.name}, {network}, the widest within {wish}")
        return network, {}
    pruned = prune(teacher, family=family, **limits)
    choices.append(
        f"student: {pruned.network}, the teacher's channels of the largest weights within {wish}"
    )
    return pruned.network, {"generator": pruned.variables}


def _open_images(
    teacher: Model,
    images: kd_data.Source | str | None,
    size: int | None,
    family: Family,
    resize: bool,
    degradation: str,
) -> tuple[Model, Examples, Examples]:
    """The teacher with inputs of a size, and the images to train on and to measure on."""
    interface = teacher.interface
    channels = image_inputs(interface, family).channels
    size = size or family.patch
    if size < 1 or size % interface.scale:
        raise ValueError(
            f"size={size} is not a multiple of the generator's scale {interface.scale}"
        )
    if images is None:
        train, test = (
            kd_data.open_source("photos", split, size, channels, resize=True)
            for split in ("train", "test")
        )
    else:
        source = images
        if isinstance(source, str):
            patches = source.startswith("folder:") and not resize
            source = kd_data.open_source(
                source, "train", size, channels, resize=resize, in_patches=patches
            )
        if source.image_shape != (size, size, channels):
            raise ValueError(
                f"{source.name} has images {source.image_shape}; size={size} of this teacher needs "
                f"{(size, size, channels)}"
            )
        if len(source) < 2 * HELD_OUT:
            raise ValueError(
                f"{source.name} has {len(source)} images; at least {2 * HELD_OUT} are needed, of "
                f"which one in {HELD_OUT} is held out"
            )
        train, test = kd_data.hold_out(source, HELD_OUT)
    side = size // interface.scale
    inputs = tuple(
        jax.ShapeDtypeStruct((1, side, side, x.shape[3]), x.dtype) for x in interface.inputs
    )
    resized = teacher._replace(inputs=inputs)
    try:
        fits = resized.interface.output == (size, size, interface.channels)
    except ValueError as error:
        raise ValueError(f"size={size} does not fit the teacher: {error}") from None
    if not fits:
        raise ValueError(f"size={size}: the teacher generates {resized.interface.output}")
    return (
        resized,
        image_examples(train, resized.interface, family, degradation),
        image_examples(test, resized.interface, family, degradation),
    )


def _open_real(interface: Interface, images: kd_data.Source | str, resize: bool) -> kd_data.Source:
    """The real images for a teacher that takes latents."""
    source = images
    if isinstance(source, str):
        source = kd_data.open_source(
            source, "train", interface.size, interface.channels, resize=resize
        )
    if source.image_shape != interface.output:
        raise ValueError(
            f"{source.name} has images {source.image_shape}, and the teacher generates "
            f"{interface.output}; resize=True (of commands --resize) converts them"
        )
    if interface.classes and source.num_classes != interface.classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes, and the teacher {interface.classes}"
        )
    return source


def file_discriminator(path: str | os.PathLike[str], interface: Interface) -> Model | None:
    """The discriminator in a weight file; None unless it has exactly one for such images.

    Args:
      path: a file, or a folder, which has none.
      interface: of the generator whose images it scores.
    """
    if not Path(path).is_file():
        return None
    discriminators = []
    for name, part in registry.parts(path).items():
        if not part.generates and not part.purpose and "discriminator" in part.kind:
            model = load(path, name)
            labels = len(model.inputs) > 1
            if model.inputs[0].shape[1:] == interface.output and labels == bool(interface.classes):
                discriminators.append(model)
    return discriminators[0] if len(discriminators) == 1 else None


def _open_perceptual(
    files: Sequence[str | os.PathLike[str]],
) -> tuple[Converted | None, Perceptual | None]:
    """The network of a perceptual distance, and LPIPS if its weights are there."""
    if not files:
        return None, None
    if len(files) > 2:
        raise ValueError(f"perceptual takes one file or two, not {len(files)}")
    with naming(f"read the perceptual weights {', '.join(map(str, files))}"):
        converted = perceptual_weights.load(*map(Path, files))
        return converted, lpips(*files) if HEADS in converted.variables else None


def _layers(extractor: Converted | None) -> tuple[str, ...]:
    if extractor is None:
        return ()
    return tuple(tap_shapes(extractor.network, *extractor.inputs))


def _discriminator_inputs(interface: Interface, count: int = 2) -> list[jax.ShapeDtypeStruct]:
    image = jax.ShapeDtypeStruct((count, *interface.output), "float32")
    return [image, *([jax.ShapeDtypeStruct((count,), "int32")] if interface.classes else [])]


def _taps_of(discriminator: Network | None, interface: Interface) -> list[str]:
    if discriminator is None:
        return []
    return list(tap_shapes(discriminator, *_discriminator_inputs(interface)))


def example_batch(distillation: Distillation) -> Batch:
    """The shapes of a batch."""
    count, interface = distillation.batch_size, distillation.teacher.interface
    inputs = tuple(jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for x in interface.inputs)
    answer = jax.ShapeDtypeStruct((count, *interface.output), "float32")
    return {"inputs": inputs, "answer": answer}


def _trace(distillation: Distillation) -> None:
    """Raises a ValueError if the parts of a distillation do not fit."""
    batch = example_batch(distillation)
    plan = make_plan(distillation, DEFAULT_STEPS)
    state = jax.eval_shape(plan.init, jax.random.key(0), batch)
    jax.eval_shape(plan.step, state, plan.teacher, batch)
