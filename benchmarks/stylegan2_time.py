"""The time of StyleGAN2's training step and images: kd_jax against the same networks in PyTorch.

    pip install -e .[bench]
    python -m benchmarks.stylegan2_time

Three cases: `plain`, the discriminator's update (softplus loss, Adam), then the generator's on
fresh latents (softplus, Adam), the EMA of its weights, and the norms of both gradients; `r1`, the
same with R1 in each step, where StyleGAN2 has it in each 16th; `images`, the generator only. In
PyTorch a modulated convolution scales either the images ("scaled") or the kernels ("grouped"), and
images have their channels first or last (always first in a grouped generator); in each case the
fastest of these candidates counts.

First all candidates are checked to compute the same images, scores and losses from the same
weights, latents and noise, before and after a step. Then they run alternately, a few steps each, in
one process; the result is the ratio of the medians. (The first of these steps is the slowest: its
memory was released while the other candidates ran, and page faults are slow on a virtual machine.
In training, a step follows another one.) The rate of a large matrix product in the same process is
reported as an upper bound. Prints a report; exits with 1 when a candidate disagrees, or without
PyTorch.

Wall-clock time needs a quiet machine, see `step_time`; `--threads 1` measures the process's CPU
time. On a busy machine, PyTorch's threads, which spin while they wait, took up to 25 times as long;
with OMP_WAIT_POLICY=passive in the environment they sleep.

`--compile` adds candidates that use `torch.compile`; it is meant for a GPU, which is used if JAX
has one. Linux only.
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
from kd_jax import Inputs, methods
from kd_jax.core.cost import time_interleaved
from kd_jax.core.objective import MakeInputs
from kd_jax.core.setup import Networks, PerNetwork
from kd_jax.models import stylegan2

try:
    import torch

    from benchmarks import torch_stylegan2
except ModuleNotFoundError as error:
    sys.exit(f"stylegan2_time needs PyTorch ({error}): pip install -e .[bench]")

LATENT = 512
LEARNING_RATE, BETAS, DECAY = 2e-3, (0.0, 0.99), 0.999  # Karras et al. 2020, appendix B; EMA
GAMMAS = {"plain": 0.0, "r1": 10.0}  # R1's weight in the cases that train
CASES = (*GAMMAS, "images")
FORMS = {"scaled": torch_stylegan2.scale_images, "grouped": torch_stylegan2.group_kernels}
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}
VARIANTS = tuple(f"{form}/{layout}" for form in FORMS for layout in LAYOUTS)
SIDES = tuple(4 << i for i in range(9))
# Of images, scores and losses; and of values that rounding changes discontinuously: the gradient
# of a leaky ReLU near 0, and Adam's first step, which is the sign of a gradient.
TOLERANCE, ROUGHLY = 1e-4, 1e-2
PRODUCT_SIDES = {"cpu": 2048, "cuda": 8192}
PRODUCTS = 9  # products timed

Values = dict[str, np.ndarray]
NetworkVariables = Mapping[str, Any]
"""The variables of both networks, by name."""


def make_kd_jax(
    nets: Networks,
    gamma: float,
    task: MakeInputs,
    batch: Any,
    start: NetworkVariables,
) -> tuple[Any, Any]:
    """kd_jax's compiled step, with R1 if `gamma` is not 0, and its initial state."""
    adversarial = methods.nonsaturating(gamma)
    d_names = ("adversarial", "r1") if gamma else ("adversarial",)
    adam = methods.lazy_adam(LEARNING_RATE, b1=BETAS[0], b2=BETAS[1])
    setup = kd_jax.Setup(
        networks=nets,
        losses=adversarial._replace(
            discriminator={name: adversarial.discriminator[name] for name in d_names}
        ),
        optimizers=PerNetwork(adam, adam),
        task=task,
        ema=lambda step: DECAY,  # constant, as in PyTorch's
    )
    state = kd_jax.init_state(setup, jax.random.key(0), batch)
    # Not passed to `init_state`, whose compiled program would contain them as constants.
    generator, average, discriminator = (
        jax.tree.map(jnp.array, start[name]) for name in ("generator", "generator", "discriminator")
    )
    state = state._replace(
        generator=state.generator._replace(variables=generator),
        discriminator=state.discriminator._replace(variables=discriminator),
        ema=average,
    )
    return kd_jax.compile_step(kd_jax.make_train_step(setup)), state


def use_tf32(allowed: bool) -> None:
    """Sets whether PyTorch uses TF32 on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def examples(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `[B, H, W, 3]` in [-1, 1] and latents `[B, latent]`."""
    random = np.random.default_rng(0)
    images = random.uniform(-1.0, 1.0, (batch, size, size, 3)).astype(np.float32)
    return images, random.standard_normal((batch, LATENT), np.float32)


