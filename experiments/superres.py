"""Distil a super-resolution network: teacher, student from scratch and distilled, and bicubic.

    python -m experiments.superres --workdir=runs/superres            # photographs, 4x, minutes
    python -m experiments.superres --workdir=runs/full --preset=full --config.data.source=folder:A
                                   --config.data.test=folder:B        # images of 128x128, a GPU
    python -m experiments.superres --dry_run --config.student.width=8

An SRResNet (Ledig et al. 2017) without normalisation (Lim et al. 2017) learns to enlarge patches of
photographs that were downsampled as in Pillow. A narrower one is trained from scratch with the L1
distance to the original, and distilled with the L1 distance to the teacher's image as well. In
`full` the teacher is ESRGAN's generator (Wang et al. 2018).

Hardware and results: two CPU cores; the table in docs/results.md.
"""

from collections.abc import Callable
from functools import partial

from ml_collections import ConfigDict

from experiments import harness, prediction, restoration, runner
from kd_jax import tasks
from kd_jax.core.network import Network
from kd_jax.models import superres
from kd_jax.tasks import degradations


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = restoration.base_config()
    config.scale = 4
    config.noise = 0.0  # standard deviation of noise on the small images, which are in [-1, 1]
    config.teacher.update({"model": "srresnet", "width": 32, "blocks": 6, "separable": False})
    config.student.update({"width": 10, "blocks": 3, "separable": False})
    if preset == "full":
        config.data.update({"source": "folder:train", "test": "folder:test"})
        config.data.update({"size": 128, "patches": True})
        config.evaluate.images = 1000  # all images and predictions may exceed the memory
        config.teacher.update({"model": "rrdb", "width": 64, "blocks": 23, "steps": 400_000})
        config.teacher.rate = config.student.rate = 2e-4
        config.student.update({"width": 32, "blocks": 8, "steps": 400_000})
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    if preset == "tiny":
        restoration.tiny(config)
        config.teacher.update({"width": 8, "blocks": 1})
        config.student.update({"width": 4, "blocks": 1})
    return config


TEACHERS: dict[str, Callable[..., Network]] = {
    "srresnet": partial(superres.srresnet, window=3),
    "rrdb": superres.rrdb,
}


def build(config: ConfigDict) -> runner.Comparison:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    if config.teacher.model not in TEACHERS:
        raise ValueError(
            f"config.teacher.model={config.teacher.model!r} is not one of {', '.join(TEACHERS)}"
        )
    if config.data.size % config.scale:
        raise ValueError(
            f"config.data.size={config.data.size} is not a multiple of config.scale={config.scale}"
        )
    common = {"channels": config.data.channels, "dtype": prediction.dtype(config)}
    large, small = config.teacher, config.student
    teacher = TEACHERS[large.model](
        config.scale, large.width, large.blocks, separable=large.separable, **common
    )
    student = superres.srresnet(
        config.scale, small.width, small.blocks, window=3, separable=small.separable, **common
    )
    return restoration.make_comparison(
        config,
        f"Distilling {config.scale}x super-resolution",
        tasks.super_resolution(config.scale, deviation=config.noise),
        teacher,
        student,
        ("trunk",),
        baselines={
            "bicubic": lambda inputs, _: degradations.upsample(inputs.generator[0], config.scale)
        },
        show_inputs=lambda inputs: restoration.enlarge(inputs.generator[0], config.data.size),
    )


EXPERIMENT = runner.experiment(get_config, build, prediction.PRESETS)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
