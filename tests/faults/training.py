"""A training of a few seconds, as a program, for the fault tests.

    python -m tests.faults.training DIR [--steps=60] [--patience=1] ...

A multilayer-perceptron student learns digits from its teacher. Checkpoints are written every 5
steps, quality is evaluated every 6 and metrics are logged every 4, so that an interruption may fall
between any two of these.
"""

import argparse
import resource
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

import kd_jax as kd
from experiments import harness
from kd_jax import data
from kd_jax.train import diagnostics, distributed, training
from kd_jax.train.checkpoint import CheckpointError
from kd_jax.train.loop import NonFiniteError

LOG, EVALUATE, CHECKPOINT = 4, 6, 5
LATENT, SIZE, BATCH = 4, 8, 8

TEACHER = kd.models.mlp.gan(SIZE, 8)
STUDENT = kd.models.mlp.gan(SIZE, 4)


def parts(g_terms=None, d_terms=None, teacher=TEACHER):
    """The arguments of a training step."""
    adversarial = kd.methods.nonsaturating()
    response = kd.Term(lambda f: kd.losses.response.l1(f.student.output, f.teacher.output))
    return {
        "networks": kd.Networks(*STUDENT, teacher=teacher.generator),
        "optimizers": kd.PerNetwork(optax.adam(1e-3), optax.adam(1e-3)),
        "task": kd.latents(LATENT),
        "losses": kd.PerNetwork(
            {**adversarial.generator, "response": response, **(g_terms or {})},
            {**adversarial.discriminator, **(d_terms or {})},
        ),
    }


def teacher_variables(network=TEACHER, latent=LATENT):
    """The initial variables of a teacher that is not trained."""
    return jax.jit(network.generator.init)(jax.random.key(1), np.zeros((BATCH, latent), np.float32))


def training_plan(steps, teacher=None, wrap=lambda step: step, **changes):
    """The training plan; `changes` are passed to `parts`, but `networks` replaces its entry."""
    networks = changes.pop("networks", None)
    arguments = parts(**changes) | ({"networks": networks} if networks else {})
    setup = kd.Setup(**arguments, ema=0.9)
    return training.TrainingPlan(
        init=partial(kd.init_state, setup),
        step=wrap(kd.make_train_step(setup)),
        teacher=kd.Teacher(teacher_variables() if teacher is None else teacher),
        steps=steps,
        diagnosis=diagnostics.diagnosis(setup),
        setup=setup,
    )


def batches(seed=0, source=None, **options):
    """Batches of digits: this process's part."""
    source = source or data.open_source("digits", "train", SIZE, 1)
    return data.batches(
        source,
        BATCH,
        seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **options,
    )


def quality(variables):
    """A metric of the averaged generator that changes with any of its bits."""
    return {"mean": float(sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(variables)))}


def train(folder, plan, batches, mesh=None, rule=kd.replicated, prefetch=None, **options):
    """`training.train` with this training's periods."""
    return training.train(
        Path(folder),
        plan,
        batches,
        seed=3,
        configuration={"what": "a fault"},
        quality=quality,
        schedule=training.Schedule(LOG, EVALUATE, CHECKPOINT),
        mesh=mesh,
        rule=rule,
        options=training.Options(**options),
        stop=harness.STOP,
        prefetch=prefetch,
    )


class BadBatch:
    """Batches with one, in one process, that contains NaN or cannot be read."""

    def __init__(self, batches, process, number, unreadable):
        self._batches, self._unreadable = batches, unreadable
        self._left = number + 1 if process == jax.process_index() else 0

    def __iter__(self):
        return self

    def __next__(self):
        self._left -= 1  # the first batch only gives the shapes
        if self._left:
            return next(self._batches)
        if self._unreadable:
            raise data.UnreadableError("image 5 cannot be decoded")
        batch = dict(next(self._batches))
        return {**batch, "image": np.full_like(batch["image"], np.nan)}

    def __getattr__(self, name):
        return getattr(self._batches, name)


class FullDisk:
    """Batches; between two of them, no file may exceed 3,000 bytes, as on a full disk."""

    def __init__(self, batches, first, last):
        self._batches, self._first, self._last = batches, first, last
        self._number = 0

    def __iter__(self):
        return self

    def __next__(self):
        self._number += 1
        if self._number in (self._first, self._last):
            time.sleep(3)  # lets writes in the background finish
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = self._first <= self._number < self._last
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000 if full else hard, hard))
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


def main():
    """Runs the training from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--save_errors", default="stop")
    parser.add_argument(
        "--full", type=int, nargs=2, help="FIRST LAST: the disk is full between these batches"
    )
    parser.add_argument(
        "--nan", type=int, nargs=2, help="PROCESS NUMBER: NaN in this batch of this process"
    )
    parser.add_argument(
        "--unreadable",
        type=int,
        nargs=2,
        help="PROCESS NUMBER: this batch of this process cannot be read",
    )
    parser.add_argument("--patience", type=int, default=0)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--model", type=int, default=1)
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(harness.cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if args.coordinator:
        distributed.initialize(args.coordinator, args.processes, args.process)
    mesh = kd.make_mesh(model=args.model)
    rule = kd.fully_sharded(min_size=16) if args.model > 1 else kd.replicated
    digits = batches()
    if args.nan or args.unreadable:
        digits = BadBatch(digits, *(args.nan or args.unreadable), bool(args.unreadable))
    if args.full:
        digits = FullDisk(digits, *args.full)
    harness.STOP.limit(args.minutes)
    try:
        with harness.STOP:
            train(
                args.folder,
                training_plan(args.steps),
                digits,
                mesh,
                rule,
                save_errors=args.save_errors,
                patience=args.patience,
            )
    except (harness.UsageError, CheckpointError, NonFiniteError, data.UnreadableError) as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.abort(2)


if __name__ == "__main__":
    main()
