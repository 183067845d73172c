"""Metrics as JSON lines and TensorBoard events, with the method names of `clu.metric_writers`.

(`clu` itself needs TensorFlow.)
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.core.files import write_atomically


class JsonlWriter:
    """Appends one JSON object per line: `{"step": 50, "d/total": 1.2, ...}`.

    Args:
      path: the file; created if absent.
      step: the step from which the run resumes; lines of later steps, which the resumed run writes
        again, are removed, and so is an incomplete last line.
      checksum: what `checksum` returned at that step; None to verify nothing.
      dry: write nothing; for all processes but the primary one.

    Raises:
      ValueError: a line is damaged, or the lines do not have the checksum; the file is not changed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        step: int = 0,
        *,
        checksum: str | None = None,
        dry: bool = False,
    ):
        self._path = Path(os.devnull if dry else path)
        self._lines: list[str] = []
        self._hash = hashlib.sha256()
        if not dry:
            rows = [row for row in read_jsonl(self._path) if row["step"] <= step]
            for row in rows:
                self._update(row)
            if checksum not in (None, self.checksum()):
                raise ValueError(
                    f"{self._path} is damaged: its {len(rows)} lines up to step {step} are not "
                    "those that were written (config.run.allow_changes=True continues with them)"
                )
            write_atomically(self._path, "".join(f"{json.dumps(row)}\n" for row in rows))
        self._file = self._path.open("ab", buffering=0)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a line with these scalars, which must be finite; `flush` writes it."""
        row = {"step": int(step), **{k: float(v) for k, v in scalars.items()}}
        self._lines.append(json.dumps(row, allow_nan=False) + "\n")
        self._update(row)

    def checksum(self) -> str:
        """The SHA-256 of all lines so far, without their times, which differ between equal runs."""
        return self._hash.hexdigest()

    def _update(self, row: Mapping[str, float]) -> None:
        figures = {name: value for name, value in row.items() if name != "wall_time"}
        self._hash.update(json.dumps(figures, sort_keys=True).encode())

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


class TensorBoardWriter:
    """Writes scalars and pictures as TensorBoard event files.

    Args:
      directory: the folder of the event files, and TensorBoard's name for the training.
      step: the step from which the run resumes; TensorBoard discards events of later steps.

    Raises:
      ModuleNotFoundError: tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str], step: int = 0):
        from tensorboardX import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=10)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars, which appear within ten seconds."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_picture(self, step: int, file: Path) -> None:
        """Adds a picture from a PNG file."""
        import numpy as np

        from kd_jax.data.images import open_image

        with open_image(file.read_bytes(), str(file)) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes the remaining events and closes the file."""
        self._writer.close()


def duration(seconds: float) -> str:
    """A time in the unit that people would choose: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a metrics file, without an incomplete last line; empty if there is no file.

    Raises:
      ValueError: a line other than the last is not a row in valid JSON; the message names file and
        line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: byte {error.start} is not UTF-8") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError("no row with a step")
            rows.append(row)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number} is not valid JSON with a step: {line[:80]!r}"
                ) from error
    return rows
