"""What a training step would do on more devices, read from the compiled program.

    python -m experiments.benchmarks.scaling --batch=64 --width=32

The step of a DCGAN that is distilled, at one global batch, compiled for 1, 2, 4 and 8 simulated
devices of this machine: FLOPs and parameter memory of each device, and every collective with its
bytes. Nothing is timed: simulated devices share this machine's cores.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags

import kd_jax as kd
from kd_jax.sharding import Rule, shardings

_BATCH = flags.DEFINE_integer("batch", 64, "The global batch.")
_WIDTH = flags.DEFINE_integer("width", 32, "The generators' width.")
_DEVICES = (1, 2, 4, 8)
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}
_COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(program: str) -> dict[str, int]:
    """The bytes that each kind of collective gives to one device, of a compiled program's text."""
    found: dict[str, int] = {}
    for line in program.splitlines():
        if match := _COLLECTIVE.search(line):
            sizes = re.findall(r"(\w+)\[([\d,]*)\]", match["shape"])
            total = sum(
                _BYTES[kind] * int(np.prod([int(n) for n in dims.split(",") if n]))
                for kind, dims in sizes
            )
            found[match["kind"]] = found.get(match["kind"], 0) + total
    return found


def held(tree: Any) -> int:
    """The bytes of one device's part of some arrays' shapes, which have shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def parts(width: int) -> dict[str, Any]:
    """A DCGAN, and the one of four times its width that it learns from."""
    student, teacher = (kd.models.dcgan.gan(32, w, channels=3) for w in (width, 4 * width))
    game = kd.recipes.nonsaturating()
    response = kd.Term(lambda f: kd.losses.response.l1(f.fake, f.teacher))
    return {
        "nets": kd.Networks(student.generator, student.discriminator, teacher.generator),
        "optimizers": kd.Pair(optax.adam(1e-3), optax.adam(1e-3)),
        "g_terms": {**game.generator, "response": response},
        "d_terms": game.discriminator,
        "inputs": kd.latents(64, conditional=False),
    }


def measure(devices: int, rule: Rule, model: int, batch_size: int, width: int) -> dict[str, Any]:
    """Figures of one device's program.

    Args:
      devices: how many.
      rule: how the state is split.
      model: how many of the devices are along `model`.
      batch_size: of the global batch.
      width: the student's.
    """
    mesh = kd.make_mesh(devices // model, model, jax.devices()[:devices])
    made = parts(width)
    batch = {"image": jax.ShapeDtypeStruct((batch_size, 32, 32, 3), np.float32)}
    state = jax.eval_shape(lambda: kd.init_state(jax.random.key(0), _zeros(batch), **made))
    variables = jax.eval_shape(
        made["nets"].teacher.init, jax.random.key(0), np.zeros((batch_size, 64), np.float32)
    )
    placed, teacher = (
        jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            tree,
            shardings(tree, mesh, r),
        )
        for tree, r in ((state, rule), (kd.Teacher(variables), kd.replicated))
    )
    step: Any = kd.compile_step(kd.make_train_step(**made), mesh, rule)
    program = step.lower(placed, teacher, batch).compile()
    params = [p.variables["params"] for p in (placed.generator, placed.discriminator)]
    return {
        "flops": program.cost_analysis()["flops"],
        "parameters": held(params),
        "state": held(placed),
        "gradient": sum(4 * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)),
        "collectives": collectives(program.as_text()),
    }


def _zeros(batch: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), batch)


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    jax.config.update("jax_num_cpu_devices", max(_DEVICES))
    print("| devices | split | FLOPs of each | parameters of each | state of each | collectives |")
    print("|---:|---|---:|---:|---:|---|")
    first = None
    for name, sharded in (("replicated", False), ("parameters too", True)):
        for devices in _DEVICES[1:] if sharded else _DEVICES:
            rule = kd.fully_sharded(min_size=1024) if sharded else kd.replicated
            model = devices if sharded else 1
            found = measure(devices, rule, model, _BATCH.value, _WIDTH.value)
            first = first or found
            print(
                f"| {devices} | {name} | {found['flops'] / 1e9:.2f} G "
                f"(1/{first['flops'] / found['flops']:.2f}) "
                f"| {found['parameters'] / 1e6:.3f} MB "
                f"(1/{first['parameters'] / found['parameters']:.2f}) "
                f"| {found['state'] / 1e6:.3f} MB | "
                + (
                    ", ".join(f"{k} {v / 1e6:.3f} MB" for k, v in found["collectives"].items())
                    or "none"
                )
                + " |",
                flush=True,
            )
    assert first is not None
    print(f"\nThe gradients are {first['gradient'] / 1e6:.3f} MB.")


if __name__ == "__main__":
    app.run(main)
