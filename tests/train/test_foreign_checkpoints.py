"""Checkpoint folders that anyone may have written: one CheckpointError, whatever they hold."""

import json
import os
import random
import shutil

import jax
import numpy as np
import pytest

import kd_jax as kd
from kd_jax.core import architecture
from kd_jax.train import checkpoint, manifest
from kd_jax.train.checkpoint import CheckpointError

NETWORK = kd.models.dcgan.generator(16, 2, channels=1, classes=3)
INPUTS = (np.zeros((1, 4), np.float32), np.zeros(1, np.int32))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "run"
    variables = jax.jit(NETWORK.init)(jax.random.key(0), *INPUTS)
    described = architecture.describe(NETWORK, *INPUTS)
    checkpoint.save_generator(folder, variables, {"a": 1}, described)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def sign(folder):
    """Writes a manifest that fits the files, as the author of the changes would."""
    manifest.write(folder / "0")


def read_meta(folder):
    return json.loads((folder / "0/meta/metadata").read_text())


def write_meta(folder, text):
    (folder / "0/meta/metadata").write_text(text)
    sign(folder)


def refused(folder, *named):
    with pytest.raises(CheckpointError) as error:
        kd.load(folder)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000
    for name in named:
        assert name in message
    return message


def test_the_original_is_read(folder):
    assert kd.load(folder).classes == 3


DEEP = "[" * 100_000
META = {
    "a list": "[]",
    "no JSON": "{",
    "deep": DEEP,
    "deep in an object": '{"configuration": ' + DEEP + "]" * 100_000 + "}",
    "bytes": '"\\ud800"',
    "configuration": '{"configuration": [], "architecture": {}}',
    "environment": '{"environment": 3}',
    "nothing": "{}",
}


@pytest.mark.parametrize("case", META)
def test_invalid_metadata(folder, case):
    write_meta(folder, META[case])
    refused(folder)


DESCRIPTIONS = {
    "classes=Infinity": ("classes", float("inf")),
    "classes=nan": ("classes", float("nan")),
    "classes": ("classes", "many"),
    "no inputs": ("inputs", []),
    "inputs": ("inputs", 3),
    "an input of no shape": ("inputs", [[["x"], "float32"]]),
    "a negative input": ("inputs", [[[-4], "float32"], [[], "int32"]]),
    "an input of another length": ("inputs", [[[5], "float32"], [[], "int32"]]),
    "an unknown dtype": ("inputs", [[[4], "float33"], [[], "int32"]]),
    "three inputs": ("inputs", [[[4], "float32"]] * 3),
    "no module": ("module", {}),
    "a module of another package": ("module", {"class": "os:system", "fields": {}}),
    "a module without fields": ("module", {"class": "kd_jax.models.dcgan:Generator"}),
    "a factory": ("factory", "kd_jax.models.dcgan:nothing"),
    "a path of dots": ("module", {"class": "kd_jax.models...:x", "fields": {}}),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_invalid_descriptions(folder, case):
    name, value = DESCRIPTIONS[case]
    meta = read_meta(folder)
    meta["architecture"][name] = value
    write_meta(folder, json.dumps(meta))
    refused(folder)


FIELDS = {
    "widths": [[4, 3], [], 7, [0, -1], ["a", "b"], [[[]]]],
    "channels": [0, -1, 1.5, "x", None, 3],
    "classes": [0, -1, 2, float("inf"), None, [3]],
    "depth": [1, "x", None],
    "dtype": [{"dtype": "float33"}, {"dtype": 3}, 5],
}


@pytest.mark.parametrize("field", FIELDS)
def test_descriptions_of_another_network(folder, field):
    for value in FIELDS[field]:
        meta = read_meta(folder)
        fields = meta["architecture"]["module"]["fields"]
        if fields[field] == value:
            continue
        before, fields[field] = fields[field], value
        write_meta(folder, json.dumps(meta))
        refused(folder)
        fields[field] = before
        write_meta(folder, json.dumps(meta))


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../x", "generator/../../x"])
def test_names_in_a_manifest_that_are_not_files_of_the_folder(folder, name):
    path = folder / "0" / manifest.MANIFEST
    sums = json.loads(path.read_text())
    path.write_text(json.dumps({**sums, name: "0" * 64}))
    refused(folder, manifest.MANIFEST)


def special(kind, path):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
@pytest.mark.parametrize("name", ["manifest.json", "meta/metadata", "generator/manifest.ocdbt"])
def test_only_regular_files_are_opened(folder, kind, name):
    special(kind, folder / "0" / name)
    refused(folder)


def test_files_beside_the_listed_ones_are_not_read(folder):
    (folder / "0/generator/extra").write_bytes(b"x")
    refused(folder, "extra", manifest.MANIFEST)


def test_arrays_that_are_claimed_but_not_stored(folder, monkeypatch):
    kd.load(folder)
    monkeypatch.setattr(checkpoint, "_LARGEST_UNSTORED", 0)
    monkeypatch.setattr(checkpoint, "_LARGEST_RATIO", 0)
    refused(folder, "claims")


def test_a_step_that_cannot_be_read_is_passed_over(folder, monkeypatch):
    shutil.copytree(folder / "0", folder / "1")
    exists = type(folder).exists

    def denied(path):
        if path.parent == folder / "1":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(type(folder), "exists", denied)
    stat = type(folder).stat

    def no_stat(path, **options):
        if path.parent == folder / "1":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(type(folder), "stat", no_stat)
    with pytest.warns(checkpoint.DamagedCheckpointWarning, match="Permission denied"):
        assert kd.load(folder).classes == 3


def test_a_name_of_many_digits_is_not_a_step(folder):
    (folder / ("1" * 200)).mkdir()
    assert kd.load(folder).classes == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of TensorStore
def test_mutated_folders_give_one_error(folder, original):
    """Seeded changes of bytes in every file, with a fitting manifest."""
    draw = random.Random(0)
    files = [f.relative_to(original) for f in sorted(original.rglob("*")) if f.is_file()]
    files = [f for f in files if f.name != manifest.MANIFEST]
    outcomes, lines = {"read": 0, "refused": 0}, []
    for _ in range(150):
        shutil.rmtree(folder)
        shutil.copytree(original, folder)
        path = folder / draw.choice(files)
        content = bytearray(path.read_bytes())
        for _ in range(draw.choice((1, 4, 64))):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.randrange(len(content) + 1) or None])
        sign(folder)
        try:
            kd.load(folder)
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes["refused"] += 1
            lines.append(str(error))
    assert not [line for line in lines if "\n" in line]
    assert min(outcomes.values()) > 10, outcomes
