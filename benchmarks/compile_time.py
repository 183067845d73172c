"""Compile and step times of three training steps, with and without the convolutions for CPUs.

    python -m benchmarks.compile_time

(a) adversarial distillation: a DCGAN of 32x32, teacher width 64, student width 8, R1, batch 4;
(b) data-free distillation of a DCGAN of 64x64 with R1, the same widths, batch 32;
(c) a StyleGAN2 of 64x64 without a teacher, channel_base 1024, channel_max 64, R1, batch 8.

Each is compiled from scratch with and without them in turn, without the persistent cache, and the
two programs run in turn. The medians are printed.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags

import kd_jax as kd
from kd_jax.losses import adversarial, penalties, response
from kd_jax.models import dcgan, stylegan2
from kd_jax.ops import cpu

_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each is compiled.")
_STEPS = flags.DEFINE_integer("steps", 10, "How often each step is timed, in a round.")


def make_setup(networks: kd.Networks, distill: bool) -> kd.Setup:
    """Non-saturating losses with R1 and, for distillation, the teacher's images."""
    g_terms = {
        "adversarial": kd.Term(lambda f: adversarial.nonsaturating_g(f.discriminator.fake_scores))
    }
    if distill:
        g_terms["pixel"] = kd.Term(
            lambda f: response.l1(f.student.output, f.teacher.output), weight=5.0
        )
    adam = optax.adam(1e-3, b1=0.0)
    return kd.Setup(
        networks,
        losses=kd.PerNetwork(
            g_terms,
            {
                "adversarial": kd.Term(
                    lambda f: adversarial.minimax_d(
                        f.discriminator.real_scores, f.discriminator.fake_scores
                    )
                ),
                "r1": kd.Term(lambda f: penalties.r1(f.discriminator, f.real), weight=0.5),
            },
        ),
        optimizers=kd.PerNetwork(adam, adam),
        task=kd.latents(64),
    )


def distilled_dcgan(size: int, batch: int, data_free: bool) -> tuple[Callable[..., Any], Any]:
    """A step and its arguments."""
    teacher, student = dcgan.gan(size, width=64), dcgan.gan(size, width=8)
    networks = kd.Networks(student.generator, student.discriminator, teacher=teacher.generator)
    setup = make_setup(networks, distill=True)
    images = {"image": np.zeros((batch, size, size, 3), np.float32)}
    step = kd.make_train_step(setup)
    if data_free:
        step = kd.data_free(step, teacher.generator, setup.task)
    z = np.zeros((batch, 64), np.float32)
    variables = kd.Teacher(jax.jit(teacher.generator.init)(jax.random.key(1), z))
    state = kd.init_state(setup, jax.random.key(0), images)
    return step, (state, variables, images)


def plain_stylegan2() -> tuple[Callable[..., Any], Any]:
    """Likewise."""
    pair = stylegan2.gan(64, channel_base=1024, channel_max=64, latent=64)
    setup = make_setup(kd.Networks(pair.generator, pair.discriminator), distill=False)
    images = {"image": np.zeros((8, 64, 64, 3), np.float32)}
    state = kd.init_state(setup, jax.random.key(0), images)
    return kd.make_train_step(setup), (state, None, images)


CASES = {
    "README": lambda: distilled_dcgan(32, 4, data_free=False),
    "DCGAN 64x64, data-free": lambda: distilled_dcgan(64, 32, data_free=True),
    "StyleGAN2 64x64": plain_stylegan2,
}


def compile_step(step: Callable[..., Any], arguments: Any, enabled: bool) -> tuple[float, Any]:
    """The seconds it takes, tracing included, and the program."""
    cpu.ENABLED = enabled
    jax.clear_caches()
    start = time.perf_counter()
    program = jax.jit(lambda *args: step(*args)).lower(*arguments).compile()
    return time.perf_counter() - start, program


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    for name, make in CASES.items():
        step, arguments = make()
        seconds: dict[bool, list[float]] = {True: [], False: []}
        milliseconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(_ROUNDS.value):
            programs = {}
            for enabled in (True, False):
                took, programs[enabled] = compile_step(step, arguments, enabled)
                seconds[enabled].append(took)
            for program in programs.values():
                jax.block_until_ready(program(*arguments))
            for _ in range(_STEPS.value):
                for enabled, program in programs.items():
                    start = time.perf_counter()
                    jax.block_until_ready(program(*arguments))
                    milliseconds[enabled].append(1e3 * (time.perf_counter() - start))
        for enabled in (True, False):
            print(
                f"{name}: CPU algorithms {'on' if enabled else 'off'}: compiled in "
                f"{statistics.median(seconds[enabled]):.1f} s, step "
                f"{statistics.median(milliseconds[enabled]):.0f} ms",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
