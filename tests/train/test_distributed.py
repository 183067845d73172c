"""`kd_jax.train.distributed` in one process; `tests/faults/test_processes.py` starts two."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import kd_jax as kd
from kd_jax.train import distributed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1234", None, None), "missing: processes, process"),
        ((None, 2, None), "missing: coordinator, process"),
        (("localhost:1234", 2, 2), "process=2 .*processes=2"),
        (("localhost:1234", 2, -1), "process=-1 .*processes=2"),
        (("localhost", 2, 0), "coordinator='localhost' is not HOST:PORT"),
    ],
)
def test_inconsistent_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(*arguments)


def test_with_one_process_values_are_unchanged():
    assert distributed.is_primary()
    assert distributed.broadcast(7) == 7
    assert distributed.allgather(7) == [7]
    assert distributed.run_on_primary(lambda: 5, KeyError) == 5
    with pytest.raises(ValueError, match="not a number"):
        distributed.run_on_primary(lambda: int("not a number"), KeyError)
    with pytest.raises(SystemExit) as error:
        distributed.abort(7)
    assert error.value.code == 7
    any_process = distributed.AnyProcess()
    assert [any_process(flag) for flag in (False, True, False)] == [False, True, False]


def test_sharded_arrays_are_fetched_completely():
    mesh = kd.make_mesh(data=2, model=4)
    expected = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    split = jax.device_put(expected, NamedSharding(mesh, PartitionSpec("data", "model")))
    fetched = distributed.device_get_global({"split": split, "number": 3, "plain": expected})
    np.testing.assert_array_equal(fetched["split"], expected)
    np.testing.assert_array_equal(fetched["plain"], expected)
    assert fetched["number"] == 3
