"""What conditional networks share."""

from kd_jax.types import Array


def check_labels(classes: int, labels: Array | None) -> None:
    """Raises a ValueError unless a network of `classes` classes (0: unconditional) got its labels.

    Args:
      classes: how many classes the network was made for.
      labels: int `[B]`, or None.
    """
    if (labels is None) != (classes == 0):
        got = "none were given" if labels is None else f"labels of shape {labels.shape} were given"
        raise ValueError(f"the network was made for {classes} classes, but {got}")
