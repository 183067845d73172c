"""A training of seconds, as a program: what the faults befall.

    python -m tests.faults.training DIR [--steps=60] [--config.run.patience=1] ...

A multilayer-perceptron student learns digits from its teacher. Checkpoints are written every 5
steps, figures of quality every 6, windows end every 4: stops fall between everything.
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
from kd_jax import data, diagnostics, distributed
from kd_jax.checkpoint import CheckpointError
from kd_jax.loop import NonFiniteError

LOG, EVALUATE, CHECKPOINT = 4, 6, 5
LATENT, SIZE, BATCH = 4, 8, 8

TEACHER = kd.models.mlp.gan(SIZE, 8)
STUDENT = kd.models.mlp.gan(SIZE, 4)


def parts(g_terms=None, d_terms=None, teacher=TEACHER):
    """What a step is made of."""
    adversarial = kd.methods.nonsaturating()
    response = kd.Term(lambda f: kd.losses.response.l1(f.fake, f.teacher))
    return {
        "nets": kd.Networks(*STUDENT, teacher=teacher.generator),
        "optimizers": kd.PerNetwork(optax.adam(1e-3), optax.adam(1e-3)),
        "g_terms": {**adversarial.generator, "response": response, **(g_terms or {})},
        "d_terms": {**adversarial.discriminator, **(d_terms or {})},
        "inputs": kd.latents(LATENT, conditional=False),
    }


def teacher_variables(network=TEACHER, latent=LATENT):
    """The teacher, which has learnt nothing."""
    return jax.jit(network.generator.init)(jax.random.key(1), np.zeros((BATCH, latent), np.float32))


def training_plan(steps, teacher=None, wrap=lambda step: step, **changes):
    """The training; `changes` are those of `parts`."""
    nets = changes.pop("nets", None)
    made = parts(**changes) | ({"nets": nets} if nets else {})
    return harness.TrainingPlan(
        init=partial(kd.init_state, **made),
        step=wrap(kd.make_train_step(**made, ema=0.9)),
        teacher=kd.Teacher(teacher_variables() if teacher is None else teacher),
        steps=steps,
        diagnosis=diagnostics.diagnosis(**made),
        nets=made["nets"],
        inputs=made["inputs"],
    )


def batches(seed=0, source=None, **options):
    """The digits, this process's part of them."""
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
    """A figure of the averaged generator that any bit of it changes."""
    return {"mean": float(sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(variables)))}


def train(folder, made, given, mesh=None, rule=kd.replicated, **options):
    """`harness.train` with this training's periods."""
    return harness.train(
        Path(folder),
        made,
        given,
        seed=3,
        configuration={"what": "a fault"},
        quality=quality,
        log_every=LOG,
        evaluate_every=EVALUATE,
        checkpoint_every=CHECKPOINT,
        mesh=mesh,
        rule=rule,
        options=harness.Options(**options),
    )


class Bad:
    """Batches of which one, of one process, has NaN in it, or cannot be read."""

    def __init__(self, given, process, number, unreadable):
        self._given, self._unreadable = given, unreadable
        self._left = number + 1 if process == jax.process_index() else 0

    def __iter__(self):
        return self

    def __next__(self):
        self._left -= 1  # the first is looked at for its shapes
        if self._left:
            return next(self._given)
        if self._unreadable:
            raise data.UnreadableError("image 5 cannot be decoded")
        batch = dict(next(self._given))
        return {**batch, "image": np.full_like(batch["image"], np.nan)}

    def __getattr__(self, name):
        return getattr(self._given, name)


class Limited:
    """Batches in whose midst no file may grow beyond some bytes: a full disk."""

    def __init__(self, given, first, last):
        self._given, self._first, self._last = given, first, last
        self._number = 0

    def __iter__(self):
        return self

    def __next__(self):
        self._number += 1
        if self._number in (self._first, self._last):
            time.sleep(3)  # what is being written in the background is to be written
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = self._first <= self._number < self._last
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if full else hard, hard))
        return next(self._given)

    def __getattr__(self, name):
        return getattr(self._given, name)


def main():
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--save_errors", default="stop")
    parser.add_argument("--full", type=int, nargs=2, help="the disk is full between these batches")
    parser.add_argument("--nan", type=int, nargs=2, help="in a process's batch of this number")
    parser.add_argument("--unreadable", type=int, nargs=2, help="likewise")
    parser.add_argument("--patience", type=int, default=0)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--model", type=int, default=1)
    given = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(harness.cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if given.coordinator:
        distributed.initialize(given.coordinator, given.processes, given.process)
    mesh = kd.make_mesh(model=given.model)
    rule = kd.fully_sharded(min_size=16) if given.model > 1 else kd.replicated
    numbers = batches()
    if given.nan or given.unreadable:
        numbers = Bad(numbers, *(given.nan or given.unreadable), bool(given.unreadable))
    if given.full:
        numbers = Limited(numbers, *given.full)
    harness.STOP.limit(given.minutes)
    try:
        with harness.STOP:
            train(
                given.folder,
                training_plan(given.steps),
                numbers,
                mesh,
                rule,
                save_errors=given.save_errors,
                patience=given.patience,
            )
    except (harness.UsageError, CheckpointError, NonFiniteError, data.UnreadableError) as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.abort(2)


if __name__ == "__main__":
    main()
