"""Checkpoints are bit-exact, verified, and never restored incomplete."""

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
from kd_jax.core.architecture import describe
from kd_jax.core.checks import differences
from kd_jax.core.mesh import shardings
from kd_jax.core.network import connect
from kd_jax.train import checkpoint
from kd_jax.train.checkpoint import (
    BestCheckpoint,
    CheckpointError,
    Checkpoints,
    DamagedCheckpointWarning,
    load_generator,
    load_network,
    save_generator,
)

CONFIGURATION = {"student": {"width": 8}, "seeds": (0, 1)}
PAIR = kd.models.mlp.gan(4, 8)
BATCH = {"image": np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 4, 4, 1)}
PARTS = {
    "networks": kd.Networks(PAIR.generator, PAIR.discriminator),
    "optimizers": kd.PerNetwork(optax.adam(1e-3), optax.adam(1e-3)),
    "task": kd.latents(3),
    "losses": kd.PerNetwork(
        {
            "g": kd.Term(
                lambda f, n: (-f.discriminator.fake_scores, n + 1),
                init=lambda: jnp.zeros((), jnp.int32),
            )
        },
        {
            "d": kd.Term(
                lambda f: f.discriminator.fake_scores - f.discriminator.real_scores, every=2
            )
        },
    ),
}


def initial_state():
    return kd.with_skip_count(kd.init_state(kd.Setup(**PARTS), jax.random.key(5), BATCH))


@pytest.fixture(scope="module")
def states():
    """The states after one, two and three steps."""
    state = initial_state()
    step = jax.jit(kd.make_train_step(kd.Setup(**PARTS)))
    history = []
    for _ in range(3):
        state, _ = step(state, None, BATCH)
        history.append(jax.tree.map(lambda x: x, state))
    return history


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def open_checkpoints(path, configuration=CONFIGURATION, **kwargs):
    return Checkpoints(path, configuration, **kwargs)


def save_steps(path, states, steps=(1, 2)):
    checkpoints = open_checkpoints(path)
    for step in steps:
        checkpoints.save(step, states[step - 1], {"next": step})
    checkpoints.close()


def test_a_restored_state_is_bit_exact(tmp_path, states):
    save_steps(tmp_path, states)
    state, data = open_checkpoints(tmp_path).restore(jax.eval_shape(lambda: states[0]))
    assert_same(state, states[1])
    assert data == {"next": 2}
    assert type(state) is kd.TrainState


def test_restore_without_checkpoints_is_none(tmp_path, states):
    checkpoints = open_checkpoints(tmp_path / "new")
    assert checkpoints.restore(states[0]) is None
    assert checkpoints.latest_step() is None


def test_restore_onto_a_mesh(tmp_path, states):
    save_steps(tmp_path, states)
    mesh = kd.make_mesh(data=4, model=2)
    rule = kd.fully_sharded(min_size=16)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        states[0],
        shardings(states[0], mesh, rule),
    )
    state, _ = open_checkpoints(tmp_path).restore(like)
    assert_same(state, states[1])
    kernel = state.generator.variables["params"]["Dense_1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, 4)


def test_only_the_latest_are_kept(tmp_path, states):
    save_steps(tmp_path, states, (1, 2, 3))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdecimal()) == ["2", "3"]


@pytest.mark.parametrize("how", ["no manifest", "empty folder", "leftover"])
def test_an_interrupted_save_is_ignored(tmp_path, states, how):
    save_steps(tmp_path, states)
    if how == "no manifest":
        (tmp_path / "2" / "manifest.json").unlink()
    else:
        (tmp_path / {"empty folder": "9", "leftover": "9.orbax-checkpoint-tmp-1"}[how]).mkdir()
    expected = 1 if how == "no manifest" else 2
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.latest_step() == expected
    assert_same(checkpoints.restore(states[0])[0], states[expected - 1])
    checkpoints.save(expected + 1, states[expected], {"next": expected + 1})
    checkpoints.close()
    assert_same(open_checkpoints(tmp_path).restore(states[0])[0], states[expected])


def item_names():
    """The items of a step, and its manifest."""
    return ["generator", "training", "data", "meta", "manifest.json"]


