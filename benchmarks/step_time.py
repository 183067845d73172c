"""The time of one training step: kd_jax's DCGAN against the same networks in PyTorch.

    pip install -e .[bench]
    python -m benchmarks.step_time

Both compute the same step: the discriminator's update (softplus loss, Adam), then the generator's
on fresh latents (softplus, Adam, batch norm in train mode), the EMA of its weights, and the norms
of both gradients. First both are checked to compute the same losses from the same weights and
latents. Then they run alternately, a few steps each, in one process; the result is the ratio of the
medians. Prints a report; exits with 1 when the two disagree, or without PyTorch.

Wall-clock time needs a quiet machine: PyTorch waits for all its threads at every layer and suffers
far more from other processes (ratios of 0.2 to 0.6 were measured next to one). On a busy machine
use `--threads 1`, which measures the process's CPU time. Linux only.

On two cores of an AMD EPYC with jax 0.10.2 and torch 2.13.0 the ratio is 0.95, and the same on one.
It was 1.25 with JAX's own convolutions and gradients; `kd_jax.ops.conv` reduced it to 1.0, and not
donating the state on CPU to 0.95.
"""

import argparse
import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import kd_jax
from kd_jax import Inputs, Term
from kd_jax.core.cost import time_interleaved
from kd_jax.core.objective import MakeInputs
from kd_jax.core.setup import Networks, PerNetwork
from kd_jax.models import dcgan

LATENT = 128
LEARNING_RATE, BETAS, DECAY = 2e-4, (0.5, 0.999), 0.999  # Radford et al. 2016, section 4; EMA
CHECKED_STEPS, TOLERANCE = 2, 1e-4  # rounding errors grow tenfold in two further steps

G_TERMS = {"adversarial": Term(lambda f: jax.nn.softplus(-f.discriminator.fake_scores))}
D_TERMS = {
    "adversarial": Term(
        lambda f: (
            jax.nn.softplus(-f.discriminator.real_scores)
            + jax.nn.softplus(f.discriminator.fake_scores)
        )
    )
}


def make_kd_jax(nets: Networks, task: MakeInputs, batch: Any) -> tuple[Any, Any]:
    """kd_jax's compiled step and its initial state."""
    adam = optax.adam(LEARNING_RATE, *BETAS)
    setup = kd_jax.Setup(
        networks=nets,
        losses=PerNetwork(G_TERMS, D_TERMS),
        optimizers=PerNetwork(adam, adam),
        task=task,
        ema=lambda step: DECAY,  # constant, as in PyTorch's
    )
    state = kd_jax.init_state(setup, jax.random.key(0), batch)
    return kd_jax.compile_step(kd_jax.make_train_step(setup)), state


def latents_from_batch(key: Any, batch: Any) -> Inputs:
    """The task of the check: both updates take their latents from the batch."""
    del key
    return Inputs((batch["latents"],), (), batch["image"])


def disagreement(trainer: Any, nets: Networks, images: np.ndarray) -> float:
    """The largest relative difference of the losses over a few steps from the same weights.

    The generator's first loss depends on the discriminator's first update, and later losses on the
    updates of both networks, so that gradients, Adam and batch norm are compared too.
    """
    import torch

    latents = np.random.default_rng(1).standard_normal((len(images), LATENT), np.float32)
    batch = {"image": jnp.asarray(images), "latents": jnp.asarray(latents)}
    step, state = make_kd_jax(nets, latents_from_batch, batch)
    networks = (state.generator, state.discriminator)
    trainer.load(*jax.device_get([network.variables["params"] for network in networks]))
    torch_images = to_torch(images, trainer.memory_format)
    worst = 0.0
    for _ in range(CHECKED_STEPS):
        state, metrics = step(state, None, batch)
        torch_step = trainer.step(torch_images, torch.from_numpy(latents))
        for name, value in (("d/total", torch_step.d_total), ("g/total", torch_step.g_total)):
            worst = max(worst, abs(float(metrics[name]) / float(value) - 1.0))
    return worst


def to_torch(images: np.ndarray, memory_format: Any) -> Any:
    """`[B, H, W, C]` to a `[B, C, H, W]` tensor with this memory format."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def main() -> None:
    """Checks, times and reports."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=32, help="the image's side")
    parser.add_argument("--width", type=int, default=64, help="the DCGAN's width")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--rounds", type=int, default=12, help="rounds")
    parser.add_argument("--steps", type=int, default=5, help="steps per round and candidate")
    parser.add_argument("--threads", type=int, help="threads of each candidate; default: all cores")
    args = parser.parse_args()
    try:
        import torch

        from benchmarks import torch_dcgan
    except ModuleNotFoundError as error:
        sys.exit(f"step_time needs PyTorch ({error}): pip install -e .[bench]")

    # Before JAX starts its threads, one per visible core.
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    clock = time.process_time if len(cores) == 1 else time.perf_counter
    nets = Networks(*dcgan.gan(args.size, args.width))
    images = (
        np.random.default_rng(0)
        .uniform(-1.0, 1.0, (args.batch, args.size, args.size, 3))
        .astype(np.float32)
    )
    batch = {"image": jnp.asarray(images)}
    step, state = make_kd_jax(nets, kd_jax.latents(LATENT), batch)
    kd_jax_count = tuple(
        sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
        for network in (state.generator, state.discriminator)
    )
    shapes = kd_jax.tap_shapes(nets.generator, jnp.zeros((1, LATENT))).values()
    widths = tuple(channels for *_, channels in sorted(shapes, key=lambda s: s[1]))
    print(f"{args.size}x{args.size}, width {args.width}, batch {args.batch}, channels {widths}")
    print(
        f"jax {jax.__version__}, flax {importlib.metadata.version('flax')}, torch "
        f"{torch.__version__}; device {jax.devices()[0].device_kind}, "
        f"{len(cores)} threads; {clock.__name__}; load average {os.getloadavg()[0]:.1f} at start"
    )

    def run_kd_jax() -> None:
        nonlocal state
        state, metrics = step(state, None, batch)
        jax.block_until_ready((state, metrics))

    candidates: dict[str, Callable[[], Any]] = {"kd_jax": run_kd_jax}
    for name, memory_format in (
        ("torch, channels first", torch.contiguous_format),
        ("torch, channels last", torch.channels_last),
    ):
        trainer = torch_dcgan.Trainer(
            latent=LATENT,
            widths=widths,
            learning_rate=LEARNING_RATE,
            betas=BETAS,
            decay=DECAY,
            memory_format=memory_format,
        )
        torch_count = tuple(map(torch_dcgan.count, (trainer.generator, trainer.discriminator)))
        worst = disagreement(trainer, nets, images)
        print(
            f"{name}: parameters (generator, discriminator) {torch_count}, kd_jax {kd_jax_count}; "
            f"the losses of {CHECKED_STEPS} steps agree to {worst:.1e}"
        )
        if torch_count != kd_jax_count or worst > TOLERANCE:
            sys.exit(f"{name} is not the same training step as kd_jax's")
        candidates[name] = partial(trainer.step, to_torch(images, memory_format))

    times = time_interleaved(candidates, args.rounds, args.steps, clock)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        print(f"{name:22} median {medians[name]:7.1f} ms, quartiles {low:.1f} to {high:.1f} ms")
    best = min((name for name in times if name != "kd_jax"), key=medians.__getitem__)
    print(f"ratio of medians, kd_jax / {best}: {medians['kd_jax'] / medians[best]:.2f}")


if __name__ == "__main__":
    main()
