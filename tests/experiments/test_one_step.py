"""Of every experiment the tiny preset is built, planned, and takes one real step.

From data to report in full is `test_digits.py`'s in the gate, and every experiment's in the whole
suite.
"""

import importlib
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from selection import quick

ROOT = Path(__file__).parents[2]
EXPERIMENTS = (
    "classifier", "inpainting", "superres", "text_to_image", "translation", "unpaired", "waveform",
    "biggan", "stylegan2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


def with_values(shapes, seed):
    """Arrays in the place of shapes, or of zeros: a batch, or a teacher that was not trained."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.uniform(0.1, 0.2, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct))


@pytest.mark.parametrize("name", quick(EXPERIMENTS, 7))
def test_the_distilled_student_takes_a_step(name):
    module = importlib.import_module(f"experiments.{name}")
    config = module.get_config("tiny").lock()
    plans, batch = module.EXPERIMENT.plan(config, module.EXPERIMENT.build(config))
    for plan in plans.values():
        shapes = jax.eval_shape(plan.init, jax.random.key(0), batch)
        after, metrics = jax.eval_shape(plan.step, shapes, plan.teacher, batch)
        assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, shapes)
        assert "g/total" in metrics

    (distilled,) = (plan for key, plan in plans.items() if key.rpartition("/")[2] == "distilled")
    batch, teacher = with_values(batch, 0), with_values(distilled.teacher, 1)

    def init_and_step(key):
        state = distilled.init(key, batch)
        return state, distilled.step(state, teacher, batch)

    before, (after, metrics) = jax.jit(init_and_step)(jax.random.key(0))
    assert int(after.step) == int(before.step) + 1
    assert all(np.isfinite(value).all() for value in metrics.values()), metrics
    params = [jax.tree.leaves(state.generator.variables["params"]) for state in (before, after)]
    assert any((a != b).any() for a, b in zip(*params, strict=True))