def latents_from_batch(key: Any, batch: Any) -> Inputs:
    """The task of the check: both updates take their latents from the batch."""
    del key
    return Inputs((batch["latents"],), (), batch["image"])


def perturb(variables: Any, seed: int) -> Any:
    """Variables plus a small perturbation, so that noise strengths and biases are not 0."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * random.standard_normal(x.shape, np.float32), variables
    )


def kd_jax_values(
    nets: Networks, start: NetworkVariables, images: np.ndarray, latents: np.ndarray
) -> Values:
    """kd_jax's images, scores and losses, before and after a step, with the constant noise."""
    generator = nets.generator._replace(apply=partial(nets.generator.apply, noise="const"))
    discriminator: Any = nets.discriminator
    batch = {"image": jnp.asarray(images), "latents": jnp.asarray(latents)}

    @jax.jit
    def evaluate(g_variables: Any, d_variables: Any) -> dict[str, Any]:
        fake = generator.apply(g_variables, batch["latents"])[0]
        return {
            "images": fake,
            "real scores": discriminator.apply(d_variables, batch["image"])[0],
            "fake scores": discriminator.apply(d_variables, fake)[0],
        }

    values = _label("before", evaluate(start["generator"], start["discriminator"]))
    for case, gamma in GAMMAS.items():
        stored = nets._replace(generator=generator)
        step, state = make_kd_jax(stored, gamma, latents_from_batch, batch, start)
        state, metrics = step(state, None, batch)
        compared = ("d/total", "d/grad_norm", "g/total", "g/grad_norm")
        values |= _label(case, {name: metrics[name] for name in compared})
        after = evaluate(state.generator.variables, state.discriminator.variables)
        values |= _label(f"after {case}", after)
    return values


def disagreement(
    trainer: Any, expected: Values, start: NetworkVariables, images: Any, latents: Any
) -> Values:
    """The largest difference of a PyTorch candidate from each value, relative to its maximum.

    The generator's loss depends on the discriminator's update, so that gradients, Adam and R1's
    second derivatives are compared too; the images after the step do the same for the generator.
    """

    @torch.inference_mode()
    def evaluate() -> dict[str, Any]:
        fake = trainer.images(latents)
        return {
            "images": fake.permute(0, 2, 3, 1),
            "real scores": trainer.score(images),
            "fake scores": trainer.score(fake),
        }

    paths = {name: _flatten(variables) for name, variables in start.items()}
    trainer.load(**paths)
    values = _label("before", evaluate())
    for case, gamma in GAMMAS.items():
        trainer.load(**paths)
        step = trainer.step(images, latents, gamma=gamma)._asdict()
        values |= _label(case, {name.replace("_", "/", 1): step[name] for name in step})
        values |= _label(f"after {case}", evaluate())
    return {
        name: np.abs(values[name] - value).max() / np.abs(value).max()
        for name, value in expected.items()
    }


def is_exact(name: str) -> bool:
    """Whether a compared value is continuous in rounding errors."""
    return "before" in name or "total" in name


def _label(when: str, values: Mapping[str, Any]) -> Values:
    return {
        f"{name}, {when}": value.cpu().numpy() if torch.is_tensor(value) else np.asarray(value)
        for name, value in values.items()
    }


