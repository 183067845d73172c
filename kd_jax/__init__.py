"""Distil large image generators into small, fast ones.

From a published file to a measured student in one call:

    result = kd_jax.distill("ffhq.pkl", "runs/small", macs=1 / 25, minutes=60)

Or in parts: a `Network` is two pure functions; a `Setup` is networks, losses, optimizers and a
task; a step is `(state, teacher_variables, batch) -> (state, metrics)`:

    teacher = kd_jax.load("ffhq.pkl")
    setup = kd_jax.Setup(networks, losses, optimizers, task)
    state = kd_jax.init_state(setup, jax.random.key(0), batch)
    step = kd_jax.compile_step(kd_jax.make_train_step(setup))
    state, metrics = step(state, kd_jax.Teacher(teacher.variables), batch)

Modules: `losses`, `methods` (published ones), `models`, `pruning`, `tasks`, `augment`,
`diagnostics`, `pretrained`, `ops`; loaded at their first use: `data`, `checkpoint`, `metrics`,
`evaluate`, `distillation`, `export`.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kd_jax import (
    augment as augment,
    losses as losses,
    methods as methods,
    models as models,
    ops as ops,
    pretrained as pretrained,
    pruning as pruning,
    tasks as tasks,
)
from kd_jax.core.family import (
    Family as Family,
    Interface as Interface,
)
from kd_jax.core.mesh import (
    compile_step as compile_step,
    fully_sharded as fully_sharded,
    initialize as initialize,
    make_mesh as make_mesh,
    place as place,
    place_batch as place_batch,
    replicated as replicated,
)
from kd_jax.core.network import (
    Network as Network,
    connect as connect,
    connect_to as connect_to,
    connected as connected,
    disconnect as disconnect,
    from_factory as from_factory,
    from_functions as from_functions,
    from_linen as from_linen,
    from_nnx as from_nnx,
    tap_shapes as tap_shapes,
)
from kd_jax.core.objective import (
    BoundNetwork as BoundNetwork,
    Forward as Forward,
    Inputs as Inputs,
    Term as Term,
    Weight as Weight,
)
from kd_jax.core.setup import (
    Networks as Networks,
    PerNetwork as PerNetwork,
    Setup as Setup,
    Teacher as Teacher,
)
from kd_jax.core.state import (
    NetworkState as NetworkState,
    TrainState as TrainState,
    init_state as init_state,
)
from kd_jax.core.step import (
    d_step as d_step,
    g_step as g_step,
    make_simultaneous_step as make_simultaneous_step,
    make_train_step as make_train_step,
)
from kd_jax.core.types import (
    MissingTapError as MissingTapError,
    Taps as Taps,
)
from kd_jax.core.wrappers import (
    data_free as data_free,
    ensemble as ensemble,
    for_teacher as for_teacher,
    multi_step as multi_step,
    online_distillation as online_distillation,
    self_distillation as self_distillation,
    skip_nonfinite as skip_nonfinite,
    with_skip_count as with_skip_count,
    with_teachers as with_teachers,
)
from kd_jax.tasks import (
    latents as latents,
    noise as noise,
)
from kd_jax.train import (
    diagnostics as diagnostics,
)

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
    "Model": ("kd_jax.model", "Model"),
    "distill": ("kd_jax.distillation", "distill"),
    "prune": ("kd_jax.distillation", "prune"),
    "distillation": ("kd_jax.distillation", None),
    "export": ("kd_jax.export", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kd_jax' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
