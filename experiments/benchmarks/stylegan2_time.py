"""The time of StyleGAN2's training step and images: kd_jax against the same networks in PyTorch.

    pip install -e .[bench]
    python -m experiments.benchmarks.stylegan2_time

Three cases: `plain`, the discriminator's move (softplus loss, Adam), then the generator's on fresh
latents (softplus, Adam), the average of its weights, the norms of both gradients; `r1`, the same
with R1 in each step, where StyleGAN2 has it in each 16th; `images`, the generator alone. PyTorch
has several contestants: a modulated convolution can scale the images ("scaled") or the kernels
("grouped"), and images can have their channels first or last (those of a grouped generator are
first). In each case its fastest counts.

It is first checked that, from the same weights, latents and noise, all make the same images, scores
and losses, before a step and after it. Then they take turns of a few steps, in one process; what
counts is the ratio of the medians. (A turn's first step is the slowest: its memory was given back
while the other one worked, and a virtual machine charges for each page. In training, a step follows
another of its own.) The rate of a large matrix product in the same process says what the machine
could do. Prints a report; exits with 1 when a contestant disagrees, or without PyTorch.

Wall-clock needs a quiet machine, see `step_time`; `--threads 1` reads the process's CPU time. Where
something else runs, PyTorch's threads, which spin while they wait, were seen to take 25 times as
long; with OMP_WAIT_POLICY=passive in the environment they sleep.

`--compile` adds contestants that go through `torch.compile`; it is meant for a GPU, which is used
where JAX has one. Linux only.
"""

import argparse
import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kd_jax
from experiments.benchmarks.timing import take_turns
from kd_jax import Inputs, Networks, Pair, recipes
from kd_jax.models import stylegan2

try:
    import torch

    from experiments.benchmarks import torch_stylegan2
except ModuleNotFoundError as error:
    sys.exit(f"stylegan2_time needs PyTorch ({error}): pip install -e .[bench]")

LATENT = 512
LEARNING_RATE, BETAS, DECAY = 2e-3, (0.0, 0.99), 0.999  # Karras et al. 2020, appendix B; EMA
GAMMAS = {"plain": 0.0, "r1": 10.0}  # R1's weight in the cases that train
CASES = (*GAMMAS, "images")
FORMS = {"scaled": torch_stylegan2.scaled, "grouped": torch_stylegan2.grouped}
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}
VARIANTS = tuple(f"{form}/{layout}" for form in FORMS for layout in LAYOUTS)
SIDES = tuple(4 << i for i in range(9))
# Of images, scores and losses; and of what rounding can make jump: the gradient where a leaky ReLU
# reads nearly 0, and Adam's first step, which is the sign of a gradient.
TOLERANCE, ROUGHLY = 1e-4, 1e-2
PRODUCT_SIDES = {"cpu": 2048, "cuda": 8192}
PRODUCTS = 9  # products timed

Values = dict[str, np.ndarray]
Start = Mapping[str, Any]
"""Both players' variables, by name."""


def make_kd_jax(
    nets: Networks, gamma: float, inputs: kd_jax.objective.MakeInputs, batch: Any, start: Start
) -> tuple[Any, Any]:
    """kd_jax's compiled step, with R1 of this weight or without, and its first state."""
    game = recipes.nonsaturating(gamma)
    wanted = ("adversarial", "r1") if gamma else ("adversarial",)
    adam = recipes.lazy_adam(LEARNING_RATE, b1=BETAS[0], b2=BETAS[1])
    parts: dict[str, Any] = {
        "nets": nets,
        "optimizers": Pair(adam, adam),
        "g_terms": game.generator,
        "d_terms": {name: game.discriminator[name] for name in wanted},
        "inputs": inputs,
    }
    state = kd_jax.initialize(lambda: kd_jax.init_state(jax.random.key(0), batch, **parts))
    # Not given to `init_state`: a compiled one would hold them as constants.
    generator, average, discriminator = (
        jax.tree.map(jnp.array, start[name]) for name in ("generator", "generator", "discriminator")
    )
    state = state._replace(
        generator=state.generator._replace(variables=generator),
        discriminator=state.discriminator._replace(variables=discriminator),
        ema=average,
    )
    return kd_jax.compile_step(kd_jax.make_train_step(**parts, ema=DECAY)), state


