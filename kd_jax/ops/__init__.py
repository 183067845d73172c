"""Array operations shared by the networks, written to be fast on every platform."""

from kd_jax.ops.activation import ACTIVATIONS, Activation, bias_act, filtered_lrelu, leaky_relu
from kd_jax.ops.batch import minibatch_stddev
from kd_jax.ops.convolution import conv, conv_transpose
from kd_jax.ops.depthwise import depthwise_conv
from kd_jax.ops.filling import harmonic_inpaint
from kd_jax.ops.grouped import grouped_conv
from kd_jax.ops.masks import box_mask, free_form_mask
from kd_jax.ops.modulated import conv_resample, modulated_conv
from kd_jax.ops.padding import crop, pad
from kd_jax.ops.quantisation import round_image, round_kernel, rounded
from kd_jax.ops.resample import (
    downsample2d,
    filter2d,
    resampling_filter,
    upfirdn2d,
    upsample2d,
)
from kd_jax.ops.resizing import (
    pil_bicubic,
    resize,
    tf1_bilinear,
    torch_bicubic,
    torch_bilinear,
)
from kd_jax.ops.sampling import decimate, interpolate

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "bias_act",
    "box_mask",
    "conv",
    "conv_resample",
    "conv_transpose",
    "crop",
    "decimate",
    "depthwise_conv",
    "downsample2d",
    "filter2d",
    "filtered_lrelu",
    "free_form_mask",
    "grouped_conv",
    "harmonic_inpaint",
    "interpolate",
    "leaky_relu",
    "minibatch_stddev",
    "modulated_conv",
    "pad",
    "pil_bicubic",
    "resampling_filter",
    "resize",
    "round_image",
    "round_kernel",
    "rounded",
    "tf1_bilinear",
    "torch_bicubic",
    "torch_bilinear",
    "upfirdn2d",
    "upsample2d",
]
