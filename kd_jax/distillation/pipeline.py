"""From a teacher to a trained, measured student: `kd_jax.distill`."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from kd_jax import data as kd_data
from kd_jax.core.architecture import describe
from kd_jax.core.checks import UsageError
from kd_jax.core.files import claim_folder, naming, read_json, write_json
from kd_jax.core.mesh import check_batch_size, compile_step, make_mesh, place, place_batch
from kd_jax.core.network import disconnect
from kd_jax.core.representation import record_repr
from kd_jax.core.types import Variables
from kd_jax.distillation import report
from kd_jax.distillation.answers import keep_answers
from kd_jax.distillation.choices import (
    DEFAULT_STEPS,
    SETTINGS,
    Distillation,
    make_distillation,
    make_plan,
)
from kd_jax.distillation.examples import AnsweredBatches, teacher_answers
from kd_jax.distillation.measurement import (
    Measurement,
    Sampler,
    make_measurement,
    make_sampler,
    open_features,
)
from kd_jax.model import Model
from kd_jax.report.columns import Figure
from kd_jax.train import checkpoint, distributed
from kd_jax.train.shutdown import ShutdownRequested, ShutdownSignal
from kd_jax.train.training import Options, Schedule, TrainingPlan, train

STEPS = "steps.json"
"""The file of a distillation's folder with the steps that fit its minutes."""

EVALUATIONS, LEAST_STEPS = 10, 50
"""Evaluations during a training, and the least number of steps from one to the next."""

VALIDATION = 256
"""Samples of an evaluation during a training."""

TIMED = 40
"""Steps that are timed for a number of minutes."""

OVERTIME = 1.1
"""A training for a number of minutes ends after so many times as many, however slow it is.

At a resume, after so many times the minutes of the steps that are left.
"""

STUDENT, BASELINE = "student", "baseline"


class Result(NamedTuple):
    """The result of a distillation.

    Attributes:
      student: the averaged student, also in the folder `student`.
      figures: the figures of teacher, student and baseline, by network and name.
      folder: the folder, with `report.html`, `report.md` and `report.json`.
      steps: the number of steps of the student.
    """

    student: Model
    figures: Mapping[str, Mapping[str, Figure]]
    folder: Path
    steps: int

    def __repr__(self) -> str:
        return record_repr(self)


def distill(
    teacher: Model | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    baseline: bool = False,
    answers: bool = False,
    samples: int = 1024,
    features: str | None = None,
    seed: int = 0,
    command: str = "",
    **options: Any,
) -> Result:
    """Trains a small student of a teacher, measures it, and writes it with a report.

        result = kd_jax.distill("weights.tar", "runs/small", macs=1 / 25, minutes=60)
        images, _, _ = result.student.network.apply(result.student.variables, latents)

    The folder receives `student/`, a checkpoint that `kd_jax.load` reads; `report.html`,
    `report.md` and `report.json`; `training/`, with checkpoints, metrics and sample grids. The same
    call resumes an interrupted distillation, to the same bits.

    Args:
      teacher: a model, or what `kd_jax.load` reads.
      out: the folder: new, or that of the same distillation.
      steps: the number of training steps; by default `DEFAULT_STEPS`, unless there are `minutes`.
      minutes: or the time of the training, evaluations included; steps are timed before, and the
        learning rate decays over those that fit. If the machine becomes slower, the training ends
        early.
      baseline: whether to train the same student as long without the teacher's pairing, too: as a
        GAN on the teacher's images.
      answers: whether to compute the teacher's answers to all inputs once, and keep them in
        `answers/`; of a teacher that takes latents, with `latents=N`.
      samples: the number of samples, or of held-out images, that networks are measured by.
      features: a file of weights for the distances, of the FID's Inception or of torchvision's
        VGG16, AlexNet or SqueezeNet; `none` for no distances; by default a network with random
        weights. Only those of the Inception are FIDs.
      seed: of the initial weights, the order of the examples and all noise.
      command: the command that started it, for the report.
      **options: those of `make_distillation`.

    Raises:
      ValueError, UsageError: an argument does not fit; nothing is written then.
      CheckpointError: a checkpoint does not fit or cannot be written.
      ShutdownRequested: a signal requested to stop; the training is saved.
    """
    distillation = make_distillation(teacher, folder=out, **options)
    return run(
        distillation,
        out,
        steps=steps,
        minutes=minutes,
        baseline=baseline,
        answers=answers,
        samples=samples,
        features=features,
        seed=seed,
        command=command,
    )