@pytest.mark.parametrize("kind", item_names())
@pytest.mark.parametrize("damage", ["0%", "50%", "99%", "flip", "gone"])
def test_damage_is_named_and_the_previous_step_restored(tmp_path, states, kind, damage):
    save_steps(tmp_path, states)
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
        assert_same(open_checkpoints(tmp_path).restore(states[0])[0], states[0])
        return
    messages = []
    generator = states[0].ema
    if kind in ("training", "data"):  # not read by load_generator
        variables, _ = load_generator(tmp_path)
        generator = states[1].ema
    else:
        with pytest.warns(DamagedCheckpointWarning, match="step 1 is loaded") as warnings:
            variables, _ = load_generator(tmp_path)
        messages.append(str(warnings[0].message))
    assert_same(jax.tree.map(np.asarray, variables), jax.tree.map(np.asarray, dict(generator)))
    logged = []
    state, data = open_checkpoints(tmp_path, log=logged.append).restore(states[0])
    assert_same(state, states[0])
    assert data == {"next": 1}
    for message in (*messages, *logged):
        assert "\n" not in message
        # A damaged manifest may lack a file's name and contain another.
        assert message.startswith(str(tmp_path / "2" if kind == "manifest.json" else victim))
    assert len(logged) == 1
    assert (tmp_path / "2.damaged").is_dir()
    assert open_checkpoints(tmp_path).latest_step() == 1


def test_no_restart_if_every_step_is_damaged(tmp_path, states):
    save_steps(tmp_path, states)
    for step in (1, 2):
        (tmp_path / str(step) / "meta" / "metadata").write_text("{}")
    for load in (
        lambda: open_checkpoints(tmp_path).restore(states[0]),
        lambda: load_generator(tmp_path),
    ):
        with pytest.raises(CheckpointError, match=r"no intact checkpoint in .*: .*/2/meta/meta"):
            load()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_damaged_step_is_renamed_and_saved_again(tmp_path, states):
    save_steps(tmp_path, states)
    for again in range(2):
        (tmp_path / "2" / "meta" / "metadata").write_text("{}")
        checkpoints = open_checkpoints(tmp_path, log=lambda _: None)
        checkpoints.restore(states[0])
        checkpoints.save(2, states[1], {"again": again})
        checkpoints.close()
        assert_same(open_checkpoints(tmp_path).restore(states[0])[0], states[1])
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2", "2.damaged", "2.damaged-2"}


def test_keep_every_keeps_steps_permanently(tmp_path, states):
    checkpoints = open_checkpoints(tmp_path, keep=1, keep_every=3)
    for step in range(1, 8):
        checkpoints.save(step, states[0], {})
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "6", "7"]


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep_every": -1}])
def test_invalid_keep_options_are_rejected(tmp_path, options):
    with pytest.raises(ValueError, match="at least"):
        open_checkpoints(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_save_is_complete_after_wait(tmp_path, states, monkeypatch):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, states[0], {})
    checkpoints.wait()
    resume = threading.Event()
    finish = checkpoints._finish

    def slow(step):
        resume.wait()
        finish(step)

    monkeypatch.setattr(checkpoints, "_finish", slow)
    checkpoints.save(2, states[1], {})
    checkpoints.check()  # no failure yet
    assert checkpoints.latest_step() == 1
    resume.set()
    checkpoints.wait()
    assert checkpoints.latest_step() == 2
    checkpoints.close()


def test_the_state_may_be_donated_after_save_returns(tmp_path, states):
    checkpoints = open_checkpoints(tmp_path)
    donated = jax.tree.map(jnp.copy, states[0])
    checkpoints.save(1, donated, {})
    for leaf in jax.tree.leaves(donated):
        leaf.delete()  # as a donation does
    checkpoints.close()
    assert_same(open_checkpoints(tmp_path).restore(jax.eval_shape(lambda: states[0]))[0], states[0])


def test_a_background_failure_names_its_step(tmp_path, states, monkeypatch):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, states[0], {})
    checkpoints.wait()

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.manifest, "write", full)
    checkpoints.save(2, states[1], {})
    concurrent.futures.wait([checkpoints._saving[1]])
    with pytest.raises(CheckpointError, match=r"step 2 not saved .*No space left"):
        checkpoints.check()
    monkeypatch.undo()
    assert checkpoints.latest_step() == 1
    checkpoints.save(3, states[2], {})
    checkpoints.close()
    assert_same(open_checkpoints(tmp_path).restore(states[0])[0], states[2])


