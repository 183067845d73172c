"""Students of a budget: by pruning, and of other families."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

import kd_jax as kd
from kd_jax.core import cost, family as core_family
from kd_jax.core.axes import group_widths
from kd_jax.distillation import student_of
from kd_jax.models.families import FAMILIES, family_named, family_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = published.write_dcgan(tmp_path_factory.mktemp("weights") / "g.safetensors")
    return kd.load(path)


def macs(model) -> float:
    """Hand count of a DCGAN's multiply-accumulates: its dense layer and transposed convolutions."""
    kernels = [
        leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables["params"])
        if path[-1].key == "kernel"
    ]
    total, side = 0, 4
    for shape in (s for s in kernels if len(s) == 4):
        total += int(np.prod(shape)) * side**2
        side *= 2
    return total + sum(int(np.prod(s)) for s in kernels if len(s) == 2)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1])
def test_a_pruned_student_is_the_widest_within_its_share(teacher, share):
    student = kd.prune(teacher, macs=share)
    assert macs(student) <= share * macs(teacher) * 1.1  # XLA counts element-wise operations, too
    widths, full = student.network.module.widths, teacher.network.module.widths
    assert widths == core_family.scale_widths(full, widths[0] / full[0])
    wider = core_family.scale_widths(full, (widths[0] + 1) / full[0])
    grown = kd.models.dcgan.generator(32, wider)
    shapes = jax.eval_shape(grown.init, jax.random.key(0), *teacher.inputs)
    limit = share * cost.multiply_accumulates(teacher.network, teacher.variables, *teacher.inputs)
    assert cost.multiply_accumulates(grown, shapes, *teacher.inputs) > limit


def test_the_channels_with_the_largest_weights_remain(teacher):
    student = kd.prune(teacher, parameters=0.5)
    assert cost.parameter_count(student.variables) <= 0.5 * cost.parameter_count(teacher.variables)
    kernel = np.asarray(teacher.variables["params"]["Conv_0"]["kernel"])  # reads the 4x4 features
    count = student.network.module.widths[0]
    largest = np.sort(np.argsort(-np.abs(kernel).sum(axis=(0, 1, 3)))[:count])
    means = np.asarray(teacher.variables["batch_stats"]["BatchNorm_0"]["mean"])
    np.testing.assert_array_equal(
        student.variables["batch_stats"]["BatchNorm_0"]["mean"], means[largest]
    )


def test_the_whole_budget_keeps_the_network(teacher):
    same = kd.prune(teacher, macs=1e12)
    assert same.network.module == teacher.network.module
    jax.tree.map(np.testing.assert_array_equal, same.variables, teacher.variables)


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        ({}, "none"),
        ({"macs": 0.1, "parameters": 100}, "macs, parameters"),
        ({"macs": -1}, "macs=-1"),
        ({"parameters": 10}, "parameters=10"),
        ({"macs": float("nan")}, "macs=nan"),
    ],
)
def test_a_budget_that_no_width_reaches_is_one_line(teacher, budget, named):
    with pytest.raises(ValueError, match=named) as error:
        kd.prune(teacher, **budget)
    assert "\n" not in str(error.value)


def test_a_network_of_no_known_family_is_named():
    network = kd.from_functions(lambda key, z: {}, lambda params, z: z[:, None, None, :])
    model = kd.load.__globals__["Model"](
        network, {"params": {}}, (jax.ShapeDtypeStruct((1, 3), jnp.float32),), 0, True, {}
    )
    with pytest.raises(ValueError, match=r"family=kd_jax\.Family"):
        kd.prune(model, macs=0.5)


def test_widths_scale_and_stay_distinct():
    scale = core_family.scale_widths
    assert scale(64, 1 / 64) == 1
    assert scale((512, 256, 64), 0.1) == (51, 25, 6)
    assert scale((512, 256, 64, 64), 0.001) == (1, 1, 1, 1)
    assert scale((512, 256, 64, 64), 0.001, distinct=True) == (3, 2, 1, 1)
    assert scale((12, 10), 0.7, multiple=4) == (8, 4)
    for width in range(1, 50):  # a quotient of widths gives that width
        assert scale(50, width / 50) == width


def test_names_of_families_are_unique():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="dcgan"):
        family_named("biggan_deep")


STUDENTS = {
    "dcgan": {},
    "stylegan1": {},
    "stylegan2": {},
    "tinygan": {},
    "resnet": {},
}


@pytest.mark.parametrize("name", STUDENTS)
def test_students_of_other_families_have_the_teachers_interface(teacher, name):
    network = student_of(family_named(name), teacher, parameters=20_000)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *teacher.inputs)
    count = cost.parameter_count(shapes)
    assert 2_000 < count <= 20_000
    assert core_family.interface_of(network, shapes, teacher.inputs, 0) == teacher.interface


def test_a_family_that_does_not_fit_is_named(teacher):
    with pytest.raises(ValueError, match=r"srvgg.*latents"):
        student_of(family_named("srvgg"), teacher, macs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", published.generators())
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_every_published_generator_is_pruned(name, share, tmp_path):
    path = published.write(name, tmp_path)
    model = kd.load(path, "G" if "loss" in name else None)
    student = kd.prune(model, macs=share)
    family = family_of(model.network)
    ours, full = (group_widths(m.variables, family.axes(m.variables)) for m in (student, model))
    assert ours.keys() == full.keys()
    assert all(ours[group] <= full[group] for group in full)
    ratio = cost.multiply_accumulates(student.network, student.variables, *model.inputs)
    assert ratio <= share * cost.multiply_accumulates(model.network, model.variables, *model.inputs)
    inputs = [jnp.ones((2, *x.shape[1:]), x.dtype) for x in model.inputs]
    images = student.network.apply(student.variables, *inputs)[0]
    assert images.shape == (2, *model.interface.output)
    assert np.isfinite(images).all()
