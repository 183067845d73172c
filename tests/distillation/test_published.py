"""Every published generator through every command: inspect, distill, sample, evaluate."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import published
import pytest
from PIL import Image

import kd_jax as kd

ROOT = Path(__file__).parents[2]

# Golden files of training states have an averaged and a raw generator: the raw one is named.
PARTS = {"r3gan_loss_a": "#G", "stylegan2_loss_a": "#G"}


def images(folder, size, channels, count=40):
    """A folder of random images, as inputs of translation and super-resolution."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(256, size=(size, size, channels), dtype=np.uint8)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(folder / f"{number}.png")
    return folder


def run(*arguments):
    """The command, in a process of one device; these programs run once, so compilation is short."""
    command = [sys.executable, "-m", "kd_jax", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", published.generators())
def test_commands_take_every_published_generator(name, tmp_path):
    path = published.write(name, tmp_path)
    spec = f"{path}{PARTS.get(name, '')}"
    model = kd.load(path, PARTS.get(name, "")[1:] or None)
    interface = model.interface
    run("inspect", spec, "--out", tmp_path / "inspected")
    assert kd.load(tmp_path / "inspected" / "checkpoint").interface == interface

    data = []
    if interface.takes_images:
        size = 256 if name.startswith("unet") else 32
        data = [f"--images=folder:{images(tmp_path / 'images', size, 3)}", f"--size={size}"]
    out = tmp_path / "distilled"
    common = ["--macs=1/2", "--steps=20", "--batch=8", "--samples=16"]
    run("distill", spec, "--out", out, *common, *data)
    report = json.loads((out / "report.json").read_text())
    figures = {e["name"]: e["figures"] for e in report["tables"][0]["entries"]}
    assert figures["student"]["macs"]["value"] <= 0.5 * figures["teacher"]["macs"]["value"]
    assert np.isfinite(figures["student"]["error"]["value"])

    run("sample", out, "--seeds=0-3", "--out", tmp_path / "s.png", *data)
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size[0] == 2 * kd.load(out).interface.size
    if not interface.takes_images:
        size = interface.size
        folder = images(tmp_path / "real", size, interface.channels)
        real = ["--data", f"folder:{folder}", "--draws=1", "--batch=16"]
        run("evaluate", out, spec, *real, "--out", tmp_path / "evaluated")
        assert (tmp_path / "evaluated" / "report.html").exists()
