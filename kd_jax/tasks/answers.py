"""Inputs that come with the teacher's answers."""

from kd_jax.core.checks import batch_entry
from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.types import Array, Batch


def answered(conditional: bool = False) -> MakeInputs:
    """Inputs of the generators from the batch, with the teacher's outputs for them.

    The batch has `inputs`, a tuple of arrays `[B, ...]`; `answer`, the teacher's outputs; and
    optionally `real`, the real images, in whose place the answers stand otherwise.

    Args:
      conditional: whether the discriminator takes the second input, the labels, after the image.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        inputs, answer = tuple(batch_entry(batch, "inputs")), batch_entry(batch, "answer")
        condition = inputs[1:2] if conditional else ()
        return Inputs(inputs, condition, batch.get("real", answer), batch, answer)

    return make
