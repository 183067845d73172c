"""The method comparison: all methods trace, trainings are not repeated, data_free reads no data."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import harness, methods, objectives
from kd_jax.train.logs import read_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


def tiny(names, **changes):
    config = objectives.get_config("tiny")
    del config.regimes.all
    config.methods = names
    config.update(changes)
    return config.lock()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three methods, from the trainings to the report."""
    workdir = tmp_path_factory.mktemp("objectives")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))
        harness.execute(objectives.EXPERIMENT, tiny("data_free,pixel"), workdir)
    return workdir


def _outcomes(workdir):
    return {
        str(path.parent.relative_to(workdir)): json.loads(path.read_text())
        for path in workdir.rglob("outcome.json")
    }


@pytest.mark.slow
def test_the_report_has_the_outcomes_of_the_trainings(finished):
    outcomes = _outcomes(finished)
    tried = {
        row: {s: outcomes[f"seed100/scarce/{row}@{s}"]["frechet"] for s in ("1", "10")}
        for row in ("data_free", "pixel")
    }
    report = json.loads((finished / "report.json").read_text())
    assert set(report["results"]["scarce"]) == {"from_scratch", "data_free", "pixel"}
    page = (finished / "report.md").read_text()
    teacher = outcomes["seed0/teacher"]["frechet"]
    from_scratch = outcomes["seed0/scarce/from_scratch"]["frechet"]
    assert f"the teacher's is {teacher:.2f}" in page
    for row, distances in tried.items():
        strength = min(distances, key=distances.get)
        distance = outcomes[f"seed0/scarce/{row}@{strength}"]["frechet"]
        result = report["results"]["scarce"][row]
        assert result["tried"] == distances
        assert f"{result['strength']:g}" == strength
        assert result["outcomes"][0]["frechet"] == distance
        closed = (
            round(100 * (from_scratch - distance) / (from_scratch - teacher))
            if from_scratch > teacher
            else None
        )
        cell = f"{distance:.2f} ({strength}) | " + ("no gap" if closed is None else f"{closed}%")
        assert cell in page
        cost = report["costs"][row]
        assert cost["milliseconds"] > 0
        assert cost["mebibytes"] > 0.1
    assert outcomes.keys() == {
        "seed0/teacher",
        "seed100/teacher",
        "seed0/scarce/from_scratch",
        *(f"seed100/scarce/{row}@{s}" for row in tried for s in ("1", "10")),
        *(f"seed0/scarce/{row}@{report['results']['scarce'][row]['strength']:g}" for row in tried),
    }
    for picture in ("distances.png", "samples.png"):
        assert f"({picture})" in page
        with Image.open(finished / picture) as opened:
            assert opened.width > 100


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(finished, monkeypatch):
    trained = []

    def train(folder, *args, **kwargs):
        trained.append(folder)
        raise KeyboardInterrupt

    before = (finished / "report.json").read_text()
    outcome = finished / "seed0/scarce/from_scratch/outcome.json"
    contents = outcome.read_text()
    monkeypatch.setattr(harness, "train", train)
    config = tiny("data_free,pixel")
    harness.execute(objectives.EXPERIMENT, config, finished)
    assert json.loads((finished / "report.json").read_text()) == json.loads(before)
    assert not trained

    # As if stopped before this training was finished: only it must run, after its teacher is read.
    outcome.unlink()
    with pytest.raises(KeyboardInterrupt):
        harness.execute(objectives.EXPERIMENT, config, finished)
    assert [str(folder.relative_to(finished)) for folder in trained] == ["seed0/teacher"]
    outcome.write_text(contents)


@pytest.mark.slow
def test_data_free_training_never_reads_the_data(tmp_path, finished):
    config = tiny("data_free")
    task = objectives.build(config)
    runner = objectives.Runner(config, task, tmp_path)
    runner._teachers = {0: objectives.Runner(config, task, finished).teacher(0)}

    def unreadable(*args):
        raise AssertionError("the data were read")

    # The reference moments are computed already: only the training and its evaluation follow.
    sealed = dataclasses.replace(task.source, read=unreadable, read_labels=unreadable)
    runner.task = task._replace(source=sealed)
    outcome = runner.outcome("scarce", "data_free", 0, 1.0)
    assert np.isfinite(outcome.frechet)
    rows = read_jsonl(tmp_path / "seed0/scarce/data_free@1/metrics.jsonl")
    assert {"g/pixel", "d/real_score"} <= set(rows[0])
    with pytest.raises(AssertionError, match="the data were read"):
        runner.outcome("scarce", "pixel", 0, 1.0)  # this method reads them


@pytest.mark.slow
def test_processes_share_the_trainings(finished):
    config = tiny("pixel")
    runner = objectives.Runner(config, objectives.build(config), finished)
    folder = finished / "seed0/scarce/from_scratch"
    with harness.file_lock(folder, wait=True):
        runner.outcome("scarce", "from_scratch", 0, 1.0)  # finished: no lock is needed
    with (
        harness.file_lock(finished / "seed0/scarce/pixel@7", wait=True),
        pytest.raises(BlockingIOError),
    ):
        runner.outcome("scarce", "pixel", 0, 7.0)


def test_every_method_traces():
    """In both regimes, with shapes in place of a teacher; nothing is compiled."""
    config = objectives.get_config("tiny")
    task = objectives.build(config.lock())
    plans, batch = objectives.plan(config, task)
    assert len(plans) == 2 * len(methods.METHODS)
    for name, plan in plans.items():
        inputs = {} if methods.METHODS[name.partition("/")[2]].data_free else batch
        state = jax.eval_shape(plan.init, jax.random.key(0), inputs)
        after, metrics = jax.eval_shape(plan.step, state, plan.teacher, inputs)
        assert jax.tree.structure(after) == jax.tree.structure(state), name
        assert "g/total" in metrics, name


def test_strength_multiplies_all_but_the_adversarial_terms():
    config = objectives.get_config("tiny")
    task = objectives.build(config.lock())
    pair = methods.methods.response(3.0, methods.PerNetwork(*methods.digits.adversarial(config)))
    adversarial = methods.digits.adversarial(config)[0]
    terms = methods.scale_weights(pair.generator, adversarial, 10.0)
    assert terms["adversarial"] is pair.generator["adversarial"]
    state = terms["pixel"].weight.init()
    assert float(terms["pixel"].weight.fn(None, None, None, state)[0]) == 30.0
    assert task.inputs is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "pixle"}, "'pixle'; there is from_scratch, self, "),
        ({"model": "mlp"}, "config.model='mlp'.* dcgan"),
        ({"seeds": (100,)}, "config.tuning.seed=100 is one of the table's seeds"),
        ({"tuning": {"seed": 1, "strengths": ()}}, "config.tuning.strengths needs at least one"),
    ],
)
def test_bad_settings_give_one_line_and_write_nothing(tmp_path, changes, message):
    config = objectives.get_config("tiny")
    config.update(changes)
    with pytest.raises(harness.UsageError, match=message) as error:
        harness.execute(objectives.EXPERIMENT, config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
