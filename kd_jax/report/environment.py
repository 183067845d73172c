"""Package versions and hardware, for reports."""

import importlib.metadata
import os
import platform

import jax


def environment() -> dict[str, str]:
    """The device, Python and the packages that figures depend on, by name."""
    device = jax.devices()[0]
    count = os.cpu_count() if device.platform == "cpu" else jax.device_count()
    packages = ("kd_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "device": f"{count} x {device.device_kind}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
