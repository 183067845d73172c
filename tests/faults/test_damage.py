"""A checkpoint damaged anywhere is never restored; the previous one is restored instead."""

import random
import shutil

import faults
import jax
import pytest
import training
from selection import quick

import kd_jax as kd
from kd_jax.train.checkpoint import Checkpoints

CASES = 100
KINDS = ("generator", "training", "data", "meta", "manifest.json", "")  # "": Orbax's own files
DAMAGE = ("0%", "50%", "99%", "flip")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training's checkpoints, its state's shapes, and the digests of its states by step."""
    folder = tmp_path_factory.mktemp("run")
    training.train(folder, training.training_plan(10), training.batches())
    like = jax.eval_shape(
        lambda: kd.with_skip_count(training.training_plan(10).init(jax.random.key(3), example()))
    )
    digests = {}
    for step in faults.steps(folder):
        copy = folder / f"only{step}"
        shutil.copytree(folder / "checkpoints" / str(step), copy / str(step))
        digests[step] = faults.digest(restore(copy, like)[0])
    assert sorted(digests) == [5, 10]
    return folder / "checkpoints", like, digests


def example():
    return next(training.batches())


def restore(folder, like, log=print):
    checkpoints = Checkpoints(folder, {}, allow_changes=True, log=log)
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


def candidates(folder, kind):
    """The files of an item that a test may damage."""
    root = folder / kind if kind else folder
    if root.is_file():
        return [root]
    files = root.iterdir() if not kind else root.rglob("*")
    return sorted(
        p for p in files if p.is_file() and p.name != "manifest.json" and p.stat().st_size
    )


@pytest.mark.parametrize("number", quick(range(CASES), 24))
def test_the_previous_step_is_restored(tmp_path, run, number):
    original, like, states = run
    shutil.copytree(original, tmp_path / "checkpoints")
    rng = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    damage = DAMAGE[number // len(KINDS) % len(DAMAGE)]
    victim = rng.choice(candidates(tmp_path / "checkpoints" / "10", kind))
    content = victim.read_bytes()
    if damage == "flip":
        position = rng.randrange(len(content))
        changed = bytes([content[position] ^ (1 << rng.randrange(8))])
        victim.write_bytes(content[:position] + changed + content[position + 1 :])
    else:
        victim.write_bytes(content[: len(content) * int(damage[:-1]) // 100])
    assert victim.read_bytes() != content
    messages = []
    state, data = restore(tmp_path / "checkpoints", like, messages.append)
    assert faults.digest(state) == states[5]
    assert data["batches"]["position"] == {"next_index": 5}
    (line,) = [line for line in messages if "set aside" in line]
    assert "\n" not in line
    assert "and step 5 taken" in line
    # A damaged manifest may lack a file's name, or list a wrong one.
    assert str(tmp_path / "checkpoints" / "10" if kind == "manifest.json" else victim) in line
    assert (tmp_path / "checkpoints" / "10.damaged").is_dir()


@pytest.mark.parametrize("item", ["generator", "training", "data", "meta"])
def test_a_missing_item(tmp_path, run, item):
    original, like, states = run
    shutil.copytree(original, tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "10" / item)
    messages = []
    state, _ = restore(tmp_path / "checkpoints", like, messages.append)
    assert faults.digest(state) == states[5]
    assert any(f"10/{item}/" in line and "is missing" in line for line in messages)
