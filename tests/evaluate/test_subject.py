"""Subjects of an evaluation: networks and folders of images, their shapes and classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kd_jax.core.architecture import describe
from kd_jax.data.origin import SourceWithOrigin
from kd_jax.evaluate.generator import draw, open_generator, sampler, split_spec
from kd_jax.evaluate.subject import (
    holds_images,
    interleave_classes,
    labels_in,
    open_images,
    open_subjects,
)
from kd_jax.models import mlp
from kd_jax.train import checkpoint

Z = jax.ShapeDtypeStruct((1, 8), jnp.float32)


def write(folder, values, shape=(4, 4)):
    """Writes constant images, one per value, named by position."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        Image.fromarray(np.full(shape, value, np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def save_network(folder):
    network = mlp.generator(4, 8, channels=1, depth=1)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 8)))
    checkpoint.save_generator(folder, variables, {}, describe(network, Z))
    return folder


@pytest.mark.parametrize("inside", [".", "a", "0", "a/b", "best"])
def test_folders_with_images_are_images(tmp_path, inside):
    write(tmp_path / inside, [1])
    assert holds_images(tmp_path)


@pytest.mark.parametrize("inside", [".", "checkpoints", "seed0/teacher/checkpoint"])
def test_trainings_are_networks_also_with_pictures(tmp_path, inside):
    save_network(tmp_path / inside)
    write(tmp_path, [1])
    write(tmp_path / "samples", [1])
    assert not holds_images(tmp_path)


def test_other_folders_are_refused_and_files_are_networks(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    assert not holds_images(tmp_path / "notes.txt")
    assert not holds_images(tmp_path / "absent")
    for folder in (tmp_path, tmp_path / "empty"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=rf"^{folder} .*checkpoints.*png[^\n]*$"):
            holds_images(folder)


def test_names_of_specs(tmp_path):
    odd = write(tmp_path / "lr=0.1" / "images", [1])
    assert split_spec(str(odd)) == ("", odd)
    assert split_spec(f"mine={tmp_path}") == ("mine", tmp_path)
    assert open_images(str(odd), (4, 4, 1)).name == "lr=0.1/images"
    assert open_images(f"b={odd}", (4, 4, 1)).name == "b"


def test_images_of_a_folder_keep_their_order_and_subsets_follow_the_seed(tmp_path):
    subject = open_images(str(write(tmp_path, range(10))), (4, 4, 1))
    done = []
    samples = subject.sample(10, 3, done.append)
    assert (subject.available, subject.classes, done) == (10, 0, [10])
    np.testing.assert_array_equal(samples.images[:, 0, 0, 0], range(10))
    assert samples.labels is None
    first, second, again = (
        subject.sample(4, seed, done.append).images[:, 0, 0, 0].tolist() for seed in (0, 1, 0)
    )
    assert first == again != second
    assert len(set(first)) == 4


def test_classes_of_a_folder_alternate_and_follow_the_names_of_the_data(tmp_path):
    for number, name in enumerate(("ant", "bee", "cow")):
        write(tmp_path / name, [10 * number, 10 * number + 1])
    subject = open_images(str(tmp_path), (4, 4, 1))
    samples = subject.sample(6, 0, lambda done: None)
    np.testing.assert_array_equal(samples.images[:, 0, 0, 0], [0, 10, 20, 1, 11, 21])
    np.testing.assert_array_equal(samples.labels, [0, 1, 2, 0, 1, 2])

    def data(*names, count=3):
        read = lambda i: (np.zeros((4, 4, 1), np.uint8), 0)  # noqa: E731
        return SourceWithOrigin("data", (4, 4, 1), count, "", 1, read, lambda: 0, classes=names)

    other_order = labels_in(subject, samples.labels, data("cow", "ant", "bee"))
    np.testing.assert_array_equal(other_order, [1, 2, 0, 1, 2, 0])
    assert labels_in(subject, samples.labels, data("ant", "bee", "dog")) is None
    assert labels_in(subject, samples.labels, data()) is None  # they are named 0, 1 and 2
    assert labels_in(subject, samples.labels, data("ant", "bee", count=2)) is None
    numbered = subject._replace(class_names=("1", "0", "2"))
    np.testing.assert_array_equal(labels_in(numbered, samples.labels, data())[:3], [1, 0, 2])


def test_classes_of_different_sizes_alternate():
    assert interleave_classes(np.array([0, 0, 0, 1, 2, 2])) == [0, 3, 4, 1, 5, 2]


def test_images_have_the_shape_of_the_networks(tmp_path):
    network = str(save_network(tmp_path / "network"))
    small = write(tmp_path / "small", [1, 2])
    Image.new("L", (6, 4)).save(small / "odd.png")
    with pytest.raises(ValueError, match=r"odd\.png is 6x4.*--resize[^\n]*$"):
        open_subjects([network, str(small)])
    opened = open_subjects([network, f"b={small}"], resize=True)
    assert [subject.image_shape for subject in opened] == [(4, 4, 1)] * 2
    assert [subject.available for subject in opened] == [None, 3]
    assert len(opened[1].notes) == 1
    with pytest.raises(ValueError, match="two networks have the name b;"):
        open_subjects([f"b={network}", f"b={small}"], resize=True)


def test_folders_alone_have_the_shape_of_their_first_image(tmp_path):
    colour = write(tmp_path / "colour", [1, 2], (6, 6, 3))
    assert open_subjects([str(colour)])[0].image_shape == (6, 6, 3)
    grey = write(tmp_path / "grey", [1], (6, 6))
    with pytest.raises(ValueError, match=r"grey/.* fit 6x6 RGB|000\.png"):
        open_subjects([str(colour), str(grey)])
    wide = write(tmp_path / "wide", [1], (4, 8))
    with pytest.raises(ValueError, match=r"wide/000\.png is 8x4;"):
        open_subjects([str(wide)])
    assert open_subjects([str(wide)], resize=True)[0].image_shape == (4, 4, 1)


def test_a_subject_draws_as_its_generator(tmp_path):
    path = str(save_network(tmp_path))
    generator = open_generator(path)
    (subject,) = open_subjects([path])
    samples = subject.sample(5, 2, lambda done: None)
    expected = sampler(generator, 16)(draw(generator, 5, 2))
    np.testing.assert_array_equal(samples.images, expected.images)
    assert subject.interpolate(0, 2, 3).shape == (6, 4, 4, 1)
