"""The steps of every experiment and method lower for accelerators, with and without a mesh.

On accelerators, the algorithms of `kd_jax.ops.cpu` must leave no trace in the program.
"""

import importlib
import os
from pathlib import Path

import jax
import pytest
from selection import quick

from experiments import methods, objectives
from kd_jax import ops
from kd_jax.core.mesh import compile_step, fully_sharded, make_mesh
from kd_jax.ops import cpu

ROOT = Path(__file__).parents[2]
EXPERIMENTS = (
    "superres", "digits", "classifier", "inpainting", "text_to_image", "translation", "unpaired",
    "waveform", "biggan", "stylegan2",
)  # fmt: skip
PLATFORMS = ("cuda", "tpu")


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


@pytest.fixture
def uses(monkeypatch):
    """The convolutions for which a CPU algorithm was considered."""
    calls = []

    def fast_maps(geometry, *args):
        calls.append(geometry)
        return cpu.Maps()

    monkeypatch.setattr(cpu, "fast_maps", fast_maps)
    return calls


def check(plan, batch, uses):
    # Of 8 examples, so that they can be split over the mesh.
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((8, *x.shape[1:]), x.dtype), batch)
    state = jax.eval_shape(plan.init, jax.random.key(0), batch)
    for mesh in (None, make_mesh(4, 2)):
        traced = compile_step(plan.step, mesh, fully_sharded(64)).trace(state, plan.teacher, batch)
        for platform in PLATFORMS:
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert f"num_partitions = {mesh.size if mesh else 1} " in text
            assert not uses


@pytest.mark.parametrize("name", quick(EXPERIMENTS))
def test_the_steps_of_an_experiment_lower(name, uses):
    module = importlib.import_module(f"experiments.{name}")
    config = module.get_config("tiny").lock()
    plans, batch = module.EXPERIMENT.plan(config, module.EXPERIMENT.build(config))
    for plan in plans.values():
        check(plan, batch, uses)


@pytest.mark.parametrize("name", quick(methods.METHODS, lambda name: False))
def test_the_step_of_a_method_lowers(name, uses):
    config = objectives.get_config("tiny")
    config.methods = name
    plans, batch = objectives.plan(config.lock(), objectives.EXPERIMENT.build(config))
    (key,) = (key for key in plans if key.endswith(f"/{name}") and not key.startswith("scarce"))
    check(plans[key], {} if methods.METHODS[name].data_free else batch, uses)


def test_for_cpu_the_algorithms_are_considered(uses):
    image, kernel = (jax.ShapeDtypeStruct(s, "float32") for s in ((8, 8, 8, 32), (3, 3, 32, 32)))
    jax.jit(ops.conv).trace(image, kernel).lower(lowering_platforms=("cpu",))
    assert uses
