"""Latent directions that change a generator's images most, by closed-form factorization."""

from collections.abc import Sequence

import jax.numpy as jnp

from kd_jax.core.types import Array


def sefa_directions(weights: Sequence[Array], count: int | None = None) -> Array:
    """The principal directions of layers that read a latent: rows, strongest first.

    The eigenvectors of `W W^T`, where the columns of W are the layers' rows, each divided by its
    norm. Shen & Zhou 2021 (SeFa), eq. 6, with the normalisation of Xu et al. 2022 (StyleKD).

    Args:
      weights: matrices `[out, latent]` that multiply the latent.
      count: the number of directions; None for all.

    Returns:
      `[count, latent]`: unit vectors, orthogonal, signs arbitrary.

    Raises:
      ValueError: `weights` is empty, or not of matrices for the same latent.
    """
    if not weights or any(w.ndim != 2 or w.shape[1] != weights[0].shape[1] for w in weights):
        shapes = [tuple(w.shape) for w in weights]
        raise ValueError(f"expected [out, latent] matrices for one latent, not shapes {shapes}")
    rows = jnp.concatenate([jnp.asarray(w) for w in weights])
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / jnp.where(norms > 0, norms, 1)
    _, vectors = jnp.linalg.eigh(rows.T @ rows)
    return vectors.T[::-1][:count]
