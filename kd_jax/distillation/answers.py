"""The teacher's answers to a numbered set of inputs, kept on disk."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.core.files import claim_folder, file_lock, naming
from kd_jax.core.types import Variables
from kd_jax.distillation.examples import Examples
from kd_jax.model import Model
from kd_jax.report.progress import Progress
from kd_jax.train.checkpoint import versions

RECORDS = 64
"""Answers in a file."""

INDEX = "answers.json"


def variables_digest(variables: Variables) -> str:
    """16 hex digits of a SHA-256 of all numbers and their paths."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def disk_use(examples: Examples, model: Model) -> int:
    """The bytes that the answers take."""
    return (examples.total or 0) * int(np.prod(model.interface.output)) * 4


class Answers:
    """Answers in float32, in files of `RECORDS` each; created by `keep_answers`."""

    def __init__(self, folder: Path, shape: tuple[int, ...]):
        self._folder, self._shape = folder, shape
        self._readers: dict[int, Any] = {}

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """The answers `[B, H, W, C]` to the inputs of these numbers `[B]`.

        Raises:
          ValueError: a file is damaged or missing.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        answers = np.empty((len(numbers), *self._shape), np.float32)
        for row, number in enumerate(np.asarray(numbers).tolist()):
            file, place = divmod(number, RECORDS)
            path = _path(self._folder, file)
            try:
                if file not in self._readers:
                    options = "readahead_buffer_size:0,max_parallelism:0"
                    self._readers[file] = ArrayRecordReader(str(path), options)
                (record,) = self._readers[file].read([place])
                answers[row] = np.frombuffer(record, np.float32).reshape(self._shape)
            except (ValueError, IndexError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:120]
                raise ValueError(
                    f"{path} is damaged or missing: delete it to compute it again ({reason})"
                ) from None
        return answers


def keep_answers(
    folder: Path,
    model: Model,
    examples: Examples,
    answer: Callable[[Any], Any],
    progress: Progress | None = None,
) -> Answers:
    """The teacher's answers to a numbered set of inputs, computed where they are not on disk yet.

    A computation that is interrupted continues with the file that it was at.

    Args:
      folder: the folder of the files; new, or that of the same teacher, inputs and library.
      model: the teacher.
      examples: a numbered set of inputs.
      answer: `inputs -> answers`, from `kd_jax.distillation.examples.teacher_answers`.
      progress: shows the progress.

    Raises:
      ValueError: the inputs are not numbered, or the answers do not fit on the disk.
      UsageError: the folder holds the answers of another teacher, to other inputs, or of other
        versions of the libraries; the message names the difference.
      OSError: a file cannot be written.
    """
    count, select = examples.total, examples.select
    if count is None or select is None:
        raise ValueError(f"{examples.name} have no end: answers are kept of a set of inputs")
    shape = model.interface.output
    settings = {
        "teacher": variables_digest(model.variables),
        "inputs": examples.name,
        "inputs' fingerprint": examples.fingerprint,
        "count": count,
        "shape": list(shape),
        "records in a file": RECORDS,
        "platform": jax.default_backend(),
        "versions": {name: versions()[name] for name in ("jax", "jaxlib")},
    }
    claim_folder(folder, INDEX, settings, "answers of a teacher")
    with file_lock(folder, ".lock", wait=True):
        show = (progress or Progress()).stage("the teacher's answers", count)
        prepare = jax.jit(examples.prepare)
        files = range(-(-count // RECORDS))
        missing = [file for file in files if not _path(folder, file).exists()]
        if missing:
            need, free = len(missing) * RECORDS * 4 * int(np.prod(shape)), disk_free(folder)
            if need > free:
                raise ValueError(
                    f"{folder}: the answers take {need / 2**20:,.0f} MiB, and only "
                    f"{free / 2**20:,.0f} MiB are free"
                )
        for file in missing:
            show(file * RECORDS)
            numbers = np.arange(file * RECORDS, min((file + 1) * RECORDS, count))
            outputs = np.asarray(answer(prepare(select(numbers))), np.float32)
            with naming(f"write the answers to {folder}"):
                _write(_path(folder, file), outputs)
        show(count)
    return Answers(folder, shape)


def disk_free(folder: Path) -> int:
    """The free bytes of the disk that a folder is on."""
    return shutil.disk_usage(folder).free


def _path(folder: Path, file: int) -> Path:
    return folder / f"{file:06d}.array_record"


def _write(path: Path, outputs: np.ndarray) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = path.with_suffix(".partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    for output in outputs:
        writer.write(output.tobytes())
    writer.close()
    partial.replace(path)
