"""Checkpoints: bit-exact, verified, and never half there."""

import concurrent.futures
import hashlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import kd_jax as kd
from kd_jax import checkpoint
from kd_jax.architecture import describe
from kd_jax.checkpoint import (
    BestCheckpoint,
    CheckpointError,
    Checkpoints,
    DamagedCheckpointWarning,
    first_difference,
    load_generator,
    load_network,
    save_generator,
)
from kd_jax.network import connect
from kd_jax.sharding import shardings

CONFIGURATION = {"student": {"width": 8}, "seeds": (0, 1)}
PAIR = kd.models.mlp.gan(4, 8)
BATCH = {"image": np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 4, 4, 1)}
PARTS = {
    "nets": kd.Networks(PAIR.generator, PAIR.discriminator),
    "optimizers": kd.PerNetwork(optax.adam(1e-3), optax.adam(1e-3)),
    "g_terms": {
        "g": kd.Term(lambda f, n: (-f.fake_scores, n + 1), init=lambda: jnp.zeros((), jnp.int32))
    },
    "d_terms": {"d": kd.Term(lambda f: f.fake_scores - f.real_scores, every=2)},
    "inputs": kd.latents(3, conditional=False),
}


@pytest.fixture(scope="module")
def states():
    """The states after one, two and three steps."""
    state = jax.jit(lambda: kd.init_state(jax.random.key(5), BATCH, **PARTS))()
    step = jax.jit(kd.make_train_step(**PARTS))
    found = []
    for _ in range(3):
        state, _ = step(state, None, BATCH)
        found.append(jax.tree.map(lambda x: x, state))
    return found


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def opened(path, configuration=CONFIGURATION, **kwargs):
    return Checkpoints(path, configuration, **kwargs)


def saved(path, states, steps=(1, 2)):
    checkpoints = opened(path)
    for step in steps:
        checkpoints.save(step, states[step - 1], {"next": step})
    checkpoints.close()


def test_every_bit_comes_back(tmp_path, states):
    saved(tmp_path, states)
    state, data = opened(tmp_path).restore(jax.eval_shape(lambda: states[0]))
    same(state, states[1])
    assert data == {"next": 2}
    assert type(state) is kd.TrainState


def test_nothing_was_saved(tmp_path, states):
    checkpoints = opened(tmp_path / "new")
    assert checkpoints.restore(states[0]) is None
    assert checkpoints.latest_step() is None


def test_onto_a_mesh(tmp_path, states):
    saved(tmp_path, states)
    mesh = kd.make_mesh(data=4, model=2)
    rule = kd.fully_sharded(min_size=16)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        states[0],
        shardings(states[0], mesh, rule),
    )
    state, _ = opened(tmp_path).restore(like)
    same(state, states[1])
    kernel = state.generator.variables["params"]["Dense_1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, 4)


def test_only_the_latest_are_kept(tmp_path, states):
    saved(tmp_path, states, (1, 2, 3))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdecimal()) == ["2", "3"]


@pytest.mark.parametrize("how", ["no manifest", "empty folder", "leftover"])
def test_a_save_cut_short_never_was(tmp_path, states, how):
    saved(tmp_path, states)
    if how == "no manifest":
        (tmp_path / "2" / "manifest.json").unlink()
    else:
        (tmp_path / {"empty folder": "9", "leftover": "9.orbax-checkpoint-tmp-1"}[how]).mkdir()
    expected = 1 if how == "no manifest" else 2
    checkpoints = opened(tmp_path)
    assert checkpoints.latest_step() == expected
    same(checkpoints.restore(states[0])[0], states[expected - 1])
    checkpoints.save(expected + 1, states[expected], {"next": expected + 1})
    checkpoints.close()
    same(opened(tmp_path).restore(states[0])[0], states[expected])


def files():
    """One file of each kind that a checkpoint has."""
    return ["generator", "training", "data", "meta", "manifest.json"]


