"""The method comparison: all methods trace, trainings are not repeated, data_free reads no data."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from reports import read_figures, read_report, values

import experiments.runner
from experiments import digits, harness, methods, objectives
from kd_jax.core.files import file_lock
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


def _distances(workdir):
    """The distance in each training's own file of results, by its folder."""
    return {
        str(path.parent.relative_to(workdir)): json.loads(path.read_text())["metrics"]["frechet"][
            "value"
        ]
        for path in workdir.rglob("result.json")
    }


@pytest.mark.slow
def test_the_report_has_the_outcomes_of_the_trainings(finished):
    distances = _distances(finished)
    tried = {
        row: {s: distances[f"seed100/scarce/{row}@{s}"] for s in ("1", "10")}
        for row in ("data_free", "pixel")
    }
    best = {row: f"scarce/{row}@{min(own, key=own.get)}" for row, own in tried.items()}
    report, figures = read_report(finished), read_figures(finished)
    assert set(figures) == {"teacher", "scarce/from_scratch", *best.values()}
    stored = report["configuration"]["tried"]
    assert stored == {"scarce/from_scratch": {}, **{f"scarce/{k}": v for k, v in tried.items()}}
    teacher, from_scratch = distances["seed0/teacher"], distances["seed0/scarce/from_scratch"]
    for name in best.values():
        distance = distances[f"seed0/{name}"]
        assert figures[name]["frechet"]["value"] == distance
        if from_scratch > teacher:
            closed = (from_scratch - distance) / (from_scratch - teacher)
            assert figures[name]["gap"]["value"] == pytest.approx(closed)
        else:
            assert figures[name]["gap"] == "no gap"
        assert figures[name]["step"]["value"] > 0
        assert figures[name]["step_memory"]["value"] > 0.1
    assert figures[best["data_free"]]["images"]["value"] == 0
    assert distances.keys() == {
        "seed0/teacher",
        "seed0/scarce/from_scratch",
        *(f"seed100/scarce/{row}@{s}" for row in tried for s in ("1", "10")),
        *(f"seed0/{name}" for name in best.values()),
    }
    page = (finished / "report.md").read_text()
    for picture in ("distances.png", "examples.png"):
        assert f"({picture})" in page
        with Image.open(finished / picture) as opened:
            assert opened.width > 100


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(finished, monkeypatch):
    trained = []

    def train(folder, *args, **kwargs):
        trained.append(folder)
        raise KeyboardInterrupt

    before = values(finished, "frechet"), values(finished, "step")
    outcome = finished / "seed0/scarce/from_scratch/result.json"
    contents = outcome.read_text()
    monkeypatch.setattr(experiments.runner, "train", train)
    config = tiny("data_free,pixel")
    harness.execute(objectives.EXPERIMENT, config, finished)
    assert (values(finished, "frechet"), values(finished, "step")) == before
    assert not trained

    # As if stopped before this training was finished: only it must run, after its teacher is read.
    outcome.unlink()
    with pytest.raises(KeyboardInterrupt):
        harness.execute(objectives.EXPERIMENT, config, finished)
    assert [str(folder.relative_to(finished)) for folder in trained] == ["seed0/teacher"]
    outcome.write_text(contents)


@pytest.mark.slow
def test_data_free_training_never_reads_the_data(tmp_path, finished):
    config = tiny("data_free,pixel")
    comparison, task = objectives.build(config), digits.make_task(config)
    run = objectives.Run(config, comparison, tmp_path, objectives.RUNTIME_FIELDS)
    done = objectives.Run(config, comparison, finished, objectives.RUNTIME_FIELDS)
    # The reference features are computed already: only the training and its evaluation follow.
    run.evaluation, run._teachers = done.evaluation, {0: done.teacher(0)}

    def unreadable(*args):
        raise AssertionError("the data were read")

    no_picture = run.evaluation._replace(draw=lambda file, rows: Image.new("L", (1, 1)).save(file))
    run.evaluation = no_picture  # which has real images
    sealed = dataclasses.replace(task.source, read=unreadable, read_labels=unreadable)

    def result_of(name):
        training = objectives.make_training(config, task._replace(source=sealed), "scarce", name)
        return run.result(objectives.with_strength(training, 1.0), 0)

    result = result_of("data_free")
    assert np.isfinite(result.metrics["frechet"].value)
    rows = read_jsonl(tmp_path / "seed0/scarce/data_free@1/metrics.jsonl")
    assert {"g/pixel", "d/real_score"} <= set(rows[0])
    with pytest.raises(AssertionError, match="the data were read"):
        result_of("pixel")  # this method reads them


@pytest.mark.slow
def test_processes_share_the_trainings(finished):
    config = tiny("pixel")
    comparison = objectives.build(config)
    run = objectives.Run(config, comparison, finished, objectives.RUNTIME_FIELDS, shared=True)
    from_scratch, pixel = comparison.students
    with file_lock(finished / "seed0/scarce/from_scratch", wait=True):
        run.result(from_scratch, 0)  # finished: no lock is needed
    with (
        file_lock(finished / "seed0/scarce/pixel@7", wait=True),
        pytest.raises(BlockingIOError),
    ):
        run.result(objectives.with_strength(pixel, 7.0), 0)


@pytest.mark.slow
def test_every_method_traces():
    """In both regimes, with shapes in place of a teacher; nothing is compiled."""
    config = objectives.get_config("tiny")
    plans, batch = objectives.plan(config, objectives.build(config.lock()))
    assert len(plans) == 2 * len(methods.METHODS)
    for name, plan in plans.items():
        inputs = {} if methods.METHODS[name.partition("/")[2]].data_free else batch
        state = jax.eval_shape(plan.init, jax.random.key(0), inputs)
        after, metrics = jax.eval_shape(plan.step, state, plan.teacher, inputs)
        assert jax.tree.structure(after) == jax.tree.structure(state), name
        assert "g/total" in metrics, name


def test_strength_multiplies_all_but_the_adversarial_terms():
    config = objectives.get_config("tiny").lock()
    pair = methods.methods.response(3.0, methods.PerNetwork(*methods.digits.adversarial(config)))
    adversarial = methods.digits.adversarial(config)[0]
    terms = methods.scale_weights(pair.generator, adversarial, 10.0)
    assert terms["adversarial"] is pair.generator["adversarial"]
    state = terms["pixel"].weight.init()
    assert float(terms["pixel"].weight.fn(None, None, None, state)[0]) == 30.0


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
