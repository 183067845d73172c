"""Distil an inpainting network: teacher, student from scratch and distilled, biharmonic inpainting.

    python -m experiments.inpainting --workdir=runs/inpainting       # photographs, minutes
    python -m experiments.inpainting --workdir=runs/full --preset=full --config.data.source=folder:A
                                     --config.data.test=folder:B     # images of 256x256, a GPU
    python -m experiments.inpainting --dry_run --config.masks.largest_box=0.4

A generator of gated convolutions (Yu et al. 2019) learns to fill in the pixels of photographs that
scratches hide (or brush strokes and boxes); it returns known pixels unchanged. A narrower one is
trained from scratch with the L1 distance to the original, and distilled with the L1 distance to the
teacher's image.

Hardware and results: two CPU cores; the table in docs/results.md.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from experiments import harness, prediction, restoration, runner
from kd_jax import ops, tasks
from kd_jax.core.objective import Inputs
from kd_jax.core.types import Array
from kd_jax.models import inpainting
from kd_jax.tasks import degradations


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = restoration.base_config()
    config.masks = ConfigDict(
        {
            # 0 for none. A few wide strokes are for object removal, many narrow ones are scratches:
            # in minutes of training, wide gaps in photographs are not filled better than by a
            # harmonic baseline.
            "strokes": 10,
            "thickness": 0.016,  # their mean width, as a fraction of the side
            "smallest_box": 0.2,  # sides, as a fraction of the image's
            "largest_box": 0.0,  # 0: no boxes; with strokes and boxes, each image has one kind
        }
    )
    # Much of the missing content is random; the teacher's images are less noisy targets.
    config.distilled.truth = 0.0
    config.batch_size = 2  # many small steps: gated convolutions start to learn late
    config.teacher.rate = config.student.rate = 3e-3
    config.teacher.steps = config.student.steps = 10_000
    config.log_every, config.evaluate_every, config.checkpoint_every = 500, 2000, 2000
    config.teacher.update({"width": 16, "downs": 0, "dilations": (1, 2, 4), "separable": False})
    config.student.update({"width": 4, "downs": 0, "dilations": (2, 4), "separable": False})
    if preset == "full":
        config.data.update({"source": "folder:train", "test": "folder:test"})
        config.data.update({"size": 256, "patches": True})
        config.evaluate.images = 1000  # all images and predictions may exceed the memory
        config.masks.update({"strokes": 4, "thickness": 0.08, "largest_box": 0.4})
        config.batch_size = 16
        config.teacher.update(
            {"width": 48, "downs": 2, "dilations": (2, 4, 8, 16), "steps": 400_000}
        )
        config.student.update(
            {"width": 14, "downs": 2, "dilations": (2, 4, 8, 16), "steps": 400_000}
        )
        config.teacher.rate = config.student.rate = 2e-4
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    if preset == "tiny":
        restoration.tiny(config)
        config.masks.largest_box = 0.4
        for sizes in (config.teacher, config.student):
            sizes.update({"width": 4, "downs": 1, "dilations": (2,)})
        config.student.width = 2
    return config


def mask_generators(config: ConfigDict) -> list[tasks.MakeMask]:
    """The mask generators that `config.masks` describes.

    Raises:
      ValueError: a setting does not fit.
    """
    masks = config.masks
    generators: list[tasks.MakeMask] = []
    if masks.strokes:
        generators.append(
            partial(degradations.free_form_mask, strokes=masks.strokes, thickness=masks.thickness)
        )
    if masks.largest_box:
        generators.append(
            partial(degradations.box_mask, smallest=masks.smallest_box, largest=masks.largest_box)
        )
    if not generators:
        raise ValueError("config.masks has neither strokes nor boxes: nothing would be missing")
    return generators


def build(config: ConfigDict) -> runner.Comparison:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    teacher, student = (
        inpainting.gated_generator(
            sizes.width,
            channels=config.data.channels,
            downs=sizes.downs,
            dilations=sizes.dilations,
            separable=sizes.separable,
            dtype=prediction.dtype(config),
        )
        for sizes in (config.teacher, config.student)
    )
    return restoration.make_comparison(
        config,
        "Distilling an inpainting network",
        tasks.inpainting(mask_generators(config)),
        teacher,
        student,
        ("middle",),
        baselines={
            "biharmonic": lambda inputs, _: biharmonic(inputs),
            "smooth filling": lambda inputs, _: harmonic(inputs),
        },
        show_inputs=lambda inputs: np.where(inputs.generator[1] > 0.5, 1.0, inputs.generator[0]),
    )


def harmonic(inputs: Inputs) -> Array:
    """Harmonic inpainting, with which the generators also initialize the missing pixels."""
    known, missing = inputs.generator
    return jax.jit(ops.harmonic_inpaint)(known, missing > 0.5)


def biharmonic(inputs: Inputs) -> NDArray[Any]:
    """Biharmonic inpainting (Damelin & Hoang 2018); images without a known pixel become grey."""
    from skimage.restoration import inpaint_biharmonic

    known, missing = (np.asarray(x, np.float64) for x in inputs.generator)
    return np.stack(
        [
            np.zeros_like(image)
            if mask.all()
            else inpaint_biharmonic(image, mask[..., 0] > 0.5, channel_axis=2)
            for image, mask in zip(known, missing, strict=True)
        ]
    )


EXPERIMENT = runner.experiment(get_config, build, prediction.PRESETS)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
