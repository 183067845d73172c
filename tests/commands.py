"""The commands as processes, and what every command must do with a generator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import kd_jax as kd
from kd_jax.distillation.examples import image_inputs
from kd_jax.models.families import find_family

ROOT = Path(__file__).parents[1]


def images(folder, size, channels, count=40):
    """A folder of random images."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(256, size=(size, size, channels), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / f"{number}.png")
    return folder


def run(*arguments):
    """The output of the command, in a process of one device."""
    result = start(*arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def refused(*arguments):
    """The only line of the error of a command that refuses its arguments."""
    result = start(*arguments)
    assert result.returncode == 2, result.stderr[-2000:]
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def start(*arguments):
    command = [sys.executable, "-m", "kd_jax", *map(str, arguments)]
    # With the compiler's optimizations, without which images of 1024x1024 take minutes.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


def check_commands(spec, model, folder, size=32):
    """A generator is inspected, distilled in 20 steps, sampled, and evaluated if it takes latents.

    Args:
      spec: the path of the generator, with its part.
      model: the generator.
      folder: an empty folder.
      size: the side of the outputs of a generator that takes images.

    Returns:
      The figures of the report of the distillation, by network.
    """
    interface = model.interface
    run("inspect", spec, "--out", folder / "inspected")
    assert kd.load(folder / "inspected" / "checkpoint").interface == interface

    data = []
    if interface.takes_images:
        channels = image_inputs(interface, find_family(model.network)).channels
        data = [f"--images=folder:{images(folder / 'images', size, channels)}", f"--size={size}"]
    out = folder / "distilled"
    common = ["--macs=1/2", "--steps=20", "--batch=8", "--samples=16"]
    run("distill", spec, "--out", out, *common, *data)
    report = json.loads((out / "report.json").read_text())
    figures = {e["name"]: e["figures"] for e in report["tables"][0]["entries"]}
    assert figures["student"]["macs"]["value"] <= 0.5 * figures["teacher"]["macs"]["value"]
    assert np.isfinite(figures["student"]["error"]["value"])

    run("sample", out, "--seeds=0-3", "--out", folder / "s.png", *data)
    with Image.open(folder / "s.png") as sheet:
        assert sheet.size[0] == 2 * kd.load(out).interface.size
    if interface.takes_images:
        return figures
    real = images(folder / "real", interface.size, interface.channels)
    flags = ["--data", f"folder:{real}", "--draws=1", "--batch=16"]
    run("evaluate", out, spec, *flags, "--out", folder / "evaluated")
    assert (folder / "evaluated" / "report.html").exists()
    return figures
