"""Classification."""

from kd_jax.core.checks import batch_entry
from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.types import Array, Batch


def classification() -> MakeInputs:
    """Logits from images, without a discriminator; `extra["label"]` is the target class."""

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        batch_entry(batch, "label")
        return Inputs((batch_entry(batch, "image"),), extra=batch)

    return make
