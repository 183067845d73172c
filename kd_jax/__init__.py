"""Turn big image generators into small, fast ones.

The core is a handful of pure functions: a `Network` is `init` and `apply`; a recipe is two dicts of
named `Term`s; `make_train_step` makes of them `step(state, teacher_variables, batch)`.
"""

from kd_jax import losses, models, ops
from kd_jax.network import Network, connect, connected, disconnect, from_linen, tap_shapes
from kd_jax.objective import Forward, Inputs, Term, latents
from kd_jax.sharding import (
    compile_step,
    fully_sharded,
    initialize,
    make_mesh,
    place,
    place_batch,
    replicated,
)
from kd_jax.state import Networks, Pair, Player, TrainState, init_state
from kd_jax.step import d_step, data_free, g_step, make_simultaneous_step, make_train_step
from kd_jax.types import MissingTapError, Taps

__all__ = [
    "Forward",
    "Inputs",
    "MissingTapError",
    "Network",
    "Networks",
    "Pair",
    "Player",
    "Taps",
    "Term",
    "TrainState",
    "compile_step",
    "connect",
    "connected",
    "d_step",
    "data_free",
    "disconnect",
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
    "models",
    "ops",
    "place",
    "place_batch",
    "replicated",
    "tap_shapes",
]
