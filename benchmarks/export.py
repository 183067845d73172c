"""The latency of onnxruntime and of JAX for generators, on the same cores in one run.

    python -m benchmarks.export student=runs/small teacher=teacher.pkl

Each generator is exported to ONNX in a temporary folder, with parity. Then all of them, in both
runtimes and for batches of 1 and 16, are timed in turn, so that noise of the machine affects all
equally. Images that are inputs have the sides of the generator's training, or `--size`.

Prints a table: the size of the ONNX file, the medians in milliseconds, and the median of the ratios
of JAX's time to onnxruntime's in the same round. Both runtimes use all cores.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax

from kd_jax.cli.common import parse_options
from kd_jax.core.cost import time_interleaved
from kd_jax.export import export, make_program, onnx
from kd_jax.model import load

BATCHES = (1, 16)


def main(arguments: list[str] | None = None) -> None:
    """Exports and times the generators, and prints the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.export")
    parser.add_argument("networks", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the files")
    parser.add_argument("--size", type=int, help="the side of images that are inputs")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args(arguments)
    candidates: dict[str, Any] = {}
    rows: list[tuple[str, int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for argument in args.networks:
            name, equals, path = argument.partition("=")
            if not equals:
                parser.error(f"{argument} is not of the form NAME=PATH")
            options = {} if Path(path).is_dir() else parse_options(args.option)
            model = load(path, options=options, generator=True)
            size = {"size": args.size} if args.size and model.interface.takes_images else {}
            file = export(model, Path(folder) / str(len(rows)), **size)["onnx"]
            megabytes = file.path.stat().st_size / 1e6
            program = make_program(model, **size)
            runs: dict[str, Any] = {"JAX": jax.jit(program.apply), "ORT": onnx.load(file.path)}
            for batch in BATCHES:
                inputs = program.draw(0, batch)
                rows.append((name, batch, megabytes))
                for runtime, run in runs.items():
                    candidates[f"{name} {batch} {runtime}"] = _call(run, inputs)
        times = time_interleaved(candidates, args.rounds, 1)
    print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}, JAX {jax.__version__}\n")
    print("| network | ONNX | batch | JAX | onnxruntime | JAX / onnxruntime |")
    print("|---|---|---|---|---|---|")
    for name, batch, megabytes in rows:
        jax_times, ort_times = (times[f"{name} {batch} {runtime}"] for runtime in ("JAX", "ORT"))
        ratio = statistics.median(a / b for a, b in zip(jax_times, ort_times, strict=True))
        print(
            f"| {name} | {megabytes:.2f} MB | {batch} | {statistics.median(jax_times):.2f} ms | "
            f"{statistics.median(ort_times):.2f} ms | {ratio:.2f} |"
        )


def _call(run: Any, inputs: Any) -> Any:
    return lambda: jax.block_until_ready(run(*inputs))


if __name__ == "__main__":
    main()
