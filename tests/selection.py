"""Selects the cases of a test that `make test` runs; `make test-all` runs all of them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import pytest

FUSED: dict[str, Any] = (
    {"xla_cpu_use_fusion_emitters": True} if jax.__version__.startswith("0.10.") else {}
)
"""Compiler options for comparing two programs to the last bit: the default fusions, which
`conftest.py` switches off."""


def quick(cases: Iterable[Any], keep: int | Callable[[Any], bool] = 1) -> list[Any]:
    """The cases, marked slow beyond the first `keep`, or where `keep(case)` is false."""
    marked = []
    for index, case in enumerate(cases):
        fast = index < keep if isinstance(keep, int) else keep(case)
        values = case if isinstance(case, tuple) else (case,)
        marked.append(case if fast else pytest.param(*values, marks=pytest.mark.slow))
    return marked
