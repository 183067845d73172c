"""Forward passes of given values, for the tests of single terms."""

import jax.numpy as jnp

from kd_jax.core.objective import BoundNetwork, DiscriminatorPass, Forward, GeneratorPass, Inputs


def make_forward(
    output,
    *,
    step=0,
    taps=None,
    real=None,
    teacher=None,
    teacher_taps=None,
    teacher_fn=None,
    discriminate=None,
    teacher_discriminate=None,
):
    """The pass of a student with this output; parts that are None are absent."""
    forward = Forward(
        step=jnp.asarray(step, jnp.int32),
        key=None,
        inputs=Inputs((), real=real),
        student=GeneratorPass(output, taps, None),
    )
    if teacher is not None:
        forward = forward._replace(
            teacher=GeneratorPass(teacher, teacher_taps, BoundNetwork(teacher_fn))
        )
    if discriminate is not None:
        scores = None if real is None else discriminate(real)
        network = BoundNetwork(discriminate)
        forward = forward._replace(
            discriminator=DiscriminatorPass(*discriminate(output), scores, network)
        )
    if teacher_discriminate is not None:
        forward = forward._replace(teacher_discriminator=BoundNetwork(teacher_discriminate))
    return forward