@pytest.mark.parametrize("kind", files())
@pytest.mark.parametrize("damage", ["0%", "50%", "99%", "flip", "gone"])
def test_damage_is_named_and_nothing_wrong_restored(tmp_path, states, kind, damage):
    saved(tmp_path, states)
    place = tmp_path / "2" / kind
    candidates = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
    victim = max(candidates, key=lambda p: p.stat().st_size)
    size = victim.stat().st_size
    if damage == "gone":
        victim.unlink()
    elif damage == "flip":
        content = bytearray(victim.read_bytes())
        content[1 if kind == "manifest.json" else size // 2] ^= 1
        victim.write_bytes(content)
    else:
        os.truncate(victim, size * int(damage[:-1]) // 100)
    if kind == "manifest.json" and damage == "gone":
        same(opened(tmp_path).restore(states[0])[0], states[0])
        return
    messages = []
    generator = states[0].ema
    if kind in ("training", "data"):  # which are nothing to the generator
        variables, _ = load_generator(tmp_path)
        generator = states[1].ema
    else:
        with pytest.warns(DamagedCheckpointWarning, match="step 1 is taken") as warned:
            variables, _ = load_generator(tmp_path)
        messages.append(str(warned[0].message))
    same(jax.tree.map(np.asarray, variables), jax.tree.map(np.asarray, dict(generator)))
    told = []
    state, data = opened(tmp_path, log=told.append).restore(states[0])
    same(state, states[0])
    assert data == {"next": 1}
    for message in (*messages, *told):
        assert "\n" not in message
        # A damaged list may lack a file's name, and have another.
        assert message.startswith(str(tmp_path / "2" if kind == "manifest.json" else victim))
    assert len(told) == 1
    assert (tmp_path / "2.damaged").is_dir()
    assert opened(tmp_path).latest_step() == 1


def test_where_every_step_is_damaged_nothing_is_begun_anew(tmp_path, states):
    saved(tmp_path, states)
    for step in (1, 2):
        (tmp_path / str(step) / "meta" / "metadata").write_text("{}")
    for load in (lambda: opened(tmp_path).restore(states[0]), lambda: load_generator(tmp_path)):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: .*/2/meta/meta"):
            load()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_step_set_aside_is_saved_again(tmp_path, states):
    saved(tmp_path, states)
    for again in range(2):
        (tmp_path / "2" / "meta" / "metadata").write_text("{}")
        checkpoints = opened(tmp_path, log=lambda _: None)
        checkpoints.restore(states[0])
        checkpoints.save(2, states[1], {"again": again})
        checkpoints.close()
        same(opened(tmp_path).restore(states[0])[0], states[1])
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2", "2.damaged", "2.damaged-2"}


def test_some_steps_are_kept_for_good(tmp_path, states):
    checkpoints = opened(tmp_path, keep=1, keep_every=3)
    for step in range(1, 8):
        checkpoints.save(step, states[0], {})
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "6", "7"]


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep_every": -1}])
def test_what_cannot_be_kept(tmp_path, options):
    with pytest.raises(ValueError, match="at least"):
        opened(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_save_is_there_once_it_was_waited_for(tmp_path, states, monkeypatch):
    checkpoints = opened(tmp_path)
    checkpoints.save(1, states[0], {})
    checkpoints.wait()
    go_on = threading.Event()
    finish = checkpoints._finish

    def slow(step):
        go_on.wait()
        finish(step)

    monkeypatch.setattr(checkpoints, "_finish", slow)
    checkpoints.save(2, states[1], {})
    checkpoints.check()  # nothing has failed so far
    assert checkpoints.latest_step() == 1
    go_on.set()
    checkpoints.wait()
    assert checkpoints.latest_step() == 2
    checkpoints.close()


def test_the_state_may_change_once_save_returned(tmp_path, states):
    checkpoints = opened(tmp_path)
    changing = jax.tree.map(jnp.copy, states[0])
    checkpoints.save(1, changing, {})
    for leaf in jax.tree.leaves(changing):
        leaf.delete()  # as a donation does
    checkpoints.close()
    same(opened(tmp_path).restore(jax.eval_shape(lambda: states[0]))[0], states[0])


def test_a_failure_in_the_background_is_of_its_step(tmp_path, states, monkeypatch):
    checkpoints = opened(tmp_path)
    checkpoints.save(1, states[0], {})
    checkpoints.wait()

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_manifest", full)
    checkpoints.save(2, states[1], {})
    concurrent.futures.wait([checkpoints._saving[1]])
    with pytest.raises(CheckpointError, match=r"step 2 not saved .*No space left"):
        checkpoints.check()
    monkeypatch.undo()
    assert checkpoints.latest_step() == 1
    checkpoints.save(3, states[2], {})
    checkpoints.close()
    same(opened(tmp_path).restore(states[0])[0], states[2])


@pytest.mark.parametrize(("name", "value"), [("processes", 4), ("jax", "0.0.1"), ("numpy", None)])
def test_another_environment_is_refused_unless_allowed(tmp_path, states, monkeypatch, name, value):
    real = checkpoint._meta

    def other(configuration, architecture):
        meta = real(configuration, architecture)
        return {**meta, "environment": {**meta["environment"], name: value}}

    monkeypatch.setattr(checkpoint, "_meta", other)
    saved(tmp_path, states)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"of another environment: {name} is .* there"):
        opened(tmp_path).restore(states[0])
    told = []
    state, _ = opened(tmp_path, allow_changes=True, log=told.append).restore(states[0])
    same(state, states[1])
    assert len(told) == 1
    assert f"{name} is" in told[0]


def test_another_configuration_is_refused(tmp_path, states):
    saved(tmp_path, states)
    other = opened(tmp_path, {"student": {"width": 16}, "seeds": (0, 1)})
    with pytest.raises(CheckpointError, match=r"student\.width is 8 there, 16 here"):
        other.restore(states[0])


def test_a_full_disk_is_told_and_the_older_step_stays(tmp_path, states, monkeypatch):
    saved(tmp_path, states, (1,))
    checkpoints = opened(tmp_path)

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: no space\nand\nhundreds of lines")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError, match=r"^step 2 not saved .*RESOURCE_EXHAUSTED: no space$"):
        checkpoints.save(2, states[1], {})
    same(opened(tmp_path).restore(states[0])[0], states[0])


def test_saving_nothing_silently_is_no_success(tmp_path, states):
    saved(tmp_path, states, (2,))
    checkpoints = opened(tmp_path)
    with pytest.raises(CheckpointError, match="step 1"):
        checkpoints.save(1, states[0], {})  # Orbax returns False for an older step


def test_the_generator_alone(tmp_path, states):
    saved(tmp_path, states)
    variables, configuration = load_generator(tmp_path)
    same(jax.tree.map(np.asarray, variables), jax.tree.map(np.asarray, dict(states[1].ema)))
    assert configuration == {"student": {"width": 8}, "seeds": [0, 1]}
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_generator(tmp_path / "nowhere")


def test_the_manifest_lists_every_file(tmp_path, states):
    saved(tmp_path, states, (1,))
    folder = tmp_path / "1"
    listed = json.loads((folder / "manifest.json").read_text())
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(listed) == there - {"manifest.json"}


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b is 1 there, 2 here"),
        ({"a": 1}, {}, "a is only there"),
        ({}, {"a": {"b": 1}}, "a is only here"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "a is [1, 2] there, [1, 3] here"),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, "a is 1 there, 2 here"),
        ({"a": {"b": 1}}, {"a": 3}, "a is {'b': 1} there, 3 here"),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 2}}, "a.c is only there"),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, "a is [{'b': 1}] there, [{'b': 2}] here"),
        ({"a": [1]}, {"a": [1, 2]}, "a is [1] there, [1, 2] here"),
        ({"a": None}, {}, "a is only there"),
        ({"a": "1"}, {"a": 1}, "a is '1' there, 1 here"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, None),
    ],
)
def test_the_first_difference(there, here, expected):
    assert first_difference(there, here) == expected


