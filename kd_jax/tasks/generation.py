"""Generation from latents."""

import jax

from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.types import Array, Batch


def latents(size: int, conditional: bool = False) -> MakeInputs:
    """Images from noise, optionally conditioned on class labels.

    Args:
      size: the length of the latents, which are standard normal `[B, size]`.
      conditional: whether the networks also take `batch["label"]`, int `[B]`.

    Raises:
      ValueError: (of the task) when the batch has no `label`, or, if unconditional, neither `label`
        nor `image`.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        counted = batch.get("label", batch.get("image"))
        if counted is None or (conditional and "label" not in batch):
            needed = "'label'" if conditional else "'label' or 'image'"
            raise ValueError(f"the batch has {sorted(batch)}; drawing latents needs {needed}")
        labels = (batch["label"],) if conditional else ()
        count = counted.shape[0]
        z = jax.random.normal(key, (count, size))
        return Inputs((z, *labels), labels, batch.get("image"), batch)

    return make


def noise(size: int, batch_size: int, classes: int = 0) -> MakeInputs:
    """Images from noise, with latents and labels both drawn.

    A data-free run needs no batch: `{}` suffices. Images in a batch are the real images, and labels
    in a batch replace the drawn ones.

    Args:
      size: the length of the latents, which are standard normal `[B, size]`.
      batch_size: the number of latents, unless given by the batch.
      classes: labels are uniform in [0, classes); 0 for networks without labels.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        extra = dict(batch)
        leaves = jax.tree.leaves(extra)
        count = leaves[0].shape[0] if leaves else batch_size
        z_key, label_key = jax.random.split(key)
        if classes and "label" not in extra:
            extra["label"] = jax.random.randint(label_key, (count,), 0, classes)
        labels = (extra["label"],) if classes else ()
        z = jax.random.normal(z_key, (count, size))
        return Inputs((z, *labels), labels, extra.get("image"), extra)

    return make
