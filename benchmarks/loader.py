"""Images per second from a folder, beside the rate of the decoder; the step's wait for data.

    python -m benchmarks.loader

The folder has 2,000 patches of photographs of scikit-image, 256x256, half PNG and half JPEG. The
candidates read the same images, a part of the folder in each round, alternately in one process:
Pillow alone (`open`, `convert`, to an array) in a loop and in a pool of threads, and
`kd_jax.data.batches` with 0, 1 and 2 workers. Each image is decoded once per candidate and round,
and never cached. The results are the ratios of the medians to Pillow's in a loop (one core) and in
two threads (two cores); the latter counts for 2 workers.

The second table is the share of the time that a training loop waits in `next`, for a small step
(a strided convolution and its gradient) on batches of these images: reading in the loop, with
workers, and with `prefetch_to_device`. On CPU, the step and the workers share the cores.

Prints both tables. Linux only.

On two cores of an AMD EPYC that other processes shared (load average 6; Pillow 13.0.0), Pillow read
1,001 images/s in a loop and 1,025 in two threads, and `batches` 939, 930 and 933 with 0, 1 and 2
workers: 0.91 of Pillow's two threads with two workers, at 1.06 ms of CPU time per image against
0.98. The loop waited for data 84 % of the time without workers, 34 % with them and 27 % with
`prefetch_to_device`.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from PIL import Image

from kd_jax.core.cost import time_interleaved
from kd_jax.data import Source, batches, prefetch_to_device, strided
from kd_jax.data.folder import open_folder
from kd_jax.data.images import open_image

SIDE, PARTS = 256, 5  # odd, so that each part has both kinds of files


def write_photos(folder: Path, count: int) -> None:
    """Writes random patches of photographs, by turns as PNG and as JPEG of quality 90."""
    from skimage import data

    photos = [data.astronaut(), data.coffee(), data.rocket(), data.chelsea()]
    rng = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number // 2 % len(photos)]
        top, left = (int(rng.integers(0, length - SIDE + 1)) for length in photo.shape[:2])
        patch = Image.fromarray(photo[top : top + SIDE, left : left + SIDE])
        if number % 2:
            patch.save(folder / f"{number:05}.jpg", quality=90)
        else:
            patch.save(folder / f"{number:05}.png")


def decode(path: Path) -> np.ndarray:
    """Pillow's decoder alone: `[H, W, 3]` uint8."""
    with open_image(path.read_bytes(), str(path)) as image:
        return np.asarray(image.convert("RGB"))


def once(source: Source) -> Source:
    """The source, except that every image is decoded at its first access only.

    Workers read ahead; behind the images that are timed, they find nothing to decode.
    """
    decoded = np.zeros(len(source), np.bool_)
    blank = np.zeros(source.image_shape, np.uint8)

    def read(i: int) -> tuple[np.ndarray, int]:
        if decoded[i]:
            return blank, 0
        decoded[i] = True
        return source.read(i)

    # A source of its own, so that the part is not cached in memory.
    return dataclasses.replace(source, read=read, in_memory=False)


