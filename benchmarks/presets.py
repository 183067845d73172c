"""The experiments' presets for accelerators: do they build, lower and fit; a step of each on CPU.

    python -m benchmarks.presets                              # every case, Markdown; hours on CPU
    python -m benchmarks.presets --cases=stylegan2/ffhq256 --nocompile       # in a minute
    python -m benchmarks.presets --cases=objectives/full,digits/full

Folders of images that a preset reads are replaced by folders of random images of its size in a
temporary directory. Each training of a preset is a row, with shapes in place of variables: it is
lowered for CUDA and not compiled for it.

* GFLOP: XLA's count for the lowered step; the bodies of loops and conditionals count once.
* state: parameters, moving average, optimizer state, and the teacher's variables.
* live: an estimate of the temporaries, from the traced step in the order of its operations: the
  largest total size of the values that a later operation reads, without the next state.
  Element-wise values that only element-wise operations and reductions read count as fused into
  those, and of a loop, its largest iteration counts.
  XLA's own schedule, its layouts and the scratch memory of convolutions are not part of it; `XLA`
  is the figure of `memory_analysis` of the program that is compiled here for CPU, for comparison.
* fits: whether twice the state (the next one is written beside it), the batch and the larger one of
  both figures of temporaries are at most 90% of the memory.
* step: the seconds of one step of this machine, without compilation, with random variables of the
  teacher; all metrics are finite.
"""

import importlib
import json
import math
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from ml_collections import ConfigDict
from PIL import Image

import kd_jax as kd
from kd_jax.core.cost import parameter_count

CASES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "stylegan2/ffhq256": ("stylegan2", "ffhq256", {}),
    "stylegan2/ffhq256/batch2": ("stylegan2", "ffhq256", {"batch_size": 2}),
    "biggan/imagenet128": ("biggan", "imagenet128", {}),
    "biggan/imagenet128/batch8": ("biggan", "imagenet128", {"batch_size": 8}),
    "digits/full/size256": (
        "digits",
        "full",
        {"data.source": "folder:photos", "data.size": 256, "data.channels": 3},
    ),
    **{
        f"{name}/full": (name, "full", {})
        for name in (
            "classifier", "superres", "inpainting", "translation", "unpaired", "text_to_image",
            "waveform", "digits", "objectives",
        )
    },
    "digits/demo": ("digits", "demo", {}),
    "stylegan2/small": ("stylegan2", "small", {}),
    "biggan/small": ("biggan", "small", {}),
}  # fmt: skip
"""The experiment, its preset, and changes of the configuration, by the name of the case."""

CLASSES = {"biggan": 1000, "classifier": 1000}  # of ImageNet; others read unlabelled images
MEMORIES = (16, 24, 80)  # GB
USABLE = 0.9

_CASES = flags.DEFINE_list("cases", list(CASES), "The cases.")
_COMPILE = flags.DEFINE_bool("compile", True, "Whether to compile the steps for CPU.")
_GFLOP = flags.DEFINE_float("max_gflop", 6000.0, "No step of more than this is taken.")
_GIB = flags.DEFINE_float("max_gib", 14.0, "No step that needs more memory is taken.")
_SECONDS = flags.DEFINE_float("timeout", 1800.0, "For a training, its compilation included.")
_CHILD = flags.DEFINE_string("child", "", "Used by this program: the case of this process.")
_PLAN = flags.DEFINE_string("plan", "", "Used by this program: the training of this process.")


def configure(case: str, folder: Path) -> tuple[Any, ConfigDict]:
    """The experiment of a case and its configuration, with random images in place of folders."""
    experiment, preset, changes = CASES[case]
    module = importlib.import_module(f"experiments.{experiment}")
    config = module.get_config(preset)
    config.update_from_flattened_dict(changes)
    config.seeds = config.seeds[:1]
    classes = CLASSES.get(experiment, 0)
    count = max(config.batch_size + 4, 40)
    for entry, value in config.data.items():
        if isinstance(value, str) and value.startswith("folder:"):
            place = folder / f"{entry}-{value.removeprefix('folder:').replace('/', '-')}"
            write_images(place, config.data.size, config.data.get("channels", 3), count, classes)
            config.data[entry] = f"folder:{place}"
    return module.EXPERIMENT, config.lock()


