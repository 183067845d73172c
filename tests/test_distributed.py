"""What one process can say of several; `tests/faults/test_processes.py` has two of them."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import kd_jax as kd
from kd_jax import distributed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1234", None, None), "go together; processes, process not given"),
        ((None, 2, None), "coordinator, process not given"),
        (("localhost:1234", 2, 2), "process=2 is none of processes=2, from 0"),
        (("localhost:1234", 2, -1), "process=-1 is none"),
        (("localhost", 2, 0), "coordinator='localhost' is not HOST:PORT"),
    ],
)
def test_what_does_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(*given)


def test_alone_everything_is_as_it_is():
    assert distributed.is_primary()
    assert distributed.broadcast(7) == 7
    assert distributed.allgather(7) == [7]
    assert distributed.run_on_primary(lambda: 5, KeyError) == 5
    with pytest.raises(ValueError, match="its own"):
        distributed.run_on_primary(lambda: int("its own"), KeyError)
    with pytest.raises(SystemExit) as ended:
        distributed.abort(7)
    assert ended.value.code == 7
    asked = distributed.AnyProcess()
    assert [asked(flag) for flag in (False, True, False)] == [False, True, False]


def test_what_is_split_is_fetched_whole():
    mesh = kd.make_mesh(data=2, model=4)
    whole = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    split = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("data", "model")))
    found = distributed.device_get_global({"split": split, "number": 3, "plain": whole})
    np.testing.assert_array_equal(found["split"], whole)
    np.testing.assert_array_equal(found["plain"], whole)
    assert found["number"] == 3