@pytest.mark.parametrize(("name", "value"), [("processes", 4), ("jax", "0.0.1"), ("numpy", None)])
def test_another_environment_is_rejected_unless_allowed(tmp_path, states, monkeypatch, name, value):
    make_meta = checkpoint._make_meta

    def other(configuration, architecture):
        meta = make_meta(configuration, architecture)
        return {**meta, "environment": {**meta["environment"], name: value}}

    monkeypatch.setattr(checkpoint, "_make_meta", other)
    save_steps(tmp_path, states)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"environment: {name} is .* there"):
        open_checkpoints(tmp_path).restore(states[0])
    logged = []
    state, _ = open_checkpoints(tmp_path, allow_changes=True, log=logged.append).restore(states[0])
    assert_same(state, states[1])
    assert len(logged) == 1
    assert f"{name} is" in logged[0]


def test_another_configuration_is_rejected(tmp_path, states):
    save_steps(tmp_path, states)
    other = open_checkpoints(tmp_path, {"student": {"width": 16}, "seeds": (0, 1)})
    with pytest.raises(CheckpointError, match=r"student\.width is 8 there, 16 here"):
        other.restore(states[0])


def test_a_full_disk_is_reported_and_the_older_step_remains(tmp_path, states, monkeypatch):
    save_steps(tmp_path, states, (1,))
    checkpoints = open_checkpoints(tmp_path)

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: no space\nand\nhundreds of lines")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError, match=r"^step 2 not saved .*RESOURCE_EXHAUSTED: no space$"):
        checkpoints.save(2, states[1], {})
    assert_same(open_checkpoints(tmp_path).restore(states[0])[0], states[0])


def test_an_older_step_is_not_silently_skipped(tmp_path, states):
    save_steps(tmp_path, states, (2,))
    checkpoints = open_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="step 1"):
        checkpoints.save(1, states[0], {})  # Orbax returns False for an older step


def test_load_generator(tmp_path, states):
    save_steps(tmp_path, states)
    variables, configuration = load_generator(tmp_path)
    assert_same(jax.tree.map(np.asarray, variables), jax.tree.map(np.asarray, dict(states[1].ema)))
    assert configuration == {"student": {"width": 8}, "seeds": [0, 1]}
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_generator(tmp_path / "nowhere")


def test_the_manifest_lists_every_file(tmp_path, states):
    save_steps(tmp_path, states, (1,))
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
def test_the_differences(there, here, expected):
    assert next(differences(there, here), None) == expected


def test_special_values_and_dtypes_are_restored(tmp_path, states):
    odd = np.array([np.nan, -0.0, np.inf, 1e-42, -np.nan], np.float32)
    state = states[0]._replace(
        key=jax.random.key(7, impl="rbg"),
        ema={"params": {"odd": jnp.asarray(odd), "half": jnp.asarray(odd, jnp.bfloat16)}},
    )
    save_steps(tmp_path, [state], (1,))
    restored, _ = open_checkpoints(tmp_path).restore(jax.eval_shape(lambda: state))
    assert_same(restored, state)
    assert restored.ema["params"]["half"].dtype == jnp.bfloat16
    draws = (jax.random.normal(key, (3,)) for key in (restored.key, jax.random.key(7, impl="rbg")))
    np.testing.assert_array_equal(*draws)


def test_only_leftovers_are_removed(tmp_path, states):
    save_steps(tmp_path, states, (1,))
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
    logged = []
    checkpoints = open_checkpoints(tmp_path, log=logged.append)
    expected = ["007", "1", "5.unfinished", "notes"]
    assert sorted(p.name for p in tmp_path.iterdir()) == expected
    assert (tmp_path / "5.unfinished" / "data" / "metadata").read_text() == "{}"
    assert logged == [f"{tmp_path / '5'} was not finished: it is set aside"]
    checkpoints.save(2, states[1], {})  # replaces the unfinished one
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["007", "1", "2", "notes"]


def test_a_folder_of_other_files_is_not_modified(tmp_path):
    """Class folders of an image dataset may be named like steps."""
    for label in ("0", "1"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "cat.png").write_text("an image")
    with pytest.raises(CheckpointError, match=r"/0 is not a training checkpoint"):
        open_checkpoints(tmp_path)
    assert (tmp_path / "1" / "cat.png").read_text() == "an image"


