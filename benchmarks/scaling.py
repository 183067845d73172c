"""The scaling of a training step over devices, read from the compiled program.

    python -m benchmarks.scaling --batch=64 --width=32

Two steps at one global batch size are compiled for 1, 2, 4 and 8 simulated devices of this machine:
the distillation of an SRResNet without an adversarial loss, in which every parameter has one
gradient, and that of a DCGAN with one. Prints FLOPs and parameter memory of each device, and every
collective with its bytes. Nothing is timed: simulated devices share this machine's cores.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags

import kd_jax as kd
from kd_jax.core.mesh import Rule, shardings

_BATCH = flags.DEFINE_integer("batch", 64, "The global batch size.")
_WIDTH = flags.DEFINE_integer("width", 32, "The generators' width.")
_DEVICES = (1, 2, 4, 8)
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}
_COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(program: str) -> dict[str, int]:
    """The bytes that one device receives from each kind of collective of a compiled program.

    Args:
      program: the text of the compiled program.
    """
    totals: dict[str, int] = {}
    for line in program.splitlines():
        if match := _COLLECTIVE.search(line):
            sizes = re.findall(r"(\w+)\[([\d,]*)\]", match["shape"])
            total = sum(
                _BYTES[kind] * int(np.prod([int(n) for n in dims.split(",") if n]))
                for kind, dims in sizes
            )
            totals[match["kind"]] = totals.get(match["kind"], 0) + total
    return totals


def shard_bytes(tree: Any) -> int:
    """The bytes of one device's shards of a tree of shapes with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def restoration(width: int) -> kd.Setup:
    """An SRResNet, distilled from one of four times its width."""
    student, teacher = (kd.models.superres.srresnet(4, w, 4) for w in (width, 4 * width))
    response = kd.Term(lambda f: kd.losses.response.l1(f.student.output, f.teacher.output))
    return kd.Setup(
        networks=kd.Networks(student, teacher=teacher),
        losses=kd.PerNetwork({"response": response}),
        optimizers=kd.PerNetwork(optax.adam(1e-3)),
        task=kd.tasks.super_resolution(4),
    )


def adversarial(width: int) -> kd.Setup:
    """A DCGAN, distilled from one of four times its width."""
    student, teacher = (kd.models.dcgan.gan(32, w, channels=3) for w in (width, 4 * width))
    return kd.Setup(
        networks=kd.Networks(student.generator, student.discriminator, teacher.generator),
        losses=kd.methods.response(1.0),
        optimizers=kd.PerNetwork(optax.adam(1e-3), optax.adam(1e-3)),
        task=kd.latents(64),
    )


def measure(
    setup: kd.Setup, devices: int, rule: Rule, model: int, batch_size: int
) -> dict[str, Any]:
    """FLOPs, memory in bytes and collectives of one device's program.

    Args:
      setup: the setup.
      devices: the number of devices.
      rule: how the state is sharded.
      model: the number of devices along the mesh axis `model`.
      batch_size: the size of the global batch.
    """
    mesh = kd.make_mesh(devices // model, model, jax.devices()[:devices])
    batch = {"image": jax.ShapeDtypeStruct((batch_size, 32, 32, 3), np.float32)}
    state = jax.eval_shape(lambda: kd.init_state(setup, jax.random.key(0), _zeros(batch)))
    inputs = jax.eval_shape(setup.task, jax.random.key(0), batch).generator
    teacher_network: Any = setup.networks.teacher
    variables = jax.eval_shape(teacher_network.init, jax.random.key(0), *inputs)
    placed, teacher = (
        jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            shardings(tree, mesh, r),
        )
        for tree, r in ((state, rule), (kd.Teacher(variables), kd.replicated))
    )
    step: Any = kd.compile_step(kd.make_train_step(setup), mesh, rule)
    program = step.lower(placed, teacher, batch).compile()
    networks = [network for network in (placed.generator, placed.discriminator) if network]
    params = [network.variables["params"] for network in networks]
    return {
        "flops": program.cost_analysis()["flops"],
        "parameters": shard_bytes(params),
        "state": shard_bytes(placed),
        "gradient": sum(4 * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)),
        "collectives": collectives(program.as_text()),
    }


def _zeros(batch: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), batch)


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    jax.config.update("jax_num_cpu_devices", max(_DEVICES))
    print("| step | devices | sharded | FLOPs each | parameters each | state each | collectives |")
    print("|---|---:|---|---:|---:|---:|---|")
    for name, setup in (
        ("no adversarial loss", restoration(_WIDTH.value)),
        ("adversarial loss", adversarial(_WIDTH.value)),
    ):
        first: dict[str, Any] = {}
        for sharded in (False, True):
            for devices in _DEVICES[1:] if sharded else _DEVICES:
                rule = kd.fully_sharded(min_size=1024) if sharded else kd.replicated
                costs = measure(setup, devices, rule, devices if sharded else 1, _BATCH.value)
                first = first or costs
                print(f"| {name} | {devices} | {format_row(sharded, costs, first)} |", flush=True)


def format_row(sharded: bool, costs: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """The costs of one program, relative to those on one device."""
    ratios = {name: first[name] / costs[name] for name in ("flops", "parameters")}
    exchanged = [
        f"{kind} {size / 1e6:.3f} MB ({size / costs['gradient']:.2f} of the gradients)"
        for kind, size in costs["collectives"].items()
    ]
    return " | ".join(
        [
            "batch and parameters" if sharded else "batch",
            f"{costs['flops'] / 1e9:.2f} G (1/{ratios['flops']:.2f})",
            f"{costs['parameters'] / 1e6:.3f} MB (1/{ratios['parameters']:.2f})",
            f"{costs['state'] / 1e6:.3f} MB",
            ", ".join(exchanged) or "none",
        ]
    )


if __name__ == "__main__":
    app.run(main)
