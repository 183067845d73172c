"""The StyleGAN2 and BigGAN experiments: all variants are traced, each experiment runs once."""

import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from reports import read_figures, values
from selection import quick

from experiments import biggan, harness, runner, stylegan2
from kd_jax.core.setup import Teacher
from kd_jax.models import stylegan2 as models
from kd_jax.train.checkpoint import load_generator

ROOT = Path(__file__).parents[2]
MODULES = {"stylegan2": stylegan2, "biggan": biggan}


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


def tiny(name, settings=()):
    config = MODULES[name].get_config("tiny")
    with config.unlocked():
        config.update_from_flattened_dict(dict(settings))
    return config.lock()


def trace(name, config):
    """Traces the step of every training; returns the metrics' names by training."""
    experiment = MODULES[name].EXPERIMENT
    task = experiment.build(config)
    plans, batch = experiment.plan(config, task)
    names = {}
    for training, plan in plans.items():
        state = jax.eval_shape(plan.init, jax.random.key(0), batch)
        after, metrics = jax.eval_shape(plan.step, state, plan.teacher, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        names[training] = set(metrics)
    return names


VARIANTS = [
    ("stylegan2", {}, ("g/pixel", "g/relation")),
    ("stylegan2", {"distilled.initialization": "magnitude"}, ("g/pixel", "g/relation")),
    ("stylegan2", {"student": "stylegan1"}, ("g/reconstruction", "g/features")),
    ("stylegan2", {"path_length.weight": 2.0, "r1.every": 4}, ("g/path_length", "g/relation")),
    ("stylegan2", {"distilled.teacher_images": 1.0}, ("g/pixel",)),
    ("biggan", {}, ("g/features", "g/pixel")),
    ("biggan", {"method": "dgl", "student": "biggan"}, ("g/teacher",)),
]


@pytest.mark.parametrize(
    ("name", "settings", "terms"),
    quick(VARIANTS, lambda case: "method" in case[1] or "distilled.initialization" in case[1]),
    ids=str,
)
def test_every_variant_has_its_terms(name, settings, terms):
    names = trace(name, tiny(name, settings))
    assert set(names) == {"teacher", "from_scratch", "distilled"}
    assert set(terms) <= names["distilled"]
    assert not {"g/pixel", "g/relation", "g/features", "g/teacher"} & names["from_scratch"]
    assert "g/adversarial" in names["teacher"]


def test_full_size_parameter_counts_are_the_papers():
    """Xu et al. 2022, table 1: 30.0M and 5.6M parameters; only shapes are computed."""
    config = stylegan2.get_config("ffhq256")
    z = jax.ShapeDtypeStruct((1, config.latent), np.float32)
    counts = []
    for sizes in (config.teacher_network, config.student_network):
        network = models.generator(
            config.data.size, channel_base=sizes.channel_base, channel_max=sizes.channel_max
        )
        shapes = jax.eval_shape(network.init, jax.random.key(0), z)["params"]
        counts.append(sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) / 1e6)
    assert counts[0] == pytest.approx(30.0, abs=0.1)
    assert counts[1] == pytest.approx(5.6, abs=0.1)


