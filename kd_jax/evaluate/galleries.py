"""The pictures of an evaluation's report: samples, interpolations, nearest neighbours."""

import numpy as np

from kd_jax.evaluate.generator import Samples
from kd_jax.evaluate.reference import Reference
from kd_jax.evaluate.subject import interleave_classes
from kd_jax.metrics import prdc
from kd_jax.report.page import Gallery, Picture, tile
from kd_jax.report.pictures import to_uint8

SAMPLES, INTERPOLATIONS, POSITIONS, QUERIES, NEIGHBOURS = 24, 4, 12, 12, 3
"""Numbers of samples, of interpolations, of images in each, of queries and of their neighbours."""


class Galleries:
    """Collects the pictures of the report, network by network."""

    def __init__(self, reference: Reference):
        self._reference = reference
        indices = interleave_classes(reference.labels)[:SAMPLES]
        images = [reference.source[i]["image"] for i in indices]
        self._paths: list[Picture] = []
        self._nearest: list[Picture] = []
        side = reference.source.image_shape[0]
        self._scale = max(1, round(72 / side))
        real = tile(to_uint8(np.stack(images)), POSITIONS, scale=self._scale)
        self._samples = [Picture("real images", real)]
        neighbours = prdc.nearest(reference.features, reference.features, 2)
        # The first neighbour is the image itself.
        self._real_distance = float(np.median(neighbours.distances[:, 1]))

    def add(
        self, name: str, samples: Samples, features: np.ndarray, ways: np.ndarray | None
    ) -> None:
        """Adds the pictures of one network.

        Args:
          name: the network's name.
          samples: its samples.
          features: features of the samples.
          ways: `INTERPOLATIONS` interpolations of `POSITIONS` images each, row by row; or None.
        """
        sheet = tile(samples.images[:SAMPLES], POSITIONS, scale=self._scale)
        clipped = f"; {samples.clipped:.1%} of the values clipped" if samples.clipped else ""
        self._samples.append(Picture(f"{name}{clipped}", sheet))
        if ways is not None:
            self._paths.append(Picture(name, tile(ways, POSITIONS, scale=self._scale)))
        distances, indices = prdc.nearest(features, self._reference.features, NEIGHBOURS)
        closest = np.argsort(distances[:, 0])[:QUERIES]
        rows = [samples.images[closest]]
        for rank in range(NEIGHBOURS):
            images = [self._reference.source[int(i)]["image"] for i in indices[closest, rank]]
            rows.append(to_uint8(np.stack(images)))
        median = float(np.median(distances[:, 0]))
        caption = (
            f"{name}: median distance to the nearest real image {median:.3g}; between real images "
            f"{self._real_distance:.3g}"
        )
        stacked = np.concatenate(rows)
        self._nearest.append(Picture(caption, tile(stacked, len(closest), scale=self._scale)))

    def build(self) -> list[Gallery]:
        """The galleries of the report."""
        galleries = [
            Gallery(
                "Samples",
                "Real images come first. Generators use the same latents at the same positions.",
                self._samples,
            ),
            Gallery(
                "Interpolations",
                "Great-circle interpolations between two latents of a class.",
                self._paths,
            ),
            Gallery(
                "Nearest neighbours (memorization check)",
                "The samples closest to a real image (first row) and their nearest real images, in "
                "the extractor's features. Samples of a generator that memorizes images are much "
                "closer to real images than real images are to each other.",
                self._nearest,
            ),
        ]
        return [gallery for gallery in galleries if gallery.pictures]
