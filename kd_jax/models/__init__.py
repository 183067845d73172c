"""Architectures, one a file; each makes `Network`s with taps."""

from kd_jax.models import classifier, dcgan, mlp

__all__ = ["classifier", "dcgan", "mlp"]
