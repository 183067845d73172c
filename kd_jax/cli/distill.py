"""Trains a small student of a generator in a weight file or a training, and measures it.

    kd-jax distill FILE --out DIR --macs 1/25 --minutes 60

Writes `DIR/student`, a checkpoint that all commands read, `DIR/report.html` with teacher and
student side by side, and the training's checkpoints, metrics and sample grids. The same command
resumes an interrupted run. Exits with status 2 if an argument does not fit, before anything is
written; with 3 if a value is NaN or infinite; and with 75 if it was stopped and can be resumed.
"""

import argparse
import shlex
import sys
from pathlib import Path

import jax

from kd_jax.cli import common
from kd_jax.core import cost
from kd_jax.core.axes import tensors
from kd_jax.core.files import cache_dir
from kd_jax.core.types import Variables
from kd_jax.distillation import METHODS, choices
from kd_jax.distillation.choices import DEFAULT_STEPS, Distillation, make_plan
from kd_jax.distillation.examples import DEGRADATIONS
from kd_jax.distillation.pipeline import run as run_distillation, time_step
from kd_jax.evaluate.generator import split_part
from kd_jax.models.families import FAMILIES
from kd_jax.train.logs import duration


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(arguments)
    with common.exit_codes():
        run(args, shlex.join(["kd-jax", "distill", *arguments]))


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    students = ", ".join(family.name for family in FAMILIES if family.student is not None)
    result = argparse.ArgumentParser(
        prog="kd-jax distill", description=(__doc__ or "").partition("\n")[0]
    )
    common.add_network(result, "teacher")
    result.add_argument("--out", help="the folder: new, or that of the run to resume")
    budget = result.add_argument_group("the student").add_mutually_exclusive_group()
    budget.add_argument(
        "--macs",
        type=common.amount,
        help="multiply-accumulates of an image: the teacher's share (1/25) or a number (50M), "
        f"default 1/{1 / choices.DEFAULT_BUDGET:.0f}",
    )
    budget.add_argument(
        "--parameters", type=common.amount, help="or parameters: a share, or a number (100k)"
    )
    budget.add_argument(
        "--latency", type=common.seconds, help="or the time of an image on this machine (5ms)"
    )
    result.add_argument(
        "--student",
        metavar="FAMILY",
        help=f"a student of another family, from random weights: {students}; by default the "
        "teacher with fewer channels",
    )
    time_group = result.add_argument_group("the training")
    length = time_group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"training steps; by default {DEFAULT_STEPS}")
    length.add_argument("--minutes", type=float, help="or the time of the training")
    time_group.add_argument(
        "--method",
        default="auto",
        metavar="NAME",
        help=f"auto (that of the teacher's family), {', '.join(METHODS)}",
    )
    time_group.add_argument(
        "--perceptual",
        nargs="+",
        default=[],
        metavar="FILE",
        help="weights of a perceptual distance that joins the losses and the report: torchvision's "
        "network and LPIPS's weights, or LPIPS's whole module",
    )
    time_group.add_argument("--batch", type=int, help="the batch size; by default 32, or 8")
    time_group.add_argument("--learning_rate", type=float, default=2e-3, help="of the generator")
    time_group.add_argument(
        "--quantise",
        action="store_true",
        help="convolutions of the student as in 8 bits during the training, for an int8 file",
    )
    time_group.add_argument("--seed", type=int, default=0, help="of all random numbers")
    data = result.add_argument_group("the data")
    data.add_argument(
        "--images",
        metavar="DATA",
        help="real images, or the inputs of a generator that takes images: digits, photos, "
        "folder:PATH or tfds:NAME; by default the teacher's samples, or photos",
    )
    data.add_argument("--resize", action="store_true", help="convert images of other shapes")
    data.add_argument(
        "--size", type=int, help="the side of the outputs, for a teacher that takes images"
    )
    data.add_argument(
        "--degradation",
        default="bicubic",
        metavar="NAME",
        help="of a teacher that enlarges images, how they are made smaller: "
        + "; ".join(f"{name}, {about}" for name, about in DEGRADATIONS.items()),
    )
    data.add_argument(
        "--latents", type=int, metavar="N", help="use N latents; by default new ones in every step"
    )
    data.add_argument(
        "--answers",
        action="store_true",
        help="run the teacher once for every input, and keep its answers in DIR/answers",
    )
    measuring = result.add_argument_group("the measurement")
    measuring.add_argument(
        "--baseline",
        action="store_true",
        help="also train the same student as a GAN on the teacher's samples, without their pairing",
    )
    measuring.add_argument("--samples", type=int, default=1024, help="samples of each network")
    measuring.add_argument(
        "--features",
        metavar="FILE",
        help="weights of the FID Inception-v3, or of torchvision's VGG16, AlexNet or SqueezeNet, "
        "for the distances; none for no distances; by default a network with random weights. Only "
        "distances in features of the Inception-v3 are FIDs",
    )
    measuring.add_argument(
        "--dry_run",
        action="store_true",
        help="print the choices, the networks, the cost and the time of a step, and stop",
    )
    return result


