"""What every test shares: eight simulated devices, strict promotion, a compilation cache."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

CACHE = Path(os.environ.get("KD_JAX_CACHE", Path(__file__).parents[1] / ".cache"))

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the original implementations' inputs and outputs, where there is one."""
    default = Path(__file__).parents[2] / "shared" / "golden"
    folder = Path(os.environ.get("KD_JAX_GOLDEN", default))
    if not folder.is_dir():
        pytest.skip(f"no golden files at {folder} (set KD_JAX_GOLDEN)")
    return folder


@pytest.fixture
def x64():
    """Double precision inside one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