def run(
    distillation: Distillation,
    out: str | os.PathLike[str],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    baseline: bool = False,
    answers: bool = False,
    samples: int = 1024,
    features: str | None = None,
    seed: int = 0,
    command: str = "",
) -> Result:
    """Trains, measures and reports a distillation from `make_distillation`.

    Further arguments and errors are those of `distill`.
    """
    _check_numbers(steps, minutes, samples, seed)
    if answers and distillation.examples.total is None:
        raise ValueError(
            f"answers: {distillation.examples.name} have no end; latents=N makes a set of N"
        )
    check_batch_size(distillation.batch_size, make_mesh())
    folder, teacher = Path(out).expanduser(), distillation.teacher
    extractor = open_features(teacher.interface, features)
    settings = {
        **distillation.settings,
        "seed": seed,
        "samples": samples,
        "features": extractor.name if extractor else None,
        "steps": steps or (None if minutes else DEFAULT_STEPS),
        "minutes": minutes,
        "baseline": baseline,
    }
    distributed.run_on_primary(
        lambda: claim_folder(folder, SETTINGS, settings, "a distillation"), UsageError
    )
    answer: Callable[[Any], Any] = teacher_answers(teacher)
    if answers:
        answer = keep_answers(folder / "answers", teacher, distillation.examples, answer)
    _say("measuring the teacher")
    measurement = make_measurement(
        teacher,
        distillation.held_out,
        samples,
        extractor=extractor,
        perceptual=distillation.perceptual,
        real=distillation.real,
    )
    sample = make_sampler(teacher, distillation.student)
    observer = _Observer(measurement, sample)

    def batches(seed: int) -> AnsweredBatches:
        real = None
        if distillation.real is not None:
            real = kd_data.batches(distillation.real, distillation.batch_size, seed)
        return AnsweredBatches(
            distillation.examples,
            distillation.batch_size,
            seed,
            answer,
            stored=answers,
            real=real,
        )

    if minutes:
        count = _steps_for(minutes, folder, distillation, batches(seed), observer, seed)
    else:
        count = steps or DEFAULT_STEPS
    variables, taken = {}, {}
    for name in (STUDENT, BASELINE) if baseline else (STUDENT,):
        variables[name], taken[name] = _train(
            folder / ("training" if name == STUDENT else name),
            make_plan(distillation, count, name == BASELINE),
            batches(seed),
            seed,
            settings,
            observer,
            minutes or 0.0,
            name,
        )
    student = teacher._replace(
        network=distillation.student, variables=variables[STUDENT], info={"teacher": teacher.info}
    )
    if not distributed.is_primary():
        return Result(student, {}, folder, taken[STUDENT])
    with naming(f"write to {folder}"):
        _write_student(folder / "student", student, settings)
        figures = report.write(
            folder,
            distillation,
            measurement,
            {name: (distillation.student, own) for name, own in variables.items()},
            taken,
            planned=count,
            command=command,
            settings=settings,
        )
    return Result(student, figures, folder, taken[STUDENT])


class _Observer:
    """The figures and the pictures of a training on its way."""

    def __init__(self, measurement: Measurement, sample: Sampler):
        self.measurement, self._sample = measurement, sample
        self._inputs = tuple(x[:VALIDATION] for x in measurement.inputs)

    def quality(self, variables: Variables) -> Mapping[str, float]:
        images = self._sample(disconnect(variables), self._inputs)
        figures = self.measurement.figures(images, few=True)
        return {name: figure.value for name, figure in figures.items()}

    def draw(self, variables: Variables, file: Path) -> None:
        shown = tuple(x[: report.SHOWN] for x in self.measurement.inputs)
        report.draw(file, self.measurement, {STUDENT: self._sample(disconnect(variables), shown)})


