"""Distillation of any known generator in one call: `kd_jax.distill`, `kd_jax.prune`."""

from kd_jax.distillation.choices import Distillation, make_distillation, make_plan
from kd_jax.distillation.methods import METHODS, Method, Parts
from kd_jax.distillation.pipeline import Result, distill, run
from kd_jax.distillation.prune import prune, student_of

__all__ = [
    "METHODS",
    "Distillation",
    "Method",
    "Parts",
    "Result",
    "distill",
    "make_distillation",
    "make_plan",
    "prune",
    "run",
    "student_of",
]