def test_a_deletion_interrupted_at_any_file_is_recognized(tmp_path, states):
    save_steps(tmp_path, states)
    (tmp_path / "1" / "manifest.json").unlink()
    while entries := sorted((tmp_path / "1").iterdir()):
        open_checkpoints(tmp_path, log=lambda _: None).close()
        (tmp_path / "1.unfinished").rename(tmp_path / "1")
        shutil.rmtree(entries[0]) if entries[0].is_dir() else entries[0].unlink()
    assert_same(open_checkpoints(tmp_path).restore(states[0])[0], states[1])


def test_no_restart_if_all_manifests_are_missing(tmp_path, states):
    save_steps(tmp_path, states)
    for step in (1, 2):
        (tmp_path / str(step) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has its manifest\.json \(steps 1, 2\)"):
        open_checkpoints(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_failed_deletion_does_not_fail_the_save(tmp_path, states, monkeypatch):
    logged = []
    checkpoints = open_checkpoints(tmp_path, keep=1, log=logged.append)
    checkpoints.save(1, states[0], {})
    checkpoints.wait()

    def busy(*_, **__):
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", busy)
    checkpoints.save(2, states[1], {})
    checkpoints.close()
    monkeypatch.undo()
    assert checkpoints.latest_step() == 2
    (line,) = logged
    assert line.startswith(f"warning: {tmp_path / '1'} could not be deleted: ")
    assert_same(open_checkpoints(tmp_path).restore(states[0])[0], states[1])


def test_the_data_position_is_copied_by_save(tmp_path, states, monkeypatch):
    """It is written later, when its lists may have changed."""
    handler = ocp.JsonCheckpointHandler
    save_fn, released = handler._save_fn, threading.Event()

    def late(self, *args, **kwargs):
        released.wait(1)
        return save_fn(self, *args, **kwargs)

    monkeypatch.setattr(handler, "_save_fn", late)
    window = [{"loss": 1.0}]
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, states[0], {"window": window})
    window.clear()
    released.set()
    checkpoints.close()
    assert open_checkpoints(tmp_path).restore(states[0])[1] == {"window": [{"loss": 1.0}]}


LISTS = {
    "empty": ("{}", "lists no file of training/"),
    "no object": ("[]", "not an object"),
    "pairs": ("[[1, 2]]", "not an object"),
    "no sum": ('{"generator/x": "abc"}', "is not an object of file names"),
    "outside": (json.dumps({f"{i}/x": "0" * 64 for i in ("training", "data", "generator", "meta")}
                           | {"/dev/null": hashlib.sha256().hexdigest()}), "training/x is missing"),
}  # fmt: skip


@pytest.mark.parametrize("how", LISTS)
def test_invalid_manifests_are_detected(tmp_path, states, how):
    save_steps(tmp_path, states)
    text, message = LISTS[how]
    (tmp_path / "2" / "manifest.json").write_text(text)
    logged = []
    assert_same(open_checkpoints(tmp_path, log=logged.append).restore(states[0])[0], states[0])
    (line,) = logged
    assert message in line


@pytest.mark.parametrize("name", ["/dev/null", "training/../../1/manifest.json"])
def test_a_manifest_must_not_list_files_outside(tmp_path, states, name):
    save_steps(tmp_path, states)
    manifest = tmp_path / "2" / "manifest.json"
    checksums = json.loads(manifest.read_text())
    content = (tmp_path / "2" / name).read_bytes()
    manifest.write_text(json.dumps({**checksums, name: hashlib.sha256(content).hexdigest()}))
    logged = []
    assert_same(open_checkpoints(tmp_path, log=logged.append).restore(states[0])[0], states[0])
    assert f"lists {name!r}, which is outside" in logged[0]


def test_an_unreadable_file_is_damage(tmp_path, states):
    save_steps(tmp_path, states)
    file = tmp_path / "2" / "meta" / "metadata"
    file.unlink()
    file.mkdir()
    logged = []
    assert_same(open_checkpoints(tmp_path, log=logged.append).restore(states[0])[0], states[0])
    assert logged[0].startswith(f"{file} is not a regular file")


def test_a_mismatched_state_is_named_before_restoring(tmp_path, states, capfd):
    """Orbax casts other dtypes silently, and reports other shapes in thousands of lines."""
    save_steps(tmp_path, states)

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
        r"training/skipped is int32 \(\) there, nothing here": states[0]._replace(wrappers={}),
    }
    for message, like in wrong.items():
        with pytest.raises(CheckpointError, match=message) as error:
            open_checkpoints(tmp_path).restore(like)
        assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_the_step_restored_from_is_not_saved_again(tmp_path, states):
    save_steps(tmp_path, states, (1,))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.restore(states[0])
    checkpoints.save(1, states[1], {"next": 9})
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def damages(content):
    yield from (content[: len(content) * percent // 100] for percent in (0, 50, 99))
    for place in (0, len(content) // 2, len(content) - 1):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_damage_to_any_file_is_named(tmp_path, states):
    save_steps(tmp_path, states)
    checkpoints = open_checkpoints(tmp_path)
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
                problem = checkpoint.manifest.verify(tmp_path / "2", checkpoint.manifest.ITEMS)
                assert problem.startswith(f"{victim} {reason}")
            else:
                with pytest.warns(DamagedCheckpointWarning) as warnings:
                    variables, _ = load_generator(tmp_path)
                assert_same(jax.tree.map(np.asarray, variables), older)
                problem = str(warnings[0].message)
                assert problem.startswith(f"{victim} {reason}")
            assert "\n" not in problem
            victim.write_bytes(content)
    assert_same(checkpoints.restore(states[0])[0], states[1])  # restored files are intact again


def test_a_flipped_bit_in_the_manifest_never_gives_wrong_values(tmp_path, states):
    save_steps(tmp_path, states, (1,))
    manifest = tmp_path / "1" / "manifest.json"
    content = manifest.read_bytes()
    problems, failures = [], []
    for place in range(0, len(content), 41):
        flipped = content[place] ^ 1 << place % 8
        manifest.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        if problem := checkpoint.manifest.verify(tmp_path / "1", checkpoint.manifest.ITEMS):
            problems.append(problem)
        try:
            variables, _ = load_generator(tmp_path)
        except CheckpointError:
            failures.append(problem)
        else:  # changed whitespace, or a file that load_generator does not read
            assert_same(
                jax.tree.map(np.asarray, variables), jax.tree.map(np.asarray, states[0].ema)
            )
    assert failures
    assert None not in failures
    assert len(problems) > 0.9 * len(range(0, len(content), 41))
    assert all(str(tmp_path / "1") in line and "\n" not in line for line in problems)


FULL_DISK = """
import resource, sys
import jax
sys.path[:0] = {path}
import test_checkpoint as t
like = jax.eval_shape(t.initial_state)
for folder, limit in zip({folders}, (0, 1000), strict=True):
    checkpoints = t.open_checkpoints(folder)
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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_a_real_limit_on_file_sizes(tmp_path, states):
    """Orbax's own errors for its metadata files and its array files."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        save_steps(folder, states, (1,))
    here = Path(__file__).parent
    code = FULL_DISK.format(path=[str(here), str(here.parent)], folders=list(map(str, folders)))
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    lines = process.stdout.splitlines()
    assert len(lines) == 2
    for line, folder in zip(lines, folders, strict=True):
        assert line.startswith(f"step 2 not saved to {folder}: ")
        assert_same(open_checkpoints(folder).restore(states[0])[0], states[0])


def test_orbax_is_silenced_only_during_its_calls(tmp_path, states, monkeypatch):
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "level", logging.INFO)
    levels = []

    def save(*args, **kwargs):
        levels.append(logger.level)
        raise ZeroDivisionError

    checkpoints = open_checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._manager, "save", save)
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(2, states[1], {})
    assert levels == [logging.CRITICAL]
    assert logger.level == logging.INFO


def test_load_network(tmp_path, states):
    description = describe(PAIR.generator, jax.ShapeDtypeStruct((4, 3), np.float32))
    checkpoints = open_checkpoints(tmp_path / "run", architecture=description)
    checkpoints.save(3, states[2], {})
    checkpoints.close()
    architecture, variables = load_network(tmp_path / "run")
    z = np.ones((2, 3), np.float32)
    expected, _, _ = PAIR.generator.apply(states[2].ema, z)
    np.testing.assert_array_equal(architecture.network.apply(variables, z)[0], expected)
    assert architecture.inputs[0].shape == (1, 3)


def test_load_network_needs_a_valid_description(tmp_path, states):
    save_generator(tmp_path / "old", states[0].ema, CONFIGURATION)
    with pytest.raises(CheckpointError, match="no description of its network"):
        load_network(tmp_path / "old")
    wrong = {"module": {"class": "os:system", "fields": {}}}
    wrong |= {"style": False, "inputs": [], "classes": 0}
    save_generator(tmp_path / "evil", states[0].ema, CONFIGURATION, wrong)
    with pytest.raises(CheckpointError, match="evil: os:system is not in"):
        load_network(tmp_path / "evil")


def test_load_network_removes_connectors(tmp_path):
    student = connect(PAIR.generator, {"hidden0": (1, 5)})
    z = np.ones((1, 3), np.float32)
    variables = student.init(jax.random.key(0), z)
    save_generator(tmp_path / "run", variables, {}, describe(student, z))
    architecture, loaded = load_network(tmp_path / "run")
    assert "connectors" not in loaded["params"]
    expected = student.apply(variables, z)[0]
    np.testing.assert_array_equal(architecture.network.apply(loaded, z)[0], expected)


def test_the_best_generator_is_kept(tmp_path, states):
    best = BestCheckpoint(tmp_path / "best", "distance")
    assert best.update(1, 5.0, states[0].ema)
    assert not best.update(2, 5.0, states[1].ema)
    assert not best.update(2, float("nan"), states[1].ema)
    assert best.update(3, 4.0, states[2].ema)
    reopened = BestCheckpoint(tmp_path / "best", "distance")
    assert reopened.value == 4.0
    variables, configuration = load_generator(tmp_path / "best")
    assert_same(variables, dict(states[2].ema))
    assert configuration == {"figure": "distance", "value": 4.0, "step": 3}


def test_a_failed_update_keeps_the_previous_best_generator(tmp_path, states, monkeypatch):
    best = BestCheckpoint(tmp_path / "best", "distance")
    best.update(1, 5.0, states[0].ema)
    rename = Path.rename

    def fail(self, target):
        if self.name == "best.partial":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CheckpointError, match=r"step 2 not kept in .*Input/output error"):
        best.update(2, 4.0, states[1].ema)
    monkeypatch.undo()
    assert_same(load_generator(tmp_path / "best")[0], dict(states[0].ema))
    # A folder left by a failed deletion does not prevent the next update.
    shutil.copytree(tmp_path / "best", tmp_path / "best.old")
    assert best.update(3, 3.0, states[2].ema)
    assert_same(load_generator(tmp_path / "best")[0], dict(states[2].ema))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]


