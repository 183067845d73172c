"""Fixtures and settings of all tests: 8 simulated devices, strict promotion, fast compilation."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, and a program runs only a few times: skip optimizations.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # Unknown to later versions.
        *["--xla_cpu_use_fusion_emitters=false"] * version("jax").startswith("0.10."),
    ]
)

import jax
import pytest

from kd_jax.ops import cpu

CACHE = Path(os.environ.get("KD_JAX_CACHE", Path(__file__).parents[1] / ".cache"))

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# A shell's background jobs ignore these, and so would the processes that tests start and stop.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

gc.disable()  # traces are many small objects; `collect` scans them once per module

# The CPU algorithms compile slowly; their own tests enable them by `cpu_algorithms`.
cpu.ENABLED = False


@pytest.fixture(autouse=True, scope="module")
def collect():
    """Collects garbage after each module, and excludes the remaining objects from later scans."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def cpu_algorithms():
    """Enables the convolution algorithms that are the default on CPUs outside the tests."""
    cpu.ENABLED = True
    jax.clear_caches()
    yield
    cpu.ENABLED = False
    jax.clear_caches()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the original implementations' inputs and outputs; skips if it is missing."""
    default = Path(__file__).parents[2] / "shared" / "golden"
    folder = Path(os.environ.get("KD_JAX_GOLDEN", default))
    if not folder.is_dir():
        pytest.skip(f"no golden files at {folder} (set KD_JAX_GOLDEN)")
    return folder


@pytest.fixture
def x64():
    """Enables double precision in one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
