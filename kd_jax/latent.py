"""Directions in a generator's latent space that change its images most."""

from collections.abc import Sequence

import jax.numpy as jnp

from kd_jax.types import Array


def directions(weights: Sequence[Array], count: int | None = None) -> Array:
    """The principal directions of layers that read a latent: rows, the strongest first.

    The eigenvectors of `W W^T`, where the columns of W are the layers' rows, each divided by its
    norm. Shen & Zhou 2021 (SeFa), eq. 6, with the normalisation of Xu et al. 2022 (StyleKD).

    Args:
      weights: `[out, latent]` each: matrices that the latent is multiplied by.
      count: how many; all of them if None.

    Returns:
      `[count, latent]`: unit vectors, orthogonal, signs arbitrary.

    Raises:
      ValueError: there are no weights, or they are not matrices for the same latent.
    """
    if not weights or any(w.ndim != 2 or w.shape[1] != weights[0].shape[1] for w in weights):
        shapes = [tuple(w.shape) for w in weights]
        raise ValueError(f"[out, latent] matrices for one latent are needed, not shapes {shapes}")
    rows = jnp.concatenate([jnp.asarray(w) for w in weights])
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / jnp.where(norms > 0, norms, 1)
    _, vectors = jnp.linalg.eigh(rows.T @ rows)
    return vectors.T[::-1][:count]
