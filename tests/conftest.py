"""What every test shares: eight simulated devices, strict promotion, quick compilation."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, and a program is run a few times: it need not be fast.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

import jax
import pytest

from kd_jax.ops import convolution

CACHE = Path(os.environ.get("KD_JAX_CACHE", Path(__file__).parents[1] / ".cache"))

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

gc.disable()  # traces are large heaps of small objects; `collect` looks at them once a module

# The algorithms for CPUs take long to compile; the tests that are about them ask for them.
convolution.CPU_ALGORITHMS = False


@pytest.fixture(autouse=True, scope="module")
def collect():
    """Garbage is collected after each module, and what is left then is never looked at again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def cpu_algorithms():
    """The convolutions as they are computed on CPUs outside of the tests."""
    convolution.CPU_ALGORITHMS = True
    jax.clear_caches()
    yield
    convolution.CPU_ALGORITHMS = False
    jax.clear_caches()


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