def write_images(folder: Path, size: int, channels: int, count: int, classes: int) -> None:
    """Writes `count` random images, or with classes one image in the folder of each class."""
    rng = np.random.default_rng(zlib.crc32(folder.name.encode()))  # other images in each folder
    for number in range(classes or count):
        place = folder / f"{number:04d}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        # Few pixels, enlarged: small files that differ from each other.
        pixels = rng.integers(0, 256, (8, 8, channels), np.uint8)
        image = Image.fromarray(pixels.squeeze()).resize((size, size), Image.Resampling.NEAREST)
        image.save(place / f"{number}.png")


def plans_of(case: str) -> tuple[Mapping[str, Any], Any]:
    """The training plans of a case, by name, and a batch."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, config = configure(case, Path(folder))
        plans, batch = experiment.plan(config, experiment.build(config))
    return plans, jax.tree.map(np.asarray, batch)


# --- the live set of a traced program -----------------------------------------------------------

_CALLS = (
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2",
    "checkpoint", "custom_vjp_call_jaxpr",
)  # fmt: skip
_FUSED = {
    "abs", "add", "add_any", "and", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp",
    "convert_element_type", "cos", "copy", "div", "eq", "erf", "exp", "exp2", "expm1", "floor",
    "ge", "gt", "integer_pow", "iota", "is_finite", "le", "log", "log1p", "logistic", "lt",
    "max", "min", "mul", "ne", "neg", "not", "or", "pow", "reduce_precision", "rem", "reshape",
    "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "squeeze", "expand_dims",
    "stop_gradient", "sub", "tan", "tanh", "optimization_barrier", "xor",
}  # fmt: skip
_REDUCTIONS = {
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
    "reduce_sum",
}  # fmt: skip


class _Operation(NamedTuple):
    """An operation on numbered values; `extra` bytes are live within it."""

    name: str
    inputs: list[int]
    outputs: list[int]
    extra: int


class _Flat:
    """A program without calls: its operations, and the sizes of their values in bytes."""

    def __init__(self, closed: ClosedJaxpr):
        self.sizes: list[int] = []
        self.operations: list[_Operation] = []
        environment: dict[Any, int] = {}
        for variable in (*closed.jaxpr.invars, *closed.jaxpr.constvars):
            environment[variable] = self._new(0)  # arguments are not temporaries
        self._add(closed.jaxpr, environment)
        self.outputs = [environment[v] for v in closed.jaxpr.outvars if not _is_literal(v)]

    def _new(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _add(self, jaxpr: Jaxpr, environment: dict[Any, int]) -> None:
        for equation in jaxpr.eqns:
            inputs = [environment[v] for v in equation.invars if not _is_literal(v)]
            name = equation.primitive.name
            if name in _CALLS and (inner := next(_programs(equation.params), None)):
                body, constants = inner
                if len(body.invars) == len(equation.invars):
                    local: dict[Any, int] = {v: self._new(0) for v in constants}
                    for variable, outer in zip(body.invars, equation.invars, strict=True):
                        known = not _is_literal(outer)
                        local[variable] = environment[outer] if known else self._new(0)
                    self._add(body, local)
                    for variable, result in zip(equation.outvars, body.outvars, strict=True):
                        known = not _is_literal(result)
                        environment[variable] = local[result] if known else self._new(0)
                    continue
            extra = max(
                (live_bytes(ClosedJaxpr(b, ())) for b, _ in _programs(equation.params)), default=0
            )
            outputs = [self._new(_bytes(v.aval)) for v in equation.outvars]
            environment.update(zip(equation.outvars, outputs, strict=True))
            self.operations.append(_Operation(name, inputs, outputs, extra))


def _programs(params: Mapping[str, Any]) -> Iterator[tuple[Jaxpr, Sequence[Any]]]:
    """The programs within an operation (`cond` has several), each with its constants."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr, part.jaxpr.constvars
            elif isinstance(part, Jaxpr):
                yield part, part.constvars


def _is_literal(variable: Any) -> bool:
    return isinstance(variable, Literal)