def test_odd_bits_come_back(tmp_path, states):
    odd = np.array([np.nan, -0.0, np.inf, 1e-42, -np.nan], np.float32)
    state = states[0]._replace(
        key=jax.random.key(7, impl="rbg"),
        ema={"params": {"odd": jnp.asarray(odd), "half": jnp.asarray(odd, jnp.bfloat16)}},
    )
    saved(tmp_path, [state], (1,))
    found, _ = opened(tmp_path).restore(jax.eval_shape(lambda: state))
    same(found, state)
    assert found.ema["params"]["half"].dtype == jnp.bfloat16
    draws = (jax.random.normal(key, (3,)) for key in (found.key, jax.random.key(7, impl="rbg")))
    np.testing.assert_array_equal(*draws)


def test_leftovers_are_removed_and_nothing_else(tmp_path, states):
    saved(tmp_path, states, (1,))
    for leftover in (
        "2.orbax-checkpoint-tmp",
        "3.orbax-checkpoint-tmp-17/generator",
        "4",
        "5/data",
        "007/data",
    ):
        (tmp_path / leftover).mkdir(parents=True)
    (tmp_path / "5" / "data" / "metadata").write_text("{}")
    (tmp_path / "6.orbax-checkpoint-tmp-file").write_text("")
    (tmp_path / "notes").mkdir()
    told = []
    checkpoints = opened(tmp_path, log=told.append)
    kept = ["007", "1", "5.unfinished", "notes"]
    assert sorted(p.name for p in tmp_path.iterdir()) == kept
    assert (tmp_path / "5.unfinished" / "data" / "metadata").read_text() == "{}"
    assert told == [f"{tmp_path / '5'} was not finished: it is set aside"]
    checkpoints.save(2, states[1], {})  # which replaces it
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["007", "1", "2", "notes"]


