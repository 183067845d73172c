"""Metrics as JSON lines, with the method names of `clu.metric_writers` (which needs TensorFlow)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


class JsonlWriter:
    """Appends one JSON object per line: `{"step": 50, "d/total": 1.2, ...}`.

    Args:
      path: the file; created if absent.
      step: the step from which the run resumes; lines of later steps, which the resumed run writes
        again, are removed, and so is an incomplete last line.
      dry: write nothing; for all processes but the primary one.
    """

    def __init__(self, path: str | os.PathLike[str], step: int = 0, *, dry: bool = False):
        self._path = Path(os.devnull if dry else path)
        self._lines: list[str] = []
        if not dry:
            lines = [json.dumps(row) for row in read_jsonl(self._path) if row["step"] <= step]
            partial = self._path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(partial, self._path)
        self._file = self._path.open("ab", buffering=0)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a line with these scalars, which must be finite; `flush` writes it."""
        row = {"step": int(step), **{k: float(v) for k, v in scalars.items()}}
        self._lines.append(json.dumps(row, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Writes the added lines to the file.

        Raises:
          OSError: they could not be written. The file is left as before, without partial lines, and
            the next call tries to write all of them again.
        """
        rest = memoryview("".join(self._lines).encode())
        end = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)
            raise
        self._lines.clear()

    def close(self) -> None:
        """Flushes and closes the file."""
        try:
            self.flush()
        finally:
            self._file.close()


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a metrics file, without an incomplete last line; empty if there is no file.

    Raises:
      ValueError: a line other than the last is not valid JSON; the message names file and line.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number} is not valid JSON: {line[:80]!r}"
                ) from error
    return rows
