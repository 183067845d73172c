"""Parity with the original implementations' outputs, read from files in `KD_JAX_GOLDEN`.

There is one test per file, run by the family in its name (`parity/`). A family computes all outputs
of the file from the file alone; an output that is not computed is a failure.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from parity.golden import FILES, FOLDER, File
from selection import quick

PARTS = (
    "augment",
    "biggan",
    "dcgan",
    "inception",
    "losses",
    "metrics",
    "ops",
    "perceptual",
    "r3gan",
    "realesrgan",
    "snapshots",
    "stylegan1",
    "stylegan2",
    "stylegan3",
    "translation",
)
"""The modules of `parity/`; each has its families in `FAMILIES`."""

FAMILIES = {
    name: family
    for part in PARTS
    for name, family in import_module(f"parity.{part}").FAMILIES.items()
}


def family_of(stem: str) -> str | None:
    """The family with the longest name that is a prefix of a file's; None if there is none."""
    matches = [name for name in FAMILIES if stem == name or stem.startswith(f"{name}_")]
    return max(matches, key=len, default=None)


def is_quick(path: Path) -> bool:
    """Whether `make test` runs a file: its family takes seconds, or is unknown and skipped."""
    name = family_of(path.stem)
    return name is None or not FAMILIES[name].slow


@pytest.mark.skipif(not FILES, reason=f"no golden files at {FOLDER} (set KD_JAX_GOLDEN)")
@pytest.mark.parametrize(
    "path", quick(FILES or [FOLDER / "none"], is_quick), ids=lambda path: path.stem
)
def test_matches_the_original(path):
    name = family_of(path.stem)
    if name is None:
        pytest.skip(f"no parity for {path.stem}")
    file, family = File(path), FAMILIES[name]
    outputs = family.outputs(file)
    expected = {name for name in file if name.startswith("out/")}
    assert not expected - outputs.keys(), "outputs that are not compared"
    for name in sorted(expected):
        ours, rtol = np.asarray(outputs[name]), family.tolerance(name)
        theirs = file.arrays[name] if family.as_stored(name) else file[name]
        assert ours.shape == theirs.shape, name
        absolute = family.absolute(name)
        atol = rtol * np.abs(theirs).max(initial=0) if absolute is None else absolute
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=name)
