"""Helpers shared by the fault tests."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import training

from kd_jax.train.checkpoint import restore_item
from kd_jax.train.logs import read_jsonl

ROOT = Path(__file__).parents[2]


def digest(tree):
    """A SHA-256 digest of the bits of all leaves and their paths."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.asarray(leaf)
        sha256.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        sha256.update(leaf.tobytes())
    return sha256.hexdigest()


def steps(folder):
    """The steps that have a manifest."""
    return sorted(int(p.parent.name) for p in Path(folder).glob("checkpoints/*/manifest.json"))


def everything(folder):
    """Digests of a training's results: state, next batches, metrics, best generator."""
    folder = Path(folder).absolute()
    last = folder / "checkpoints" / str(steps(folder)[-1])
    data = json.loads((last / "data" / "metadata").read_text())
    batches = training.batches()
    batches.set_state(data["batches"])
    return {
        "step": int(last.name),
        "steps": steps(folder),
        "generator": digest(restore_item(last / "generator")),
        "training": digest(restore_item(last / "training")),
        "next batches": digest([next(batches) for _ in range(20)]),
        "metrics": [row | {"wall_time": 0} for row in read_jsonl(folder / "metrics.jsonl")],
        "best": digest(restore_item(folder / "best" / "0" / "generator")),
    }


def command(folder, *arguments):
    """The training's command line."""
    return [sys.executable, "-m", "tests.faults.training", str(folder), *map(str, arguments)]


def start(folder, *arguments, devices=1, **environment):
    """Starts the training in a process."""
    return subprocess.Popen(
        command(folder, *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **environment},
    )


def run(folder, *arguments, **options):
    """Runs the training in a process to its end: `(exit code, stdout, stderr)`."""
    with start(folder, *arguments, **options) as process:
        out, error = process.communicate(timeout=300)
        return process.returncode, out, error