def test_a_folder_that_is_no_checkpoint_is_left_as_it_is(tmp_path):
    """Sub-folders of classes have names like steps."""
    for label in ("0", "1"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "cat.png").write_text("an image")
    with pytest.raises(CheckpointError, match=r"/0 is no checkpoint of a training; choose another"):
        opened(tmp_path)
    assert (tmp_path / "1" / "cat.png").read_text() == "an image"


def test_a_deletion_cut_short_at_any_file_is_no_other_folder(tmp_path, states):
    saved(tmp_path, states)
    (tmp_path / "1" / "manifest.json").unlink()
    while entries := sorted((tmp_path / "1").iterdir()):
        opened(tmp_path, log=lambda _: None).close()
        (tmp_path / "1.unfinished").rename(tmp_path / "1")
        shutil.rmtree(entries[0]) if entries[0].is_dir() else entries[0].unlink()
    same(opened(tmp_path).restore(states[0])[0], states[1])


def test_where_all_manifests_are_lost_nothing_is_begun_anew(tmp_path, states):
    saved(tmp_path, states)
    for step in (1, 2):
        (tmp_path / str(step) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has its manifest\.json \(steps 1, 2\)"):
        opened(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_what_cannot_be_deleted_costs_no_checkpoint(tmp_path, states, monkeypatch):
    told = []
    checkpoints = opened(tmp_path, keep=1, log=told.append)
    checkpoints.save(1, states[0], {})
    checkpoints.wait()

    def busy(*_, **__):
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", busy)
    checkpoints.save(2, states[1], {})
    checkpoints.close()
    monkeypatch.undo()
    assert checkpoints.latest_step() == 2
    (line,) = told
    assert line.startswith(f"warning: {tmp_path / '1'} could not be deleted: ")
    same(opened(tmp_path).restore(states[0])[0], states[1])


def test_the_position_is_that_of_its_step(tmp_path, states, monkeypatch):
    """It is written later, when lists in it may have grown."""
    handler = ocp.JsonCheckpointHandler
    plain, may = handler._save_fn, threading.Event()

    def late(self, *args, **kwargs):
        may.wait(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(handler, "_save_fn", late)
    window = [{"loss": 1.0}]
    checkpoints = opened(tmp_path)
    checkpoints.save(1, states[0], {"window": window})
    window.clear()
    may.set()
    checkpoints.close()
    assert opened(tmp_path).restore(states[0])[1] == {"window": [{"loss": 1.0}]}


LISTS = {
    "empty": ("{}", "lists no file of training/"),
    "no object": ("[]", "is no list of files"),
    "pairs": ("[[1, 2]]", "is no list of files"),
    "no sum": ('{"generator/x": "abc"}', "is no list of files"),
    "outside": (json.dumps({f"{i}/x": "0" * 64 for i in ("training", "data", "generator", "meta")}
                           | {"/dev/null": hashlib.sha256().hexdigest()}), "training/x is missing"),
}  # fmt: skip


@pytest.mark.parametrize("how", LISTS)
def test_a_list_of_files_that_says_little_is_no_list(tmp_path, states, how):
    saved(tmp_path, states)
    text, message = LISTS[how]
    (tmp_path / "2" / "manifest.json").write_text(text)
    told = []
    same(opened(tmp_path, log=told.append).restore(states[0])[0], states[0])
    (line,) = told
    assert message in line


@pytest.mark.parametrize("name", ["/dev/null", "training/../../1/manifest.json"])
def test_files_outside_are_none_of_a_step(tmp_path, states, name):
    saved(tmp_path, states)
    manifest = tmp_path / "2" / "manifest.json"
    found = json.loads(manifest.read_text())
    content = (tmp_path / "2" / name).read_bytes()
    manifest.write_text(json.dumps({**found, name: hashlib.sha256(content).hexdigest()}))
    told = []
    same(opened(tmp_path, log=told.append).restore(states[0])[0], states[0])
    assert f"lists {name!r}, which is outside" in told[0]


def test_a_file_that_cannot_be_read_is_damaged(tmp_path, states):
    saved(tmp_path, states)
    file = tmp_path / "2" / "meta" / "metadata"
    file.unlink()
    file.mkdir()
    told = []
    same(opened(tmp_path, log=told.append).restore(states[0])[0], states[0])
    assert told[0].startswith(f"{file} cannot be read: Is a directory; it is set aside")


def test_another_kind_of_state_is_named_before_it_is_read(tmp_path, states, capfd):
    """Orbax casts to another dtype silently, and says other shapes in thousands of lines."""
    saved(tmp_path, states)

    def other(change):
        variables = jax.tree.map(change, dict(states[0].ema))
        return states[0]._replace(ema=variables)

    wrong = {
        r"generator/params/Dense_0/bias is float32 \(8,\) there, bfloat16 \(8,\) here": other(
            lambda x: x.astype("bfloat16")
        ),
        r"generator/params/Dense_0/bias is float32 \(8,\) there, float32 \(9,\) here": other(
            lambda x: np.zeros((9,), np.float32) if x.ndim == 1 else x
        ),
        r"training/skipped is int32 \(\) there, nothing here": states[0]._replace(skipped=()),
    }
    for message, like in wrong.items():
        with pytest.raises(CheckpointError, match=message) as error:
            opened(tmp_path).restore(like)
        assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_the_step_restored_from_is_not_saved_again(tmp_path, states):
    saved(tmp_path, states, (1,))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    checkpoints = opened(tmp_path)
    checkpoints.restore(states[0])
    checkpoints.save(1, states[1], {"next": 9})
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def damages(content):
    yield from (content[: len(content) * percent // 100] for percent in (0, 50, 99))
    for place in (0, len(content) // 2, len(content) - 1):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_damage_to_any_file_at_all_is_named(tmp_path, states):
    saved(tmp_path, states)
    checkpoints = opened(tmp_path)
    manifest = tmp_path / "2" / "manifest.json"
    victims = [p for p in (tmp_path / "2").rglob("*") if p.is_file() and p != manifest]
    assert len(victims) > 20
    older = jax.tree.map(np.asarray, dict(states[0].ema))
    for victim in victims:
        content = victim.read_bytes()
        for damaged in (*damages(content), None):
            victim.unlink()
            if damaged is not None:
                victim.write_bytes(damaged)
            reason = "is missing" if damaged is None else "is damaged"
            if victim.relative_to(tmp_path / "2").parts[0] in ("training", "data"):
                problem = checkpoint._verify(tmp_path / "2", checkpoint._ITEMS)
                assert problem.startswith(f"{victim} {reason}")
            else:
                with pytest.warns(DamagedCheckpointWarning) as warned:
                    variables, _ = load_generator(tmp_path)
                same(jax.tree.map(np.asarray, variables), older)
                problem = str(warned[0].message)
                assert problem.startswith(f"{victim} {reason}")
            assert "\n" not in problem
            victim.write_bytes(content)
    same(checkpoints.restore(states[0])[0], states[1])  # and whole again, it is taken


def test_a_flipped_bit_anywhere_in_the_manifest_never_gives_wrong_values(tmp_path, states):
    saved(tmp_path, states, (1,))
    manifest = tmp_path / "1" / "manifest.json"
    content = manifest.read_bytes()
    refused, lost = [], []
    for place in range(0, len(content), 41):
        flipped = content[place] ^ 1 << place % 8
        manifest.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        if problem := checkpoint._verify(tmp_path / "1", checkpoint._ITEMS):
            refused.append(problem)
        try:
            variables, _ = load_generator(tmp_path)
        except CheckpointError:
            lost.append(problem)
        else:  # one blank became another, or it is of a file that is nothing to the generator
            same(jax.tree.map(np.asarray, variables), jax.tree.map(np.asarray, states[0].ema))
    assert lost
    assert None not in lost
    assert len(refused) > 0.9 * len(range(0, len(content), 41))
    assert all(str(tmp_path / "1") in line and "\n" not in line for line in refused)


FULL_DISK = """
import resource, sys
import jax
sys.path[:0] = {path}
import test_checkpoint as t
like = jax.eval_shape(lambda: t.kd.init_state(jax.random.key(5), t.BATCH, **t.PARTS))
for folder, limit in zip({folders}, (0, 1000), strict=True):
    checkpoints = t.opened(folder)
    state, _ = checkpoints.restore(like)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        checkpoints.save(2, state, {{}})
        checkpoints.wait()
    except t.CheckpointError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
sys.stdout.flush()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")
def test_files_that_cannot_be_written_in_earnest(tmp_path, states):
    """Orbax's own errors, of its directories' files and of its arrays' files."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        saved(folder, states, (1,))
    here = Path(__file__).parent
    code = FULL_DISK.format(path=[str(here), str(here.parent)], folders=list(map(str, folders)))
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    for line, folder in zip(lines, folders, strict=True):
        assert line.startswith(f"step 2 not saved to {folder}: ")
        same(opened(folder).restore(states[0])[0], states[0])


def test_orbax_is_quiet_only_while_it_works(tmp_path, states, monkeypatch):
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "level", logging.INFO)
    levels = []

    def save(*args, **kwargs):
        levels.append(logger.level)
        raise ZeroDivisionError

    checkpoints = opened(tmp_path)
    monkeypatch.setattr(checkpoints._manager, "save", save)
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(2, states[1], {})
    assert levels == [logging.CRITICAL]
    assert logger.level == logging.INFO


def test_a_checkpoint_says_what_network_it_is_of(tmp_path, states):
    architecture = describe(PAIR.generator, jax.ShapeDtypeStruct((4, 3), np.float32))
    saved = opened(tmp_path / "run", architecture=architecture)
    saved.save(3, states[2], {})
    saved.close()
    made, variables = load_network(tmp_path / "run")
    z = np.ones((2, 3), np.float32)
    expected, _, _ = PAIR.generator.apply(states[2].ema, z)
    np.testing.assert_array_equal(made.network.apply(variables, z)[0], expected)
    assert made.inputs[0].shape == (1, 3)


def test_a_checkpoint_that_does_not_is_refused(tmp_path, states):
    save_generator(tmp_path / "old", states[0].ema, CONFIGURATION)
    with pytest.raises(CheckpointError, match="does not say what network it is of"):
        load_network(tmp_path / "old")
    wrong = {"module": {"class": "os:system", "fields": {}}}
    wrong |= {"style": False, "inputs": [], "classes": 0}
    save_generator(tmp_path / "evil", states[0].ema, CONFIGURATION, wrong)
    with pytest.raises(CheckpointError, match="evil: os:system is in none of"):
        load_network(tmp_path / "evil")


def test_connectors_are_not_deployed(tmp_path):
    student = connect(PAIR.generator, {"hidden0": (1, 5)})
    z = np.ones((1, 3), np.float32)
    variables = student.init(jax.random.key(0), z)
    save_generator(tmp_path / "run", variables, {}, describe(student, z))
    made, loaded = load_network(tmp_path / "run")
    assert "connectors" not in loaded["params"]
    expected = student.apply(variables, z)[0]
    np.testing.assert_array_equal(made.network.apply(loaded, z)[0], expected)


def test_the_best_generator_is_kept(tmp_path, states):
    best = BestCheckpoint(tmp_path / "best", "distance")
    assert best.update(1, 5.0, states[0].ema)
    assert not best.update(2, 5.0, states[1].ema)
    assert not best.update(2, float("nan"), states[1].ema)
    assert best.update(3, 4.0, states[2].ema)
    again = BestCheckpoint(tmp_path / "best", "distance")
    assert again.value == 4.0
    variables, configuration = load_generator(tmp_path / "best")
    same(variables, dict(states[2].ema))
    assert configuration == {"figure": "distance", "value": 4.0, "step": 3}


def test_a_best_generator_that_cannot_be_put_in_place_leaves_the_one_before(
    tmp_path, states, monkeypatch
):
    best = BestCheckpoint(tmp_path / "best", "distance")
    best.update(1, 5.0, states[0].ema)
    rename = Path.rename

    def fails(self, target):
        if self.name == "best.partial":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(CheckpointError, match=r"step 2 not kept in .*Input/output error"):
        best.update(2, 4.0, states[1].ema)
    monkeypatch.undo()
    same(load_generator(tmp_path / "best")[0], dict(states[0].ema))
    # What could not be deleted then is no obstacle.
    shutil.copytree(tmp_path / "best", tmp_path / "best.old")
    assert best.update(3, 3.0, states[2].ema)
    same(load_generator(tmp_path / "best")[0], dict(states[2].ema))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]


def test_the_best_generator_survives_a_cut_at_any_moment(tmp_path, states):
    best = BestCheckpoint(tmp_path / "best", "distance")
    best.update(1, 5.0, states[0].ema)
    # Cut short while the next is written, then between the removal and the renaming.
    shutil.copytree(tmp_path / "best", tmp_path / "best.partial")
    (tmp_path / "best.partial" / "0" / "manifest.json").unlink()
    assert BestCheckpoint(tmp_path / "best", "distance").value == 5.0
    assert not (tmp_path / "best.partial").exists()
    (tmp_path / "best").rename(tmp_path / "best.partial")
    assert BestCheckpoint(tmp_path / "best", "distance").value == 5.0
    same(load_generator(tmp_path / "best")[0], dict(states[0].ema))
    # Between the two renames, and while the old one is deleted.
    (tmp_path / "best").rename(tmp_path / "best.old")
    assert BestCheckpoint(tmp_path / "best", "distance").value == 5.0
    shutil.copytree(tmp_path / "best", tmp_path / "best.old")
    next((tmp_path / "best.old" / "0" / "generator").rglob("d/*")).unlink()
    again = BestCheckpoint(tmp_path / "best", "distance")
    assert again.value == 5.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]
    # It is damaged itself: told, set aside, and the next one is the best.
    next((tmp_path / "best" / "0" / "generator").rglob("d/*")).unlink()
    told = []
    again = BestCheckpoint(tmp_path / "best", "distance", log=told.append)
    assert again.value == math.inf
    assert "is missing; it is set aside" in told[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.damaged"]
    assert again.update(9, 7.0, states[1].ema)
    same(load_generator(tmp_path / "best")[0], dict(states[1].ema))
