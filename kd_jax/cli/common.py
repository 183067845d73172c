"""Arguments, numbers and errors that the subcommands share."""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kd_jax.core.checks import UsageError
from kd_jax.core.files import naming
from kd_jax.evaluate.generator import split_part
from kd_jax.model import Model, load
from kd_jax.train.checkpoint import CheckpointError
from kd_jax.train.loop import NonFiniteError
from kd_jax.train.shutdown import EXIT_CODE, ShutdownRequested

REFUSED, NOT_FINITE = 2, 3
"""Exit codes: an argument or a file does not fit; a training met NaN or infinity."""

PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Ends the process with one line for errors that a user can cause, and for a shutdown."""
    try:
        yield
    except (OSError, ValueError, UsageError, CheckpointError) as error:
        fail(error, REFUSED)
    except NonFiniteError as error:
        fail(error, NOT_FINITE)
    except (KeyboardInterrupt, ShutdownRequested) as error:
        reason = str(error) or "SIGINT"
        print(f"stopped ({reason}): the same command resumes", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)


def fail(error: Exception, code: int) -> None:
    """Ends the process with one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def add_network(parser: argparse.ArgumentParser, name: str = "network") -> None:
    """Adds the argument that names a network, and those that say how it is read."""
    parser.add_argument(
        name,
        metavar="PATH[#PART]",
        help="a weight file, or the folder of a training, a distillation or a checkpoint; PART: a "
        "network of the file, by default the averaged generator; first or second of a training of "
        "two directions",
    )
    parser.add_argument("--part", help="the network of the file, as PATH#PART")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the network's factory that the file does not determine, such as "
        "conv_clamp=256 or size=28; may be repeated",
    )
    parser.add_argument(
        "--package", action="append", default=[], help="a package of custom modules in checkpoints"
    )


def open_network(path: str, args: argparse.Namespace, generator: bool = True) -> Model:
    """Loads the network that the arguments of `add_network` name.

    Raises:
      ValueError, OSError, CheckpointError: it cannot be read, or is not a generator.
    """
    file, part = split_part(Path(path).expanduser())
    if part is not None and args.part is not None:
        raise ValueError(f"{path} names a part, and so does --part={args.part}")
    with naming(f"read the network {file}"):
        return load(
            file,
            args.part or part,
            options=parse_options(args.option),
            packages=args.package,
            latest=True,
            generator=generator,
        )


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """The values of `NAME=VALUE`, read as JSON where they are JSON, and as text otherwise.

    Raises:
      ValueError: one of them has no `=`.
    """
    result: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise ValueError(f"--option {option!r} is not of the form NAME=VALUE")
        try:
            result[name] = json.loads(value)
        except ValueError:
            result[name] = value
    return result


def amount(text: str) -> float:
    """A number, a fraction, or a number with an SI prefix: `0.04`, `1/25`, `100k`, `2.5G`."""
    if match := re.fullmatch(r"([0-9.]+)/([0-9.]+)", text):
        top, bottom = (_number(part, text) for part in match.groups())
        if not bottom:
            raise argparse.ArgumentTypeError(f"{text!r} divides by 0")
        return top / bottom
    match = re.fullmatch(r"([0-9.eE+-]+)([kMGT]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 1/25, 0.04 or 100k")
    return _number(match[1], text) * PREFIXES[match[2]]


def seconds(text: str) -> float:
    """A time: `5ms`, `0.2s`."""
    match = re.fullmatch(r"([0-9.eE+-]+)(ms|s)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 5ms or 0.2s")
    return _number(match[1], text) / (1e3 if match[2] == "ms" else 1.0)


def numbers(text: str) -> list[int]:
    """A list of numbers and ranges: `0-63`, `3,7,10-12`.

    At most a million, so that a mistyped range does not take all memory.
    """
    result: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0-63 or 3,7,10-12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first + len(result) >= 1_000_000:
            raise argparse.ArgumentTypeError(f"{text!r}: {part} is empty or too long")
        result += range(first, last + 1)
    return result


def _number(part: str, text: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
