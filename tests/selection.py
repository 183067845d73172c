"""Which of many cases of one kind the gate runs; all of them are run by `make test-all`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], keep: int | Callable[[Any], bool] = 1) -> list[Any]:
    """The cases, of which those beyond the first `keep`, or that `keep` refuses, are slow."""
    marked = []
    for index, case in enumerate(cases):
        fast = index < keep if isinstance(keep, int) else keep(case)
        values = case if isinstance(case, tuple) else (case,)
        marked.append(case if fast else pytest.param(*values, marks=pytest.mark.slow))
    return marked