def _bytes(aval: Any) -> int:
    itemsize = getattr(aval.dtype, "itemsize", 4)
    return math.prod(aval.shape) * itemsize


def live_bytes(closed: ClosedJaxpr, outputs: bool = True) -> int:
    """The estimate `live` of the module's docstring, in bytes.

    Args:
      closed: a program; its arguments are not counted.
      outputs: whether its results are counted.
    """
    program = _Flat(closed)
    if not outputs:
        for value in program.outputs:
            program.sizes[value] = 0
    needed = set(program.outputs)
    operations = []
    for operation in reversed(program.operations):
        if needed & set(operation.outputs):
            needed |= set(operation.inputs)
            operations.append(operation)
    operations.reverse()

    stored = set(program.outputs)  # the values that are not fused
    for operation in operations:
        if operation.name not in _FUSED:
            stored |= set(operation.outputs)
        if operation.name not in _FUSED | _REDUCTIONS:
            stored |= set(operation.inputs)
    sources: dict[int, set[int]] = {}
    last: dict[int, int] = dict.fromkeys(program.outputs, len(operations))
    for position, operation in enumerate(operations):
        read: set[int] = set()
        for value in operation.inputs:
            read |= {value} if value in stored else sources.get(value, set())
        for value in operation.outputs:
            if value not in stored:
                sources[value] = read
        if stored & set(operation.outputs):
            for value in read:
                last[value] = max(last.get(value, 0), position)
    ends: dict[int, list[int]] = {}
    for value, position in last.items():
        ends.setdefault(position, []).append(value)
    live, peak, alive = 0, 0, set()
    for position, operation in enumerate(operations):
        for value in stored & set(operation.outputs):
            alive.add(value)
            live += program.sizes[value]
        peak = max(peak, live + operation.extra)
        for value in (*ends.get(position, ()), *operation.outputs):
            if value in alive and last.get(value, 0) <= position:
                alive.remove(value)
                live -= program.sizes[value]
    return peak


# --- one case -----------------------------------------------------------------------------------


def tree_bytes(tree: Any) -> int:
    """The bytes of arrays or `ShapeDtypeStruct`s; keys are not counted."""
    return sum(
        _bytes(leaf)
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def examine(plan: Any, batch: Any, case: str, name: str) -> Iterator[dict[str, Any]]:
    """The figures of a training, in the order in which they are known."""
    state = jax.eval_shape(plan.init, jax.random.key(0), batch)
    networks = [state.generator, *([state.discriminator] if state.discriminator else [])]
    sizes = [parameter_count(network.variables) for network in networks]
    leading = jax.tree.leaves(batch)[0].shape[0]
    held = tree_bytes(state) + tree_bytes(plan.teacher)
    yield {"case": case, "training": name, "parameters": sizes, "batch": leading, "state": held}

    step = kd.compile_step(plan.step)
    traced = step.trace(state, plan.teacher, batch)
    live = live_bytes(traced.jaxpr, outputs=False)
    arguments = 2 * tree_bytes(state) + tree_bytes(plan.teacher) + tree_bytes(batch)
    yield {"live": live, "needed": arguments + live}
    lowered = traced.lower(lowering_platforms=("cuda",))
    flops = float(lowered.cost_analysis()["flops"])
    yield {"lowered": True, "gflop": flops / 1e9}

    if not _COMPILE.value:
        yield {"step": "not compiled"}
        return
    started = time.perf_counter()
    compiled = step.lower(state, plan.teacher, batch).compile()
    seconds, temporaries = time.perf_counter() - started, xla_temporaries(compiled)
    needed = arguments + max(live, temporaries)
    yield {"compile": seconds, "xla": temporaries, "needed": needed}
    if flops / 1e9 > _GFLOP.value:
        yield {"step": f"not taken: more than {_GFLOP.value:,.0f} GFLOP"}
        return
    if needed > _GIB.value * 2**30:
        yield {"step": f"not taken: more than {_GIB.value:.0f} GiB"}
        return
    current, teacher = plan.init(jax.random.key(0), batch), example_variables(plan.teacher)
    started = time.perf_counter()
    _, metrics = jax.block_until_ready(compiled(current, teacher, batch))
    seconds = time.perf_counter() - started
    wrong = [key for key, value in metrics.items() if not np.isfinite(value).all()]
    yield {"step": f"not finite: {', '.join(wrong)}" if wrong else f"{seconds:.1f} s"}


def example_variables(tree: Any) -> Any:
    """Values in place of a teacher's shapes or zeros: small random parameters, and ones elsewhere.

    Ones suit the statistics of norms and the vectors of spectral normalisation.
    """
    rng = np.random.default_rng(0)

    def value(path: Any, leaf: Any) -> Any:
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        if "params" not in jax.tree_util.keystr(path):
            return np.ones(leaf.shape, leaf.dtype)
        return rng.normal(0, 0.02, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, tree)


def xla_temporaries(compiled: Any) -> int:
    """The bytes of a compiled program's temporaries."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def run_child(case: str, name: str) -> None:
    """Prints the names of the case's trainings, or the figures of one of them, as JSON lines."""
    plans, batch = plans_of(case)
    if not name:
        print(json.dumps(list(plans)), flush=True)
        return
    for figures in examine(plans[name], batch, case, name):
        print(json.dumps(figures), flush=True)


def call_child(case: str, name: str, timeout: float) -> tuple[list[Any], str]:
    """The JSON lines of a child process, and why it failed, or an empty string."""
    command = [sys.executable, "-m", "benchmarks.presets", f"--child={case}", f"--plan={name}"]
    command += [f"--max_gflop={_GFLOP.value}", f"--max_gib={_GIB.value}"]
    command += [f"--compile={_COMPILE.value}"]
    failure = ""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False
        )
        output, code, errors = result.stdout, result.returncode, result.stderr
        if code:
            failure = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
    except subprocess.TimeoutExpired as error:
        partial_output = error.stdout or b""  # bytes, whatever `text` is
        output = partial_output.decode() if isinstance(partial_output, bytes) else partial_output
        failure = f"no result within {timeout:.0f} s"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith(("{", "["))]
    return lines, failure


