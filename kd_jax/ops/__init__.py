"""Array operations that the networks share, written so that every platform runs them fast."""

from kd_jax.ops.batch import minibatch_stddev
from kd_jax.ops.convolution import conv, conv_transpose

__all__ = ["conv", "conv_transpose", "minibatch_stddev"]