def test_the_best_generator_survives_any_interruption(tmp_path, states):
    best = BestCheckpoint(tmp_path / "best", "distance")
    best.update(1, 5.0, states[0].ema)
    # Interrupted while the next one is written, then between the removal and the renaming.
    shutil.copytree(tmp_path / "best", tmp_path / "best.partial")
    (tmp_path / "best.partial" / "0" / "manifest.json").unlink()
    assert BestCheckpoint(tmp_path / "best", "distance").value == 5.0
    assert not (tmp_path / "best.partial").exists()
    (tmp_path / "best").rename(tmp_path / "best.partial")
    assert BestCheckpoint(tmp_path / "best", "distance").value == 5.0
    assert_same(load_generator(tmp_path / "best")[0], dict(states[0].ema))
    # Between the two renamings, and while the old one is deleted.
    (tmp_path / "best").rename(tmp_path / "best.old")
    assert BestCheckpoint(tmp_path / "best", "distance").value == 5.0
    shutil.copytree(tmp_path / "best", tmp_path / "best.old")
    next((tmp_path / "best.old" / "0" / "generator").rglob("d/*")).unlink()
    reopened = BestCheckpoint(tmp_path / "best", "distance")
    assert reopened.value == 5.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]
    # The best one is damaged: it is logged and renamed, and the next one becomes the best.
    next((tmp_path / "best" / "0" / "generator").rglob("d/*")).unlink()
    logged = []
    reopened = BestCheckpoint(tmp_path / "best", "distance", log=logged.append)
    assert reopened.value == math.inf
    assert "is missing; it is set aside" in logged[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.damaged"]
    assert reopened.update(9, 7.0, states[1].ema)
    assert_same(load_generator(tmp_path / "best")[0], dict(states[1].ema))
