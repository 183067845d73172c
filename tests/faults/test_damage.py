"""A checkpoint damaged anywhere: never restored wrong; the one before it is taken."""

import random
import shutil

import faults
import jax
import pytest
import training
from selection import quick

from kd_jax.checkpoint import Checkpoints

CASES = 100
KINDS = ("generator", "training", "data", "meta", "manifest.json", "")  # "": Orbax's own
HOW = ("0%", "50%", "99%", "flip")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training's checkpoints, its state's shapes, and the states at both of its steps."""
    folder = tmp_path_factory.mktemp("run")
    training.train(folder, training.training_plan(10), training.batches())
    like = jax.eval_shape(lambda: training.training_plan(10).init(jax.random.key(3), example()))
    found = {}
    for step in faults.steps(folder):
        one = folder / f"only{step}"
        shutil.copytree(folder / "checkpoints" / str(step), one / str(step))
        found[step] = faults.digest(restored(one, like)[0])
    assert sorted(found) == [5, 10]
    return folder / "checkpoints", like, found


def example():
    return next(training.batches())


def restored(folder, like, log=print):
    checkpoints = Checkpoints(folder, {}, allow_changes=True, log=log)
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


def victims(folder, kind):
    place = folder / kind if kind else folder
    if place.is_file():
        return [place]
    files = place.iterdir() if not kind else place.rglob("*")
    return sorted(
        p for p in files if p.is_file() and p.name != "manifest.json" and p.stat().st_size
    )


@pytest.mark.parametrize("number", quick(range(CASES), 24))
def test_the_step_before_is_taken(tmp_path, run, number):
    original, like, states = run
    shutil.copytree(original, tmp_path / "checkpoints")
    draw = random.Random(number)
    kind, how = KINDS[number % len(KINDS)], HOW[number // len(KINDS) % len(HOW)]
    victim = draw.choice(victims(tmp_path / "checkpoints" / "10", kind))
    content = victim.read_bytes()
    if how == "flip":
        place = draw.randrange(len(content))
        changed = bytes([content[place] ^ (1 << draw.randrange(8))])
        victim.write_bytes(content[:place] + changed + content[place + 1 :])
    else:
        victim.write_bytes(content[: len(content) * int(how[:-1]) // 100])
    assert victim.read_bytes() != content
    told = []
    state, data = restored(tmp_path / "checkpoints", like, told.append)
    assert faults.digest(state) == states[5]
    assert data["batches"]["position"] == {"next_index": 5}
    (line,) = [line for line in told if "set aside" in line]
    assert "\n" not in line
    assert "and step 5 taken" in line
    # A list of files that is damaged itself may lack a name, and have another.
    assert str(tmp_path / "checkpoints" / "10" if kind == "manifest.json" else victim) in line
    assert (tmp_path / "checkpoints" / "10.damaged").is_dir()


@pytest.mark.parametrize("item", ["generator", "training", "data", "meta"])
def test_an_item_that_is_missing(tmp_path, run, item):
    original, like, states = run
    shutil.copytree(original, tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "10" / item)
    told = []
    state, _ = restored(tmp_path / "checkpoints", like, told.append)
    assert faults.digest(state) == states[5]
    assert any(f"10/{item}/" in line and "is missing" in line for line in told)
