"""The time of Inception's features, beside those of the same network in PyTorch.

    pip install -e .[bench]
    python -m benchmarks.inception_time

The network of the Frechet inception distance, with random weights, on batches of 299x299 images.
PyTorch is timed with channels first and channels last, and the faster one counts. The batch
normalisation is folded into the convolutions on both sides.

First all candidates are checked to compute the same features. Then they run alternately, a few
batches each, in one process; the result is the ratio of the medians. CPU time, summed over all
threads, is reported with wall-clock time; it is the fairer one on a busy machine. PyTorch's threads
spin while they wait, unless the environment has OMP_WAIT_POLICY=passive. Prints a report; exits
with 1 when a candidate disagrees, or without PyTorch.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from kd_jax.core.cost import time_interleaved
from kd_jax.models import inception

try:
    import torch

    from benchmarks import torch_inception
except ModuleNotFoundError as error:
    sys.exit(f"inception_time needs PyTorch ({error}): pip install -e .[bench]")

LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}
TOLERANCE = 1e-4  # of the largest feature


def random_variables() -> Any:
    """Random variables of the network, with nonzero biases."""
    network = inception.fid(stem_batch=2 if jax.default_backend() == "cpu" else 0)
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), np.zeros((1, inception.SIDE, inception.SIDE, 3), "f")
    )
    random = np.random.default_rng(0)

    def tensor(leaf: Any) -> np.ndarray:
        if len(leaf.shape) == 1:
            return random.normal(0, 0.05, leaf.shape).astype(np.float32)
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return random.normal(0, deviation, leaf.shape).astype(np.float32)

    return jax.tree.map(tensor, shapes)


def make_candidates(
    batch: int, layouts: list[str]
) -> tuple[dict[str, Callable[[], Any]], dict[str, np.ndarray]]:
    """Each candidate's call, and its features."""
    images = np.random.default_rng(1).uniform(-1, 1, (batch, inception.SIDE, inception.SIDE, 3))
    images = images.astype(np.float32)
    variables = random_variables()
    network = inception.fid(stem_batch=2 if jax.default_backend() == "cpu" else 0)
    apply = jax.jit(lambda v, x: network.apply(v, x)[1]["2048"])
    device_inputs = jax.device_put((variables, images))
    calls: dict[str, Callable[[], Any]] = {
        "kd_jax": lambda: apply(*device_inputs).block_until_ready()
    }
    features = {"kd_jax": np.asarray(apply(*device_inputs))}
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    for layout in layouts:
        name = f"torch, channels {layout}"
        net = torch_inception.Inception(variables["params"], LAYOUTS[layout], device)
        calls[name] = partial(_call_and_wait, partial(net.features, net.to_inputs(images)), device)
        features[name] = net.features(net.to_inputs(images)).cpu().numpy()
    return calls, features


def _call_and_wait(call: Callable[[], Any], device: str) -> None:
    call()
    if device == "cuda":
        torch.cuda.synchronize()


def report(clock: str, times: Mapping[str, list[float]], batch: int) -> None:
    """Prints the times, and the ratio to PyTorch's fastest."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        print(
            f"{clock:8} {name:22} median {medians[name] / batch:7.2f} ms an image, quartiles "
            f"{low / batch:.2f} to {high / batch:.2f}; {1e3 * batch / medians[name]:.1f} images/s"
        )
    best = min((name for name in times if name != "kd_jax"), key=medians.__getitem__)
    print(f"{clock:8} ratio of medians, kd_jax / {best}: {medians['kd_jax'] / medians[best]:.2f}")


def main() -> None:
    """Checks, times and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=16, help="images at a time")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, at least 2")
    parser.add_argument("--steps", type=int, default=1, help="batches per round and candidate")
    parser.add_argument("--threads", type=int, help="threads of each candidate; default: all cores")
    parser.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="PyTorch's layouts"
    )
    args = parser.parse_args()
    # Before JAX starts its threads, one per visible core.
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    print(
        f"batch {args.batch}; jax {jax.__version__}, torch {torch.__version__}; device "
        f"{jax.devices()[0].device_kind}, {len(cores)} threads; load average "
        f"{os.getloadavg()[0]:.1f} at start",
        flush=True,
    )
    calls, features = make_candidates(args.batch, args.layouts)
    for name, values in features.items():
        difference = np.abs(values - features["kd_jax"]).max() / np.abs(features["kd_jax"]).max()
        print(f"{name}: features differ by at most {difference:.1e} of the largest", flush=True)
        if not difference <= TOLERANCE:
            sys.exit(f"{name} does not compute what kd_jax does")
    cpu: dict[str, list[float]] = {name: [] for name in calls}

    def call_and_record(name: str) -> None:
        start = time.process_time()
        calls[name]()
        cpu[name].append(1e3 * (time.process_time() - start))

    timed_calls: dict[str, Callable[[], Any]] = {
        name: partial(call_and_record, name) for name in calls
    }
    wall = time_interleaved(timed_calls, args.rounds, args.steps)
    report("wall", wall, args.batch)
    if jax.default_backend() == "cpu":
        report("CPU time", {name: times[args.steps :] for name, times in cpu.items()}, args.batch)


if __name__ == "__main__":
    main()