BAD = [
    ("stylegan2", {"student": "stylegan4"}, "config.student='stylegan4' is not one of stylegan2"),
    (
        "stylegan2",
        {"distilled.initialization": "luck"},
        "config.distilled.initialization='luck' is neither",
    ),
    (
        "stylegan2",
        {"student": "stylegan1", "distilled.initialization": "magnitude"},
        "initialization=magnitude needs config.student=stylegan2",
    ),
    ("stylegan2", {"data.size": 20}, "a power of two from 4 to 1024, not 20"),
    ("stylegan2", {"teacher": "nowhere.pkl"}, "nowhere.pkl"),
    ("stylegan2", {"seeds": ()}, "config.seeds needs at least one entry"),
    ("biggan", {"student": "stylegan2"}, "config.student='stylegan2' is not one of tinygan"),
    ("biggan", {"method": "omgd"}, "config.method='omgd' is not one of tinygan, dgl"),
    ("biggan", {"method": "dgl", "teacher": "x.pth"}, "dgl needs the teacher's discriminator"),
    ("biggan", {"latent": 7}, "7"),
    ("biggan", {"data.size": 16}, "16"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD, ids=str)
def test_bad_settings_give_one_line_and_write_nothing(name, settings, message, tmp_path):
    with pytest.raises(harness.UsageError, match=re.escape(message)) as error:
        harness.execute(MODULES[name].EXPERIMENT, tiny(name, settings), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_style_student_inherits_the_teachers_mapping():
    config = tiny("stylegan2")
    task = stylegan2.make_task(config)
    z = np.zeros((1, config.latent), np.float32)
    teacher = jax.jit(task.teacher.generator.init)(jax.random.key(1), z)
    initial = stylegan2.initial_variables(config, task, teacher)
    assert set(initial) == {"params", "averages"}
    plan = stylegan2.student_plan(config, task, "distilled", Teacher(teacher))
    batch = runner.example_batch(config, task.source)
    state = jax.jit(plan.init)(jax.random.key(0), batch)
    jax.tree.map(
        np.testing.assert_array_equal,
        state.generator.variables["params"]["mapping"],
        teacher["params"]["mapping"],
    )


def test_directions_are_those_of_all_layers_that_read_styles():
    config = tiny("stylegan2")
    task = stylegan2.make_task(config)
    teacher = jax.jit(task.teacher.generator.init)(jax.random.key(1), np.zeros((1, 8), np.float32))
    directions = stylegan2.style_directions(teacher)
    np.testing.assert_allclose(directions @ directions.T, np.eye(8), atol=1e-5)
    affine = teacher["params"]["synthesis"]["b4"]["conv1"]["affine"]["weight"]
    other = jax.tree.map(lambda x: x, teacher)
    other["params"]["synthesis"]["b4"]["conv1"]["affine"]["weight"] = affine.at[0].set(100.0)
    changed = stylegan2.style_directions(other)
    assert abs(float(changed[0, 0])) > abs(float(directions[0, 0]))


@pytest.mark.slow
def test_a_published_teacher_to_report(golden, tmp_path, capsys):
    """The teacher is NVIDIA's snapshot: only the students are trained."""
    file = golden / "pkl" / "sg2_tiny.pkl"
    if not file.exists():
        pytest.skip(f"no {file}")
    config = tiny("stylegan2", {"teacher": str(file), "latent": 16})
    harness.execute(stylegan2.EXPERIMENT, config, tmp_path)
    figures = read_figures(tmp_path)
    assert figures["teacher"]["parameters"]["value"] == 11_542
    assert figures["distilled"]["parameters"]["value"] < 5_000
    for name in ("teacher", "from_scratch", "distilled"):
        assert figures[name]["macs"]["value"] > 0 < figures[name]["latency"]["value"]
        assert np.isfinite(figures[name]["frechet"]["value"])
        assert "accuracy" not in figures[name]  # the generators are unconditional
    assert not (tmp_path / "seed0" / "teacher" / "checkpoints").exists()
    variables, _ = load_generator(tmp_path / "seed0" / "distilled" / "checkpoints")
    assert "mapping" in variables["params"]
    assert str(tmp_path / "report.md") in capsys.readouterr().out
    wrong = tiny("stylegan2", {"teacher": str(file), "latent": 16, "data.size": 32})
    with pytest.raises(harness.UsageError, match=r"-> images 16x16x3; this"):
        harness.execute(stylegan2.EXPERIMENT, wrong, tmp_path / "other")


@pytest.mark.slow
def test_class_conditional_data_to_report(tmp_path):
    harness.execute(biggan.EXPERIMENT, tiny("biggan"), tmp_path)
    parameters = values(tmp_path, "parameters")
    assert parameters["teacher"] > parameters["distilled"]
    assert set(values(tmp_path, "accuracy")) == {"teacher", "from_scratch", "distilled"}
    assert (tmp_path / "examples.png").exists()
