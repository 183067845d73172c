"""Distil pix2pix, photographs from their edges: teacher, student from scratch, distilled student.

    python -m experiments.translation --workdir=runs/translation     # photographs, minutes
    python -m experiments.translation --workdir=runs/full --preset=full    # 256x256, a GPU, and
                                      --config.data.source=folder:A --config.data.test=folder:B
    python -m experiments.translation --dry_run --config.student.width=12

The ResNet generator of Johnson et al. 2016 learns to make patches of photographs from their Sobel
edges and a few coarse colour pixels, with the L1 and an adversarial loss of a PatchGAN that is
conditioned on the same inputs (Isola et al. 2017). A narrower one with separable convolutions is
trained from scratch and distilled. The baseline is the bicubic enlargement of the colours; without
colours (`--config.hints=0`) it is the training patch with the nearest edges.

Hardware and results: two CPU cores; the table in docs/results.md.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from experiments import harness, prediction, restoration, runner
from kd_jax import data as kd_data, tasks
from kd_jax.core.types import Array
from kd_jax.models import translation
from kd_jax.tasks import degradations


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = restoration.base_config()
    config.sigma = 1.0  # of the Gaussian filter before edge detection, in pixels
    config.hints = 8  # the side of the coarse colours in the input, in pixels; 0 for none
    config.norm = "batch"  # or instance, which removes an image's brightness
    config.adversarial = 0.002
    config.batch_size = 8
    config.evaluate_every = config.checkpoint_every = 200
    config.discriminator.width = 8
    config.teacher.update({"width": 16, "blocks": 4, "separable": False, "steps": 400})
    config.student.update({"width": 5, "blocks": 3, "separable": True, "steps": 400})
    if preset == "full":
        config.data.update({"source": "folder:train", "test": "folder:test"})
        config.data.update({"size": 256, "patches": True})
        config.evaluate.images = 1000  # all images and predictions may exceed the memory
        config.discriminator.update({"width": 64, "layers": 3})
        config.teacher.update({"width": 64, "blocks": 9, "steps": 200_000, "rate": 2e-4})
        config.student.update({"width": 20, "blocks": 9, "steps": 200_000, "rate": 2e-4})
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    if preset == "tiny":
        restoration.tiny(config)
        config.discriminator.update({"width": 4, "layers": 1})
        config.teacher.update({"width": 4, "blocks": 1})
        config.student.update({"width": 2, "blocks": 1})
    return config


NORMS: dict[str, translation.Norm] = {"batch": translation.BATCH, "instance": translation.INSTANCE}


def build(config: ConfigDict) -> runner.Comparison:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    if config.norm not in NORMS:
        raise ValueError(f"config.norm={config.norm!r} is not one of {', '.join(NORMS)}")
    if config.hints and config.data.size % config.hints:
        raise ValueError(
            f"config.hints={config.hints} does not divide config.data.size={config.data.size}"
        )
    teacher, student = (
        translation.resnet_generator(
            sizes.width,
            channels=config.data.channels,
            blocks=sizes.blocks,
            norm=NORMS[config.norm],
            separable=sizes.separable,
            residual=bool(config.hints),
            dtype=prediction.dtype(config),
        )
        for sizes in (config.teacher, config.student)
    )
    return restoration.make_comparison(
        config,
        "Distilling translation of edges to photographs",
        tasks.paired(partial(make_condition, sigma=config.sigma, hints=config.hints)),
        teacher,
        student,
        ("down_1",),
        baselines=(
            {"enlarged colours": lambda inputs, _: inputs.generator[0][..., 1:]}
            if config.hints
            else {
                "nearest edges": lambda inputs, train: nearest_by_edges(
                    np.asarray(inputs.generator[0]), train, config.sigma
                )
            }
        ),
        show_inputs=lambda inputs: inputs.generator[0][..., :1],
    )


def make_condition(images: Array, sigma: float, hints: int) -> Array:
    """The edges of photographs (channel 0) and their coarse colours (the other channels).

    The colours are downsampled to `hints` pixels a side and enlarged to the photographs' size.
    """
    edges = degradations.edges(images, sigma=sigma)
    if not hints:
        return edges
    factor = images.shape[1] // hints
    colours = degradations.upsample(degradations.downsample(images, factor), factor)
    return jnp.concatenate([edges, colours], axis=3)


def nearest_by_edges(
    edges: NDArray[np.float32], train: kd_data.Source, sigma: float
) -> NDArray[np.float32]:
    """For each edge map `[N, H, W, 1]` the training image with the nearest edges."""
    images = kd_data.load_all(train)["image"]
    known = np.concatenate(
        [
            np.asarray(degradations.edges(jnp.asarray(images[start : start + 64]), sigma=sigma))
            for start in range(0, len(images), 64)
        ]
    ).reshape(len(images), -1)
    queries = edges.reshape(len(edges), -1)
    distances = (known**2).sum(axis=1)[None] - 2 * queries @ known.T
    return images[distances.argmin(axis=1)]


EXPERIMENT = runner.experiment(get_config, build, prediction.PRESETS)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
