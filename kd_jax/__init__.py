"""Distil large image generators into small, fast ones.

The core is a handful of pure functions: a `Network` is `init` and `apply`; a method is two dicts of
named `Term`s; `make_train_step` combines them into `step(state, teacher_variables, batch)`.
"""

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
    from_linen,
    tap_shapes,
)
from kd_jax.core.objective import BoundNetwork, Forward, Inputs, Term, Weight
from kd_jax.core.state import Networks, NetworkState, PerNetwork, Teacher, TrainState, init_state
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
    "from_linen",
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
]
