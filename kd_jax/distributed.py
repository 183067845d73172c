"""Several processes as one run: joining them, and what they have to agree on.

Every process runs the same program on its own part of the data. The first one writes; all of them
compute. With one process everything here is free.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax.types import Array

T = TypeVar("T")

_TEXT = 1024  # bytes of an error that the others are told
_GRACE = 2.0  # seconds


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of several (`jax.distributed`); before anything else of JAX.

    Without arguments the environment says which: a TPU pod, SLURM, Open MPI, Kubernetes.

    Args:
      coordinator: where the first process listens, `HOST:PORT`.
      processes: how many there are.
      process: which of them this is, from 0.

    Raises:
      ValueError: only some of the three are given, they do not fit, or no process was found.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"coordinator, processes and process go together; {', '.join(missing)} not given"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"process={process} is none of processes={processes}, from 0")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"coordinator={coordinator!r} is not HOST:PORT")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=int(os.environ.get("KD_JAX_HEARTBEAT", "100")),
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the processes do not find together: {reason}") from None


def is_primary() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def run_on_primary(act: Callable[[], T], error: type[Exception]) -> T | None:
    """What the first process does while the others wait: if it fails, all of them do.

    Args:
      act: called in the first process alone.
      error: what the others raise where `act` raises, with its text.

    Returns:
      What `act` returned; None in the other processes.

    Raises:
      Exception: what `act` raised; in the other processes `error`.
    """
    if jax.process_count() == 1:
        return act()
    result, failure = None, None
    if is_primary():
        try:
            result = act()
        except Exception as caught:  # whatever it is, somebody is waiting
            failure = caught
    told = (str(failure) or repr(failure)).encode()[:_TEXT] if failure else b""
    text = np.zeros(_TEXT, np.uint8)
    text[: len(told)] = np.frombuffer(told, np.uint8)
    heard = bytes(np.asarray(multihost_utils.broadcast_one_to_all(text))).rstrip(b"\0")
    if failure is not None:
        raise failure
    if heard:
        raise error(heard.decode(errors="replace"))
    return result


def abort(code: int) -> NoReturn:
    """Ends this process, without the others if there are any.

    A process that fails alone must not wait for the others, as JAX does at its exit: they wait for
    it in the midst of a step. They end when its heartbeat is missed.
    """
    if not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():  # Without the coordinator the others are aborted: they may have a word to say.
        time.sleep(_GRACE)
    os._exit(code)


def broadcast(value: int) -> int:
    """The first process's number, in all of them; a number of 32 bits."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def allgather(value: int) -> list[int]:
    """Every process's number, in all of them; numbers of 32 bits."""
    if jax.process_count() == 1:
        return [value]
    found = multihost_utils.process_allgather(np.int32(value))
    return [int(number) for number in np.asarray(found).reshape(-1)]


def device_get_global(tree: Any) -> Any:
    """The arrays of `tree` on this host, whole, wherever their parts live; all processes call."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        if not isinstance(leaf.sharding, NamedSharding):
            raise TypeError(f"an array of several processes with the sharding {leaf.sharding}")
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        return jax.jit(lambda x: x, out_shardings=everywhere)(leaf)

    return jax.device_get(jax.tree.map(whole, tree))


class AnyProcess:
    """Whether any process says yes: asked at every step, answered one step late, never waited for.

    All processes get the same answer at the same step, which is what a loop that is to end needs.
    """

    def __init__(self) -> None:
        self._asked: Array | None = None
        if jax.process_count() > 1:
            mesh = Mesh(np.asarray(jax.devices()), ("all",))
            self._split = NamedSharding(mesh, PartitionSpec("all"))
            self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, mine: bool) -> bool:
        """What was answered to the question before this one; with one process, `mine`."""
        if jax.process_count() == 1:
            return mine
        flags = np.full(jax.local_device_count(), mine)
        before, self._asked = (
            self._asked,
            self._any(jax.make_array_from_process_local_data(self._split, flags)),
        )
        return before is not None and bool(before)