def _flatten(variables: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def make_candidates(
    case: str,
    nets: Networks,
    trainers: Mapping[str, Any],
    start: NetworkVariables,
    images: np.ndarray,
    latents: np.ndarray,
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Each candidate's call, and the FLOPs of kd_jax's."""
    batch = jax.device_put({"image": images})
    calls: dict[str, Callable[[], Any]] = {}
    if case == "images":
        generate = jax.jit(lambda v, z: nets.generator.apply(v, z)[0])
        inputs = jax.device_put((start["generator"], latents))
        operations = flops(generate, *inputs)
        calls["kd_jax"] = lambda: generate(*inputs).block_until_ready()
    else:
        task = kd_jax.latents(LATENT)
        step, state = make_kd_jax(nets, GAMMAS[case], task, batch, start)
        operations = flops(step, state, None, batch)
        if GAMMAS[case]:  # the pass over the real images is traced twice and computed once
            discriminator: Any = nets.discriminator
            discriminate = jax.jit(lambda v, x: discriminator.apply(v, x)[0])
            operations -= flops(discriminate, start["discriminator"], batch["image"])

        def run_step() -> None:
            nonlocal state
            state, metrics = step(state, None, batch)
            jax.block_until_ready((state, metrics))

        calls["kd_jax"] = run_step

    for name, trainer in trainers.items():
        call = (
            partial(trainer.images, trainer.to_inputs(latents))
            if case == "images"
            else partial(trainer.step, trainer.to_inputs(images), gamma=GAMMAS[case])
        )
        calls[name] = partial(_call_and_wait, call, trainer.device)
    return calls, operations


def _call_and_wait(call: Callable[[], Any], device: Any) -> None:
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops(jitted: Any, *args: Any) -> float:
    """XLA's FLOPs of the program before optimisation.

    Lowered for an accelerator, where a convolution is one operation; see `kd_jax.core.cost`.
    """
    lowered = jitted.trace(*args).lower(lowering_platforms=("tpu",))
    return float(lowered.cost_analysis()["flops"])


def product_rates(device: torch.device, clock: Callable[[], float]) -> dict[str, float]:
    """FLOP/s of the product of two large matrices, in JAX and in PyTorch."""
    side = PRODUCT_SIDES[device.type]
    values = np.random.default_rng(2).standard_normal((2, side, side), np.float32)
    arrays, tensors = jax.device_put(tuple(values)), torch.from_numpy(values).to(device)
    product = jax.jit(jnp.matmul)
    calls: dict[str, Callable[[], Any]] = {
        "kd_jax": lambda: product(*arrays).block_until_ready(),
        "torch": partial(_call_and_wait, lambda: tensors[0] @ tensors[1], device),
    }
    times = time_interleaved(calls, PRODUCTS, 1, clock)
    return {name: 2e3 * side**3 / statistics.median(each) for name, each in times.items()}


def report(
    case: str, times: Mapping[str, list[float]], operations: float, rates: Mapping[str, float]
) -> None:
    """Prints the times of a case, and the rates relative to the faster matrix product's."""
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
    """PyTorch's candidates, by name."""
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
                modulated_conv=FORMS[form],
                memory_format=LAYOUTS[layout],
                device=device,
                compiled=compiled,
            )
    return trainers


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="the image's side")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--channel-base", type=int, default=16384, help="channels times the side")
    parser.add_argument("--channel-max", type=int, default=512, help="the most channels of a layer")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, at least 2")
    parser.add_argument("--steps", type=int, default=5, help="steps per round and candidate")
    parser.add_argument("--threads", type=int, help="threads of each candidate; default: all cores")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="cases to time")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="PyTorch's candidates"
    )
    parser.add_argument("--compile", action="store_true", help="add torch.compile candidates")
    parser.add_argument("--verbose", action="store_true", help="list all differences")
    return parser.parse_args()


def main() -> None:
    """Checks, times and reports."""
    args = parse_arguments()
    # Before JAX starts its threads, one per visible core, and allocates a GPU's memory.
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    torch.set_num_threads(len(cores))
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("JAX has a GPU, PyTorch does not; with JAX_PLATFORMS=cpu neither uses it")
    torch.backends.cudnn.benchmark = True
    cpu_time = len(cores) == 1 and device == "cpu"
    clock = time.process_time if cpu_time else time.perf_counter

    gan = stylegan2.gan(args.size, channel_base=args.channel_base, channel_max=args.channel_max)
    nets = Networks(*gan)
    images, latents = examples(args.batch, args.size)
    start = {
        "generator": perturb(jax.jit(gan.generator.init)(jax.random.key(0), latents), 0),
        "discriminator": perturb(jax.jit(gan.discriminator.init)(jax.random.key(1), images), 1),
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
        values = kd_jax_values(nets, start, images, latents)
    trainers = make_trainers(args, widths, device)
    for name, trainer in trainers.items():
        differences = disagreement(
            trainer, values, start, trainer.to_inputs(images), trainer.to_inputs(latents)
        )
        worst = {
            exact: max(value for key, value in differences.items() if is_exact(key) == exact)
            for exact in (True, False)
        }
        print(
            f"{name}: images, scores and losses differ by at most {worst[True]:.1e}, gradients' "
            f"norms and values after the generator's update by {worst[False]:.1e}",
            flush=True,
        )
        if args.verbose:
            print("  " + "; ".join(f"{key} {value:.1e}" for key, value in differences.items()))
        if not (worst[True] <= TOLERANCE and worst[False] <= ROUGHLY):
            sys.exit(f"{name} does not compute what kd_jax does")

    use_tf32(True)  # JAX's default
    rates = product_rates(torch.device(device), clock)
    for name, rate in rates.items():
        print(f"a {PRODUCT_SIDES[device]}^3 product, {name}: {rate / 1e9:.0f} GFLOP/s")
    for case in args.cases:
        calls, operations = make_candidates(case, nets, trainers, start, images, latents)
        print(f"{case:7} {operations / 1e9:.4g} GFLOP, by XLA's count")
        times = time_interleaved(calls, args.rounds, args.steps, clock)
        report(case, times, operations, rates)


if __name__ == "__main__":
    main()