def use_tf32(allowed: bool) -> None:
    """Whether PyTorch rounds factors to TF32 on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def examples(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `[B, H, W, 3]` in [-1, 1] and latents `[B, latent]`."""
    random = np.random.default_rng(0)
    images = random.uniform(-1.0, 1.0, (batch, size, size, 3)).astype(np.float32)
    return images, random.standard_normal((batch, LATENT), np.float32)


def given_latents(key: Any, batch: Any) -> Inputs:
    """The task of the check: both moves take their latents from the batch."""
    del key
    return Inputs((batch["latents"],), (), batch["image"])


def perturbed(variables: Any, seed: int) -> Any:
    """Variables moved a little, so that the strengths of noise and the biases are not 0."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * random.standard_normal(x.shape, np.float32), variables
    )


def expected(nets: Networks, start: Start, images: np.ndarray, latents: np.ndarray) -> Values:
    """kd_jax's images, scores and losses, before a step and after it, with the stored noise."""
    generator = nets.generator._replace(apply=partial(nets.generator.apply, noise="const"))
    discriminator: Any = nets.discriminator
    batch = {"image": jnp.asarray(images), "latents": jnp.asarray(latents)}

    @jax.jit
    def judged(g_variables: Any, d_variables: Any) -> dict[str, Any]:
        fake = generator.apply(g_variables, batch["latents"])[0]
        return {
            "images": fake,
            "real scores": discriminator.apply(d_variables, batch["image"])[0],
            "fake scores": discriminator.apply(d_variables, fake)[0],
        }

    values = _named("before", judged(start["generator"], start["discriminator"]))
    for case, gamma in GAMMAS.items():
        stored = nets._replace(generator=generator)
        step, state = make_kd_jax(stored, gamma, given_latents, batch, start)
        state, metrics = step(state, None, batch)
        compared = ("d/total", "d/grad_norm", "g/total", "g/grad_norm")
        values |= _named(case, {name: metrics[name] for name in compared})
        after = judged(state.generator.variables, state.discriminator.variables)
        values |= _named(f"after {case}", after)
    return values


def disagreement(trainer: Any, expected: Values, start: Start, images: Any, latents: Any) -> Values:
    """How far a PyTorch contestant's values are from these, relative to the largest, by name.

    The generator's loss is judged by the discriminator after its update, which compares gradients,
    Adam and R1's second derivatives; the images after the step do so for the generator.
    """

    @torch.inference_mode()
    def judged() -> dict[str, Any]:
        fake = trainer.images(latents)
        return {
            "images": fake.permute(0, 2, 3, 1),
            "real scores": trainer.score(images),
            "fake scores": trainer.score(fake),
        }

    paths = {name: _paths(variables) for name, variables in start.items()}
    trainer.load(**paths)
    values = _named("before", judged())
    for case, gamma in GAMMAS.items():
        trainer.load(**paths)
        step = trainer.step(images, latents, gamma=gamma)._asdict()
        values |= _named(case, {name.replace("_", "/", 1): step[name] for name in step})
        values |= _named(f"after {case}", judged())
    return {
        name: np.abs(values[name] - value).max() / np.abs(value).max()
        for name, value in expected.items()
    }


def is_exact(name: str) -> bool:
    """Whether rounding cannot make a compared value jump."""
    return "before" in name or "total" in name


def _named(when: str, values: Mapping[str, Any]) -> Values:
    return {
        f"{name}, {when}": value.cpu().numpy() if torch.is_tensor(value) else np.asarray(value)
        for name, value in values.items()
    }


