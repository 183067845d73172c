"""Distil large image generators into small, fast ones.

A `Network` is two pure functions; a `Setup` is networks, losses, optimizers and a task; a step is
`(state, teacher_variables, batch) -> (state, metrics)`:

    teacher = kd_jax.load("ffhq.pkl")
    setup = kd_jax.Setup(networks, losses, optimizers, task)
    state = kd_jax.init_state(setup, jax.random.key(0), batch)
    step = kd_jax.compile_step(kd_jax.make_train_step(setup))
    state, metrics = step(state, kd_jax.Teacher(teacher.variables), batch)

Modules: `losses`, `methods` (published ones), `models`, `pruning`, `tasks`, `augment`,
`diagnostics`, `pretrained`, `ops`; loaded at their first use: `data`, `checkpoint`, `metrics`,
`evaluate`.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kd_jax import augment, losses, methods, models, ops, pretrained, pruning, tasks
from kd_jax.core.mesh import (
    compile_step,
    fully_sharded,
    initialize,
    make_mesh,
    place,
    place_batch,
    replicated,
)
from kd_jax.core.network import (
    Network,
    connect,
    connect_to,
    connected,
    disconnect,
    from_factory,
    from_functions,
    from_linen,
    from_nnx,
    tap_shapes,
)
from kd_jax.core.objective import BoundNetwork, Forward, Inputs, Term, Weight
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import NetworkState, TrainState, init_state
from kd_jax.core.step import d_step, g_step, make_simultaneous_step, make_train_step
from kd_jax.core.types import MissingTapError, Taps
from kd_jax.core.wrappers import (
    data_free,
    ensemble,
    for_teacher,
    multi_step,
    online_distillation,
    self_distillation,
    skip_nonfinite,
    with_skip_count,
    with_teachers,
)
from kd_jax.tasks import latents, noise
from kd_jax.train import diagnostics

__all__ = [
    "BoundNetwork",
    "Forward",
    "Inputs",
    "MissingTapError",
    "Network",
    "NetworkState",
    "Networks",
    "PerNetwork",
    "Setup",
    "Taps",
    "Teacher",
    "Term",
    "TrainState",
    "Weight",
    "augment",
    "compile_step",
    "connect",
    "connect_to",
    "connected",
    "d_step",
    "data_free",
    "diagnostics",
    "disconnect",
    "ensemble",
    "for_teacher",
    "from_factory",
    "from_functions",
    "from_linen",
    "from_nnx",
    "fully_sharded",
    "g_step",
    "init_state",
    "initialize",
    "latents",
    "losses",
    "make_mesh",
    "make_simultaneous_step",
    "make_train_step",
    "methods",
    "models",
    "multi_step",
    "noise",
    "online_distillation",
    "ops",
    "place",
    "place_batch",
    "pretrained",
    "pruning",
    "replicated",
    "self_distillation",
    "skip_nonfinite",
    "tap_shapes",
    "tasks",
    "with_skip_count",
    "with_teachers",
]

try:
    __version__ = version("kd_jax")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

# Modules that need more than jax, flax and optax are imported at their first use.
_LAZY = {
    "checkpoint": ("kd_jax.train.checkpoint", None),
    "data": ("kd_jax.data", None),
    "evaluate": ("kd_jax.evaluate", None),
    "metrics": ("kd_jax.metrics", None),
    "fit": ("kd_jax.train.loop", "fit"),
    "load": ("kd_jax.model", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kd_jax' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