COLUMNS = (
    "preset: training", "parameters", "batch", "GFLOP", "state MiB", "live MiB", "XLA MiB",
    *(f"{memory} GB" for memory in MEMORIES), "lowered", "compile s", "step",
)  # fmt: skip


def row(figures: Mapping[str, Any], failure: str) -> list[str]:
    """The cells of a training."""

    def mib(name: str) -> str:
        return f"{figures[name] / 2**20:,.0f}" if name in figures else "-"

    counts = " + ".join(f"{count / 1e6:.2f} M" for count in figures.get("parameters", ())) or "-"
    needed = figures.get("needed")
    fits = ["-" if needed is None else _fits(needed, memory) for memory in MEMORIES]
    seconds = f"{figures['compile']:.0f}" if "compile" in figures else "-"
    gflop = f"{figures['gflop']:,.1f}" if "gflop" in figures else "-"
    return [
        f"{figures['case']}: {figures['training']}",
        counts,
        str(figures.get("batch", "-")),
        gflop,
        mib("state"),
        mib("live"),
        mib("xla"),
        *fits,
        "yes" if figures.get("lowered") else "no",
        seconds,
        str(figures.get("step", failure or "-")),
    ]


def _fits(needed: float, memory: int) -> str:
    return "yes" if needed <= USABLE * memory * 1e9 else "no"


def main(_: Sequence[str]) -> None:
    """Prints the table, a row as soon as it is known."""
    if _CHILD.value:
        run_child(_CHILD.value, _PLAN.value)
        return
    if unknown := sorted(set(_CASES.value) - set(CASES)):
        sys.exit(f"there is no case {unknown[0]!r}; there is {', '.join(CASES)}")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for case in _CASES.value:
        names, failure = call_child(case, "", _SECONDS.value)
        results: list[tuple[dict[str, Any], str]] = [
            ({"case": case, "training": "-"}, failure or "no training")
        ]
        for name in names[0] if names else ():
            lines, failure = call_child(case, name, _SECONDS.value)
            figures = {"case": case, "training": name}
            for line in lines:
                figures.update(line)
            print("| " + " | ".join(row(figures, failure)) + " |", flush=True)
            results = []
        for figures, failure in results:
            print("| " + " | ".join(row(figures, failure)) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