def _paths(variables: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def contestants_of(
    case: str,
    nets: Networks,
    trainers: Mapping[str, Any],
    start: Start,
    images: np.ndarray,
    latents: np.ndarray,
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Each one's turn, and the FLOPs of kd_jax's."""
    batch = jax.device_put({"image": images})
    calls: dict[str, Callable[[], Any]] = {}
    if case == "images":
        generate = jax.jit(lambda v, z: nets.generator.apply(v, z)[0])
        given = jax.device_put((start["generator"], latents))
        operations = flops(generate, *given)
        calls["kd_jax"] = lambda: generate(*given).block_until_ready()
    else:
        inputs = kd_jax.latents(LATENT, conditional=False)
        step, state = make_kd_jax(nets, GAMMAS[case], inputs, batch, start)
        operations = flops(step, state, None, batch)
        if GAMMAS[case]:  # its pass of the real images is written twice, and run once
            discriminator: Any = nets.discriminator
            judge = jax.jit(lambda v, x: discriminator.apply(v, x)[0])
            operations -= flops(judge, start["discriminator"], batch["image"])

        def once() -> None:
            nonlocal state
            state, metrics = step(state, None, batch)
            jax.block_until_ready((state, metrics))

        calls["kd_jax"] = once

    for name, trainer in trainers.items():
        call = (
            partial(trainer.images, trainer.take(latents))
            if case == "images"
            else partial(trainer.step, trainer.take(images), gamma=GAMMAS[case])
        )
        calls[name] = partial(_finished, call, trainer.device)
    return calls, operations


def _finished(call: Callable[[], Any], device: Any) -> None:
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops(jitted: Any, *args: Any) -> float:
    """XLA's count for the program as it is written, before optimisation.

    As for an accelerator, where a convolution is one operation; see `kd_jax.evaluate.cost`.
    """
    lowered = jitted.trace(*args).lower(lowering_platforms=("tpu",))
    return float(lowered.cost_analysis()["flops"])


def product_rates(device: torch.device, clock: Callable[[], float]) -> dict[str, float]:
    """FLOP/s of the product of two large matrices in both."""
    side = PRODUCT_SIDES[device.type]
    values = np.random.default_rng(2).standard_normal((2, side, side), np.float32)
    ours, theirs = jax.device_put(tuple(values)), torch.from_numpy(values).to(device)
    product = jax.jit(jnp.matmul)
    calls: dict[str, Callable[[], Any]] = {
        "kd_jax": lambda: product(*ours).block_until_ready(),
        "torch": partial(_finished, lambda: theirs[0] @ theirs[1], device),
    }
    times = take_turns(calls, PRODUCTS, 1, clock)
    return {name: 2e3 * side**3 / statistics.median(each) for name, each in times.items()}


def report(
    case: str, times: Mapping[str, list[float]], operations: float, rates: Mapping[str, float]
) -> None:
    """Prints the times of a case, and their share of the faster product's rate."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        rate = 1e3 * operations / medians[name]
        print(
            f"{case:7} {name:29} median {medians[name]:8.1f} ms, quartiles {low:.1f} to {high:.1f} "
            f"ms; {rate / 1e9:.0f} GFLOP/s, {rate / max(rates.values()):.0%} of a product's"
        )
    best = min((name for name in times if name != "kd_jax"), key=medians.__getitem__)
    print(
        f"{case:7} ratio of medians, kd_jax / {best}: {medians['kd_jax'] / medians[best]:.2f}",
        flush=True,
    )


def make_trainers(args: argparse.Namespace, widths: tuple[int, ...], device: str) -> dict[str, Any]:
    """PyTorch's contestants by name."""
    trainers = {}
    for variant in args.variants:
        form, _, layout = variant.partition("/")
        for compiled in (False, True) if args.compile else (False,):
            name = f"torch {form}, channels {layout}{', compiled' if compiled else ''}"
            trainers[name] = torch_stylegan2.Trainer(
                latent=LATENT,
                widths=widths,
                learning_rate=LEARNING_RATE,
                betas=BETAS,
                decay=DECAY,
                modulated=FORMS[form],
                memory_format=LAYOUTS[layout],
                device=device,
                compiled=compiled,
            )
    return trainers


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="the image's side")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--channel-base", type=int, default=16384, help="channels times the side")
    parser.add_argument("--channel-max", type=int, default=512, help="no layer has more")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each contestant, at least 2"
    )
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn")
    parser.add_argument("--threads", type=int, help="of each contestant; all cores by default")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="what to time")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="PyTorch's contestants"
    )
    parser.add_argument("--compile", action="store_true", help="also through torch.compile")
    parser.add_argument("--verbose", action="store_true", help="list each of the differences")
    return parser.parse_args()


