"""Shared parts of conditional networks."""

from kd_jax.core.types import Array


def check_labels(classes: int, labels: Array | None) -> None:
    """Raises a ValueError unless labels are given exactly if the network has classes.

    Args:
      classes: the network's number of classes; 0 for an unconditional network.
      labels: int `[B]`, or None.
    """
    if (labels is None) != (classes == 0):
        got = "none were given" if labels is None else f"labels of shape {labels.shape} were given"
        raise ValueError(f"the network was made for {classes} classes, but {got}")
