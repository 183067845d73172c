"""Published methods for distilling generators: functions that return two dicts of terms.

A method is a `PerNetwork(generator=terms, discriminator=terms)` of dicts that may be edited.
Methods whose paper has an adversarial loss take it as `adversarial`: `nonsaturating()` by default,
or `hinge()`, `wasserstein()`, `least_squares()`, `relativistic()`. Unless stated otherwise, default
weights are those of the authors' code, for images in [-1, 1].

Feature terms take the names of taps. If widths differ, connect the student first:
`connect_to(student, teacher, taps, *inputs)` infers the shapes. Perceptual terms read the taps
`layers` of `networks.extractor`, a frozen image network (VGG, a classifier).
"""

from kd_jax.methods import image_pool, weights
from kd_jax.methods.adversarial import (
    hinge,
    least_squares,
    nonsaturating,
    relativistic,
    wasserstein,
)
from kd_jax.methods.aguinaldo import aguinaldo
from kd_jax.methods.cat import cat
from kd_jax.methods.cyclegan import cyclegan
from kd_jax.methods.dcd import dcd
from kd_jax.methods.dgl import dgl
from kd_jax.methods.discriminator_distillation import discriminator_distillation
from kd_jax.methods.gan_compression import gan_compression
from kd_jax.methods.hinton import hinton
from kd_jax.methods.mobile_stylegan import mobile_stylegan
from kd_jax.methods.omgd import omgd
from kd_jax.methods.response import response
from kd_jax.methods.sefa import sefa_directions
from kd_jax.methods.soft_label import soft_label
from kd_jax.methods.stylegan2 import lazy_adam, stylegan2
from kd_jax.methods.stylekd import stylekd
from kd_jax.methods.taps import on_taps
from kd_jax.methods.tinygan import tinygan

__all__ = [
    "aguinaldo",
    "cat",
    "cyclegan",
    "dcd",
    "dgl",
    "discriminator_distillation",
    "gan_compression",
    "hinge",
    "hinton",
    "image_pool",
    "lazy_adam",
    "least_squares",
    "mobile_stylegan",
    "nonsaturating",
    "omgd",
    "on_taps",
    "relativistic",
    "response",
    "sefa_directions",
    "soft_label",
    "stylegan2",
    "stylekd",
    "tinygan",
    "wasserstein",
    "weights",
]