def main() -> None:
    """Checks, times and reports."""
    args = arguments()
    # Before JAX starts its threads, as many as cores that it sees, and takes a GPU's memory.
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    torch.set_num_threads(len(cores))
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("JAX has a GPU and PyTorch has not; with JAX_PLATFORMS=cpu neither uses it")
    torch.backends.cudnn.benchmark = True
    cpu_time = len(cores) == 1 and device == "cpu"
    clock = time.process_time if cpu_time else time.perf_counter

    gan = stylegan2.gan(args.size, channel_base=args.channel_base, channel_max=args.channel_max)
    nets = Networks(*gan)
    images, latents = examples(args.batch, args.size)
    start = {
        "generator": perturbed(jax.jit(gan.generator.init)(jax.random.key(0), latents), 0),
        "discriminator": perturbed(jax.jit(gan.discriminator.init)(jax.random.key(1), images), 1),
    }
    shapes = kd_jax.tap_shapes(gan.generator, latents)
    widths = tuple(shapes[f"{side}x{side}"][-1] for side in SIDES if side <= args.size)
    print(f"{args.size}x{args.size}, batch {args.batch}, channels from 4x4 up {widths}")
    print(
        f"jax {jax.__version__}, flax {importlib.metadata.version('flax')}, torch "
        f"{torch.__version__}; device {jax.devices()[0].device_kind}, "
        f"{len(cores)} threads; {clock.__name__}; load average {os.getloadavg()[0]:.1f} at start",
        flush=True,
    )
    use_tf32(False)
    with jax.default_matmul_precision("highest"):
        values = expected(nets, start, images, latents)
    trainers = make_trainers(args, widths, device)
    for name, trainer in trainers.items():
        found = disagreement(trainer, values, start, trainer.take(images), trainer.take(latents))
        worst = {
            exact: max(value for key, value in found.items() if is_exact(key) == exact)
            for exact in (True, False)
        }
        print(
            f"{name}: images, scores and losses differ by at most {worst[True]:.1e}, gradients' "
            f"norms and what follows the generator's move by {worst[False]:.1e}",
            flush=True,
        )
        if args.verbose:
            print("  " + "; ".join(f"{key} {value:.1e}" for key, value in found.items()))
        if not (worst[True] <= TOLERANCE and worst[False] <= ROUGHLY):
            sys.exit(f"{name} does not compute what kd_jax does")

    use_tf32(True)  # as JAX does by default
    rates = product_rates(torch.device(device), clock)
    for name, rate in rates.items():
        print(f"a {PRODUCT_SIDES[device]}^3 product, {name}: {rate / 1e9:.0f} GFLOP/s")
    for case in args.cases:
        calls, operations = contestants_of(case, nets, trainers, start, images, latents)
        print(f"{case:7} {operations / 1e9:.4g} GFLOP, by XLA's count")
        times = take_turns(calls, args.rounds, args.steps, clock)
        report(case, times, operations, rates)


if __name__ == "__main__":
    main()
