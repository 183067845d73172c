"""Turn big image generators into small, fast ones.

The core is a handful of pure functions: a `Network` is `init` and `apply`; a recipe is two dicts of
named `Term`s; `make_train_step` makes of them `step(state, teacher_variables, batch)`.
"""

from kd_jax import (
    augment,
    degrade,
    health,
    losses,
    models,
    ops,
    pretrained,
    recipes,
    students,
    tasks,
    weights,
)
from kd_jax.modes import (
    data_free,
    guarded,
    online,
    scanned,
    self_taught,
    taught_by,
    together,
)
from kd_jax.network import (
    Network,
    connect,
    connect_to,
    connected,
    disconnect,
    from_linen,
    tap_shapes,
)
from kd_jax.objective import Bound, Forward, Inputs, Term, Weight
from kd_jax.sharding import (
    compile_step,
    fully_sharded,
    initialize,
    make_mesh,
    place,
    place_batch,
    replicated,
)
from kd_jax.state import Networks, Pair, Player, Teacher, TrainState, init_state
from kd_jax.step import d_step, g_step, make_simultaneous_step, make_train_step
from kd_jax.tasks import latents, noise
from kd_jax.types import MissingTapError, Taps

__all__ = [
    "Bound",
    "Forward",
    "Inputs",
    "MissingTapError",
    "Network",
    "Networks",
    "Pair",
    "Player",
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
    "degrade",
    "disconnect",
    "from_linen",
    "fully_sharded",
    "g_step",
    "guarded",
    "health",
    "init_state",
    "initialize",
    "latents",
    "losses",
    "make_mesh",
    "make_simultaneous_step",
    "make_train_step",
    "models",
    "noise",
    "online",
    "ops",
    "place",
    "place_batch",
    "pretrained",
    "recipes",
    "replicated",
    "scanned",
    "self_taught",
    "students",
    "tap_shapes",
    "tasks",
    "taught_by",
    "together",
    "weights",
]
