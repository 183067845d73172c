"""Distil an inpainting network: teacher, student alone, student distilled, and biharmonic filling.

    python -m experiments.inpainting --workdir=runs/inpainting       # photographs, minutes
    python -m experiments.inpainting --workdir=runs/full --preset=full --config.data.source=folder:A
                                     --config.data.test=folder:B     # images of 256x256, a GPU
    python -m experiments.inpainting --dry_run --config.masks.largest_box=0.4

A generator of gated convolutions (Yu et al. 2019) learns to fill in what scratches hide of patches
of photographs (or brush strokes and boxes); what is known it returns as it is. A narrower one
learns it alone, with the L1 distance to the original, and from the teacher's images.

Hardware and results: two CPU cores; the table in README.md.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from experiments import harness, lessons, restoration
from kd_jax import degrade, ops, tasks
from kd_jax.models import inpainting
from kd_jax.objective import Inputs
from kd_jax.types import Array


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = restoration.settings()
    config.masks = ConfigDict(
        {
            # 0 for none. Few are wide, as for removing things; so many and narrow are scratches: of
            # wide gaps in photographs minutes teach nothing that a smooth filling does not know.
            "strokes": 10,
            "thickness": 0.016,  # their mean width, as a part of the side
            "smallest_box": 0.2,  # sides, as a part of the image's
            "largest_box": 0.0,  # 0 for no boxes; of both kinds each image has one
        }
    )
    # Of what is missing much is chance: the teacher's answers have less of it than the right ones.
    config.distilled.truth = 0.0
    config.batch_size = 2  # many small steps: with gates, learning begins late
    config.teacher.rate = config.student.rate = 3e-3
    config.teacher.steps = config.student.steps = 10_000
    config.log_every, config.evaluate_every, config.checkpoint_every = 500, 2000, 2000
    config.teacher.update({"width": 16, "downs": 0, "dilations": (1, 2, 4), "separable": False})
    config.student.update({"width": 4, "downs": 0, "dilations": (2, 4), "separable": False})
    if preset == "full":
        config.data.update({"source": "folder:train", "test": "folder:test"})
        config.data.update({"size": 256, "patches": True})
        config.evaluate.images = 1000  # all, and their answers, may be more than memory holds
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


def masks(config: ConfigDict) -> list[tasks.MakeMask]:
    """What draws the masks.

    Raises:
      ValueError: a setting does not fit.
    """
    given = config.masks
    found: list[tasks.MakeMask] = []
    if given.strokes:
        found.append(
            partial(degrade.free_form_mask, strokes=given.strokes, thickness=given.thickness)
        )
    if given.largest_box:
        found.append(
            partial(degrade.box_mask, smallest=given.smallest_box, largest=given.largest_box)
        )
    if not found:
        raise ValueError("config.masks has neither strokes nor boxes: nothing would be missing")
    return found


def build(config: ConfigDict) -> lessons.Lesson:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    teacher, student = (
        inpainting.gated_generator(
            sizes.width,
            channels=config.data.channels,
            downs=sizes.downs,
            dilations=sizes.dilations,
            separable=sizes.separable,
            dtype=lessons.dtype(config),
        )
        for sizes in (config.teacher, config.student)
    )
    return restoration.lesson(
        config,
        "Distilling an inpainting network",
        tasks.inpainting(masks(config)),
        teacher,
        student,
        ("middle",),
        classical={
            "biharmonic": lambda asked, _: biharmonic(asked),
            "smooth filling": lambda asked, _: smooth(asked),
        },
        shown=lambda asked: np.where(asked.generator[1] > 0.5, 1.0, asked.generator[0]),
    )


def smooth(asked: Inputs) -> Array:
    """The images as the generators first see them: what they are better by, they have learnt."""
    known, missing = asked.generator
    return jax.jit(ops.smooth)(known, missing > 0.5)


def biharmonic(asked: Inputs) -> NDArray[Any]:
    """The images with missing pixels as smooth as can be (Damelin & Hoang 2018).

    Where nothing is known, they are grey.
    """
    from skimage.restoration import inpaint_biharmonic

    known, missing = (np.asarray(x, np.float64) for x in asked.generator)
    return np.stack(
        [
            np.zeros_like(image)
            if mask.all()
            else inpaint_biharmonic(image, mask[..., 0] > 0.5, channel_axis=2)
            for image, mask in zip(known, missing, strict=True)
        ]
    )


EXPERIMENT = lessons.experiment(get_config, build)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