def run(args: argparse.Namespace, command: str) -> None:
    """Runs the distillation, or prints its plan.

    Raises:
      ValueError, OSError, UsageError, CheckpointError: an argument does not fit.
    """
    if args.out is None and not args.dry_run:
        raise ValueError("--out=DIR is missing: the folder for the student and the report")
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    teacher = common.open_network(args.teacher, args)
    path, _ = split_part(Path(args.teacher).expanduser())
    distillation = choices.make_distillation(
        teacher,
        macs=args.macs,
        parameters=args.parameters,
        latency=args.latency,
        student=args.student,
        method=args.method,
        images=args.images,
        resize=args.resize,
        size=args.size,
        degradation=args.degradation,
        latents=args.latents,
        perceptual=args.perceptual,
        batch_size=args.batch,
        learning_rate=args.learning_rate,
        quantise=args.quantise,
        folder=args.out,
        teacher_discriminator=choices.file_discriminator(path, teacher.interface),
    )
    for line in distillation.choices:
        print(line, flush=True)
    if args.dry_run:
        print_plan(distillation, args.steps or DEFAULT_STEPS, args.minutes, args.seed)
        return
    run_distillation(
        distillation,
        args.out,
        steps=args.steps,
        minutes=args.minutes,
        baseline=args.baseline,
        answers=args.answers,
        samples=args.samples,
        features=args.features,
        seed=args.seed,
        command=command,
    )


def print_plan(distillation: Distillation, steps: int, minutes: float | None, seed: int) -> None:
    """Prints the tables of both networks, and the cost and the time of a step."""
    plan, teacher = make_plan(distillation, steps), distillation.teacher
    shapes = jax.eval_shape(distillation.student.init, jax.random.key(0), *teacher.inputs)
    for name, network, variables in (
        ("teacher", teacher.network, teacher.variables),
        ("student", distillation.student, shapes),
    ):
        macs = cost.multiply_accumulates(network, variables, *teacher.inputs)
        count = cost.parameter_count(variables)
        print(f"\n{name}: {count:,} parameters, {macs:,.0f} multiply-accumulates for an image")
        print(parameter_table(variables))
    timing = time_step(distillation, plan, seed)
    if minutes:
        steps = int(60 * minutes / timing.seconds)
    print(
        f"\nstep: {timing.flops / 1e9:.2f} GFLOP, {timing.memory / 2**20:,.0f} MiB, "
        f"{timing.seconds * 1e3:.1f} ms with the teacher's answers; {steps:,} steps take about "
        f"{duration(steps * timing.seconds)}"
    )


def parameter_table(variables: Variables) -> str:
    """A line for each trainable array: its path, its shape and its size."""
    rows = [
        (path.removeprefix("params/"), "x".join(map(str, leaf.shape)) or "1", f"{leaf.size:,}")
        for path, leaf in tensors({"params": variables["params"]}).items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"  {path:{widths[0]}}  {shape:>{widths[1]}}  {size:>{widths[2]}}"
        for path, shape, size in rows
    )
