"""The command `kd-jax`, also `python -m kd_jax`: a module with `main(arguments)` per subcommand."""

import importlib
import sys

from kd_jax.core.streams import survive_closed_streams

COMMANDS = {
    "inspect": "describe a weight file or a training; write samples and a checkpoint",
    "distill": "train a small student of a generator, and measure it",
    "sample": "write images of a generator, or a video of an interpolation",
    "export": "write a generator as files for other programs: ONNX, safetensors",
    "evaluate": "compare generators with real images; write a report",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the subcommand that the first argument names, with the other arguments."""
    if arguments is None:
        survive_closed_streams()
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in COMMANDS:
        try:
            importlib.import_module(f"kd_jax.cli.{command}").main(rest)
        except ModuleNotFoundError as error:
            print(
                f"error: kd-jax {command} needs {error.name}, which is not installed: "
                "pip install 'kd_jax[evaluate]'",
                file=sys.stderr,
            )
            sys.exit(2)
        return
    usage = "\n".join(
        ["usage: kd-jax COMMAND ...", ""]
        + [f"  {name:10} {about}" for name, about in COMMANDS.items()]
        + ["", "kd-jax COMMAND --help lists its arguments."]
    )
    if command in ("-h", "--help"):
        print(usage)
        return
    print(f"{usage}\n\nerror: no command {command!r}", file=sys.stderr)
    sys.exit(2)