def _train(
    folder: Path,
    plan: TrainingPlan,
    batches: AnsweredBatches,
    seed: int,
    settings: Mapping[str, Any],
    observer: _Observer,
    minutes: float,
    name: str,
) -> tuple[Variables, int]:
    """The averaged generator after a training, and the steps taken."""
    checkpoints = folder / "checkpoints"
    left = 1 - _latest_step(checkpoints) / plan.steps
    stop = ShutdownSignal(OVERTIME * minutes * left)
    log_every = max(1, plan.steps // 100)
    every = min(plan.steps, max(plan.steps // EVALUATIONS, LEAST_STEPS)) // log_every * log_every
    try:
        with stop:
            trained = train(
                folder,
                plan,
                batches,
                seed=seed,
                configuration=settings,
                quality=observer.quality,
                draw=observer.draw,
                schedule=Schedule(log_every, every, every),
                mesh=make_mesh(),
                options=Options(),
                stop=stop,
                name=name,
            )
        return disconnect(trained.generator), plan.steps
    except ShutdownRequested as request:
        if not str(request).endswith("minutes are over"):
            raise
        _say(f"{name}: {request}; the student is measured as it is")
    variables, _ = checkpoint.load_generator(checkpoints)
    return disconnect(variables), _latest_step(checkpoints)


def _latest_step(checkpoints: Path) -> int:
    """The step of the latest checkpoint; 0 without one."""
    folders = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return max((int(x.name) for x in folders if x.name.isdecimal()), default=0)


class Timing(NamedTuple):
    """The cost of a training step.

    Attributes:
      seconds: the mean time, with the teacher's answers.
      compilation: the time of the compilation, which another number of steps needs again.
      flops: floating-point operations of the step itself.
      memory: bytes of its state, its batch and its temporaries.
    """

    seconds: float
    compilation: float
    flops: float
    memory: int


def time_step(
    distillation: Distillation,
    plan: TrainingPlan,
    seed: int = 0,
    batches: AnsweredBatches | None = None,
) -> Timing:
    """Compiles the step, and takes some steps of a training that is then forgotten.

    Args:
      distillation: the distillation.
      plan: its plan.
      seed: of the training.
      batches: the batches; by default with answers that are computed now.
    """
    if batches is None:
        answer = teacher_answers(distillation.teacher)
        batches = AnsweredBatches(distillation.examples, distillation.batch_size, seed, answer)
    mesh = make_mesh()
    batch = place_batch(next(batches), mesh)
    state = jax.jit(plan.init)(jax.random.key(seed), batch)
    frozen = place(plan.teacher, mesh)
    began = time.perf_counter()
    compiled = compile_step(plan.step, mesh).lower(state, frozen, batch).compile()
    compilation = time.perf_counter() - began
    sizes: Any = compiled.memory_analysis()
    began = time.perf_counter()
    taken = 0
    # A regularisation that is not due in every step makes some steps slower: the mean counts.
    while taken < TIMED and (taken < 4 or time.perf_counter() - began < 30):
        state, metrics = compiled(state, frozen, place_batch(next(batches), mesh))
        jax.block_until_ready(metrics)
        taken += 1
    return Timing(
        (time.perf_counter() - began) / taken,
        compilation,
        float(compiled.cost_analysis()["flops"]),
        int(
            sizes.argument_size_in_bytes
            + sizes.output_size_in_bytes
            + sizes.temp_size_in_bytes
            - sizes.alias_size_in_bytes
        ),
    )


def _steps_for(
    minutes: float,
    folder: Path,
    distillation: Distillation,
    batches: AnsweredBatches,
    observer: _Observer,
    seed: int,
) -> int:
    """The number of steps that fit the minutes, measured once and kept in the folder."""
    path = folder / STEPS
    if path.exists():
        return int(read_json(path, checked=True)["steps"])
    plan = make_plan(distillation, DEFAULT_STEPS)
    variables = jax.jit(plan.init)(jax.random.key(seed), next(batches)).ema
    # The training draws the same picture, but after the timing, which takes longer.
    first = folder / "training" / "samples" / "000000.png"
    if distributed.is_primary():
        first.parent.mkdir(parents=True, exist_ok=True)
        observer.draw(variables, first)
    _say(f"drawn: {first}\ntiming the step")
    timing = time_step(distillation, plan, seed, batches)
    each = timing.seconds
    observer.quality(variables)  # compiles
    start = time.perf_counter()
    observer.quality(variables)
    evaluation = time.perf_counter() - start
    left = 60 * minutes - timing.compilation - EVALUATIONS * evaluation
    count = max(EVALUATIONS, int(left / each))
    count = count // EVALUATIONS * EVALUATIONS
    _say(f"{each * 1e3:.1f} ms per step: {count:,} steps in {minutes:g} minutes")
    write_json(path, {"steps": count, "seconds per step": each})
    return count


def _write_student(folder: Path, student: Model, settings: Mapping[str, Any]) -> None:
    """Writes a checkpoint, in place of an earlier one."""
    fresh = folder.with_name(f"{folder.name}.partial")
    for old in (fresh, folder):
        if old.exists():
            shutil.rmtree(old)
    described = describe(student.network, *student.inputs)
    checkpoint.save_generator(fresh, student.variables, settings, described)
    fresh.rename(folder)


def _check_numbers(steps: int | None, minutes: float | None, samples: int, seed: int) -> None:
    if steps is not None and minutes is not None:
        raise ValueError(f"steps={steps} and minutes={minutes}: only one of them can be set")
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps} is not a positive number")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ValueError(f"minutes={minutes} is not a positive number")
    if samples < 2:
        raise ValueError(f"samples={samples} must be at least 2")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed} is not from 0 to 2**31 - 1")


def _say(line: str) -> None:
    if distributed.is_primary():
        print(line, flush=True)