def throughput(folder: Path, source: Source, args: argparse.Namespace) -> None:
    """Prints the rates of the decoder and of the loader."""
    files = sorted(folder.iterdir())
    numbers = dict.fromkeys(("loop", "pool", "0", "1", "2"), 0)
    cores = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(2)

    def part(name: str) -> int:
        numbers[name] += 1
        return numbers[name] % PARTS

    def read_in_loop() -> None:
        for path in files[part("loop") :: PARTS]:
            decode(path)

    def read_in_pool() -> None:
        for _ in pool.map(decode, files[part("pool") :: PARTS]):
            pass

    def read_batches(workers: int) -> None:
        own = once(_uncached_part(source, part(str(workers))))
        iterator = batches(own, args.batch, 0, workers=workers)
        for _ in range(len(own) // args.batch):
            next(iterator)

    candidates: dict[str, Callable[[], Any]] = {
        "Pillow, loop": read_in_loop,
        "Pillow, 2 threads": read_in_pool,
        **{f"batches, {n} workers": partial(read_batches, n) for n in (0, 1, 2)},
    }
    cpu: dict[str, list[float]] = {name: [] for name in candidates}

    def with_cpu_time(name: str) -> None:
        start = time.process_time()
        candidates[name]()
        cpu[name].append(time.process_time() - start)

    times = time_interleaved({n: partial(with_cpu_time, n) for n in candidates}, args.rounds, 1)
    images = args.images // PARTS
    medians = {name: statistics.median(values) for name, values in times.items()}
    loop, threads = (medians[name] for name in ("Pillow, loop", "Pillow, 2 threads"))
    print(f"{'':20} images/s (quartiles)     CPU ms/image   ratio to loop   to 2 threads")
    for name, values in times.items():
        fast, _, slow = statistics.quantiles(values, n=4)
        rates = [1e3 * images / value for value in (medians[name], slow, fast)]
        per_image = 1e3 * statistics.median(cpu[name][1:]) / images
        spread = f"({rates[1]:.0f} to {rates[2]:.0f})"
        print(
            f"{name:20} {rates[0]:8.0f} {spread:14} {per_image:14.2f} "
            f"{loop / medians[name]:15.2f} {threads / medians[name]:14.2f}"
        )
    print(f"{cores} cores; {images} images per candidate and round, {args.rounds} rounds")


def _uncached_part(source: Source, number: int) -> Source:
    """Every `PARTS`-th image, without the cache that `strided` adds to small sets."""
    part = strided(source, PARTS, number)
    return dataclasses.replace(part, read=lambda i: source.read(number + PARTS * i))


@jax.jit
def step(weights: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A step of gradient descent on a strided convolution."""

    def loss(weights: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            images, weights, (4, 4), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(jax.nn.relu(y) ** 2)

    value, gradient = jax.value_and_grad(loss)(weights)
    return weights - 0.1 * gradient, value


def waiting(source: Source, args: argparse.Namespace) -> None:
    """Prints the share of the time that a loop waits for its batches."""
    candidates: dict[str, Callable[[Any], Iterator[Any]]] = {
        "0 workers": lambda s: batches(s, args.batch, 0, workers=0),
        "workers": lambda s: batches(s, args.batch, 0),
        "workers and prefetch_to_device": lambda s: prefetch_to_device(batches(s, args.batch, 0)),
    }
    weights = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (4, 4, 3, 16)), jnp.float32)
    images = jnp.zeros((args.batch, SIDE, SIDE, 3), jnp.float32)
    jax.block_until_ready(step(weights, images))
    alone = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(step(weights, images))
        alone.append(time.perf_counter() - start)
    shares: dict[str, list[float]] = {name: [] for name in candidates}
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(args.rounds + 1):
        for name, make in candidates.items():
            own = once(_uncached_part(source, number % PARTS))
            count = len(own) // args.batch
            start = time.perf_counter()
            iterator, waited = make(own), 0.0
            value: jax.Array | None = None
            for _ in range(count):
                before = time.perf_counter()
                batch = next(iterator)
                waited += time.perf_counter() - before
                previous: jax.Array | None = value
                weights, value = step(weights, batch["image"])
                if previous is not None:  # as `kd_jax.fit`: a step late
                    previous.block_until_ready()
            jax.block_until_ready(value)
            total = time.perf_counter() - start
            if number:  # the first round is a warm-up
                shares[name].append(waited / total)
                rates[name].append(count / total)
    print(
        f"a step of {1e3 * statistics.median(alone):.0f} ms alone, batches of {args.batch}; the "
        "first batch of each round is waited for in full"
    )
    for name, values in shares.items():
        low, _, high = statistics.quantiles(values, n=4)
        print(
            f"{name:32} waits {statistics.median(values):4.0%} of the time "
            f"({low:.0%} to {high:.0%}), {statistics.median(rates[name]):.1f} steps/s"
        )


def main() -> None:
    """Writes the images, times and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000, help="files in the folder")
    parser.add_argument("--batch", type=int, default=25, help="images per batch")
    parser.add_argument("--rounds", type=int, default=15, help="rounds, at least 2")
    args = parser.parse_args()
    if args.images % (PARTS * args.batch) or args.rounds < 2:
        parser.error(f"--images must be a multiple of {PARTS} * --batch, and --rounds at least 2")
    print(
        f"{args.images} images of {SIDE}x{SIDE}, half PNG, half JPEG; Pillow {PIL.__version__}, "
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}; load average "
        f"{os.getloadavg()[0]:.1f} at start",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photos(folder, args.images)
        source = open_folder(folder, "train", SIDE, 3, resize=False)
        throughput(folder, source, args)
        print(flush=True)
        waiting(source, args)


if __name__ == "__main__":
    main()
