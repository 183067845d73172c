"""What a training step would do on more devices, read from the compiled program.

    python -m experiments.benchmarks.scaling --batch=64 --width=32

Two steps, at one global batch, compiled for 1, 2, 4 and 8 simulated devices of this machine: that
of an SRResNet that is distilled without a game, in which every parameter has one gradient, and that
of a DCGAN that is distilled in one. FLOPs and parameter memory of each device, and every collective
with its bytes. Nothing is timed: simulated devices share this machine's cores.
"""

import re
from collections.abc import Mapping, Sequence
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


def restoration(width: int) -> dict[str, Any]:
    """An SRResNet, and the one of four times its width that it learns from."""
    student, teacher = (kd.models.superres.srresnet(4, w, 4) for w in (width, 4 * width))
    return {
        "nets": kd.Networks(student, teacher=teacher),
        "optimizers": kd.Pair(optax.adam(1e-3), optax.adam(1e-3)),
        "g_terms": {"response": kd.Term(lambda f: kd.losses.response.l1(f.fake, f.teacher))},
        "d_terms": {},
        "inputs": kd.tasks.super_resolution(4),
    }


def game(width: int) -> dict[str, Any]:
    """A DCGAN, and the one of four times its width that it learns from."""
    student, teacher = (kd.models.dcgan.gan(32, w, channels=3) for w in (width, 4 * width))
    terms = kd.recipes.nonsaturating()
    response = kd.Term(lambda f: kd.losses.response.l1(f.fake, f.teacher))
    return {
        "nets": kd.Networks(student.generator, student.discriminator, teacher.generator),
        "optimizers": kd.Pair(optax.adam(1e-3), optax.adam(1e-3)),
        "g_terms": {**terms.generator, "response": response},
        "d_terms": terms.discriminator,
        "inputs": kd.latents(64, conditional=False),
    }


def measure(
    made: Mapping[str, Any], devices: int, rule: Rule, model: int, batch_size: int
) -> dict[str, Any]:
    """Figures of one device's program.

    Args:
      made: what the step is made of.
      devices: how many.
      rule: how the state is split.
      model: how many of the devices are along `model`.
      batch_size: of the global batch.
    """
    mesh = kd.make_mesh(devices // model, model, jax.devices()[:devices])
    batch = {"image": jax.ShapeDtypeStruct((batch_size, 32, 32, 3), np.float32)}
    state = jax.eval_shape(lambda: kd.init_state(jax.random.key(0), _zeros(batch), **made))
    asked = jax.eval_shape(made["inputs"], jax.random.key(0), batch).generator
    variables = jax.eval_shape(made["nets"].teacher.init, jax.random.key(0), *asked)
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
    players = [p for p in (placed.generator, placed.discriminator) if p]
    params = [player.variables["params"] for player in players]
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
    print("| step | devices | split | FLOPs each | parameters each | state each | exchanged |")
    print("|---|---:|---|---:|---:|---:|---|")
    for name, made in (("no game", restoration(_WIDTH.value)), ("game", game(_WIDTH.value))):
        first: dict[str, Any] = {}
        for sharded in (False, True):
            for devices in _DEVICES[1:] if sharded else _DEVICES:
                rule = kd.fully_sharded(min_size=1024) if sharded else kd.replicated
                found = measure(made, devices, rule, devices if sharded else 1, _BATCH.value)
                first = first or found
                print(f"| {name} | {devices} | {row(sharded, found, first)} |", flush=True)


def row(sharded: bool, found: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """The figures of one program, beside those of one device's."""
    less = {name: first[name] / found[name] for name in ("flops", "parameters")}
    exchanged = [
        f"{kind} {size / 1e6:.3f} MB ({size / found['gradient']:.2f} of the gradients)"
        for kind, size in found["collectives"].items()
    ]
    return " | ".join(
        [
            "parameters too" if sharded else "batch",
            f"{found['flops'] / 1e9:.2f} G (1/{less['flops']:.2f})",
            f"{found['parameters'] / 1e6:.3f} MB (1/{less['parameters']:.2f})",
            f"{found['state'] / 1e6:.3f} MB",
            ", ".join(exchanged) or "none",
        ]
    )


if __name__ == "__main__":
    app.run(main)
