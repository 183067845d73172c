"""Multi-process runs: initialization, collective operations on Python values, error propagation.

Every process runs the same program on its own part of the data. All processes compute, and only the
primary one (process 0) writes files. With one process nothing here communicates.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax.core.checks import differences, shorten
from kd_jax.core.types import Array

T = TypeVar("T")

_TEXT = 1024  # bytes of an error message that are broadcast
_GRACE = 2.0  # seconds in which the other processes may still log their errors


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Calls `jax.distributed.initialize`; must precede any other use of JAX.

    Without arguments the cluster environment provides them: TPU pod, SLURM, Open MPI, Kubernetes.

    Args:
      coordinator: the address at which process 0 listens, `HOST:PORT`.
      processes: the number of processes.
      process: the index of this process, from 0.

    Raises:
      ValueError: only some of the three are given, they are inconsistent, or the processes cannot
        connect.
    """
    arguments = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in arguments.items() if value is None]
    if missing and len(missing) < len(arguments):
        raise ValueError(
            "coordinator, processes and process must be given together; missing: "
            f"{', '.join(missing)}"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"process={process} is not in [0, processes={processes})")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"coordinator={coordinator!r} is not HOST:PORT")
    heartbeat = int(os.environ.get("KD_JAX_HEARTBEAT", "100"))
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=heartbeat,
            # For processes that are killed before they connect. By default JAX's 300 s, since
            # clusters may start processes minutes apart.
            initialization_timeout=3 * heartbeat,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the processes cannot connect: {reason}") from None


def is_primary() -> bool:
    """Whether this is process 0, the one that writes files."""
    return jax.process_index() == 0


def run_on_primary(act: Callable[[], T], error: type[Exception]) -> T | None:
    """Calls `act` in the primary process while the others wait; an error is raised in all of them.

    Args:
      act: called in the primary process only.
      error: the exception type that the other processes raise if `act` raises, with its message.

    Returns:
      The result of `act`; None in the other processes.

    Raises:
      Exception: that of `act`; in the other processes `error`.
    """
    if jax.process_count() == 1:
        return act()
    result, failure = None, None
    if is_primary():
        try:
            result = act()
        except Exception as caught:  # of any type, since the other processes are waiting
            failure = caught
    message = (str(failure) or repr(failure)).encode()[:_TEXT] if failure else b""
    buffer = np.zeros(_TEXT, np.uint8)
    buffer[: len(message)] = np.frombuffer(message, np.uint8)
    received = bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))).rstrip(b"\0")
    if failure is not None:
        raise failure
    if received:
        raise error(received.decode(errors="replace"))
    return result


def check_same(name: str, value: Mapping[str, Any], error: type[Exception]) -> None:
    """Checks that all processes have the same settings: others would train on, each in its way.

    Args:
      name: the name of an entry, for the message: "setting".
      value: JSON values; all processes must call.
      error: the type of the exception that all processes raise at a difference. Its message is one
        line that names the first process which differs from the primary one, and its differences.
    """
    if jax.process_count() == 1:
        return
    primary = json.loads(_share(json.dumps(value).encode(), is_primary()))
    here = json.loads(json.dumps(value))
    changes = list(differences(primary, here))
    differing = allgather(bool(changes))
    if not any(differing):
        return
    first = differing.index(1)
    line = _share(shorten(changes).encode(), jax.process_index() == first).decode()
    raise error(
        f"process {first} has another {name} than process 0 (there: process 0, here: process "
        f"{first}): {line}"
    )


def _share(content: bytes, is_source: bool) -> bytes:
    """The content of the source process, in all processes."""
    share = partial(multihost_utils.broadcast_one_to_all, is_source=is_source)
    buffer = np.zeros(int(share(np.int32(len(content)))), np.uint8)
    if is_source:
        buffer[:] = np.frombuffer(content, np.uint8)
    return bytes(np.asarray(share(buffer)))


def abort(code: int) -> NoReturn:
    """Exits this process without waiting for the others.

    A process that fails by itself must not wait for the others, as JAX does at exit: they are
    waiting for it during a step. They end when its heartbeat times out.
    """
    if not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():  # the exit of the coordinator aborts the others, before they log their errors
        time.sleep(_GRACE)
    os._exit(code)


def broadcast(value: int) -> int:
    """The primary process's value, in all processes; a 32-bit integer."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def allgather(value: int) -> list[int]:
    """The values of all processes, in all processes; 32-bit integers."""
    if jax.process_count() == 1:
        return [value]
    values = multihost_utils.process_allgather(np.int32(value))
    return [int(number) for number in np.asarray(values).reshape(-1)]


def device_get_global(tree: Any) -> Any:
    """Fetches the global arrays of `tree` to this host; all processes must call."""

    def replicate(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        if not isinstance(leaf.sharding, NamedSharding):
            raise TypeError(
                f"an array over several processes must have a NamedSharding, not {leaf.sharding}"
            )
        replicated = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        return jax.jit(lambda x: x, out_shardings=replicated)(leaf)

    return jax.device_get(jax.tree.map(replicate, tree))


class AnyProcess:
    """Whether a flag is set in any process: evaluated one call late, so that it never blocks.

    All processes get the same value at the same step, so that their loops stop together.
    """

    def __init__(self) -> None:
        self._pending: Array | None = None
        if jax.process_count() > 1:
            mesh = Mesh(np.asarray(jax.devices()), ("all",))
            self._split = NamedSharding(mesh, PartitionSpec("all"))
            self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, flag: bool) -> bool:
        """Whether any process's flag was set in the previous call; with one process, `flag`."""
        if jax.process_count() == 1:
            return flag
        flags = np.full(jax.local_device_count(), flag)
        previous, self._pending = (
            self._pending,
            self._any(jax.make_array_from_process_local_data(self._split, flags)),
        )
        return previous is not None and bool(previous)
