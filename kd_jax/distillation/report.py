"""The report of a distillation, and its sample grids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.network import Network
from kd_jax.core.types import Variables
from kd_jax.data.source import to_float
from kd_jax.distillation.choices import Distillation
from kd_jax.distillation.measurement import Measurement, make_sampler
from kd_jax.evaluate import measure
from kd_jax.evaluate.generator import EvaluatedGenerator
from kd_jax.report import page, pictures
from kd_jax.report.columns import Entry, Figure, Table
from kd_jax.report.environment import environment
from kd_jax.report.page import Gallery, Picture, Report
from kd_jax.train.logs import read_jsonl

SHOWN = 10
"""Examples in a picture."""

TEACHER = "teacher"

CURVES = {
    "quality/frechet": "Frechet distance to the teacher",
    "quality/psnr": "PSNR to the teacher (dB)",
    "g/total": "generator, total loss",
}
"""The metrics that are plotted over training, by their keys."""


def draw(file: Path, measurement: Measurement, rows: Mapping[str, np.ndarray]) -> None:
    """Writes a grid: the inputs, if they are images; the teacher's answers; and each network's.

    Args:
      file: a PNG file.
      measurement: the inputs and the answers.
      rows: outputs for the first inputs, uint8, by the network's name.
    """
    count = min(SHOWN, len(measurement.answers))
    grid = {TEACHER: measurement.answers[:count], **rows}
    if measurement.inputs[0].ndim == 4:
        image = pictures.to_uint8(measurement.inputs[0][:count])
        factor = measurement.answers.shape[1] // image.shape[1]
        grid = {"input": image.repeat(factor, axis=1).repeat(factor, axis=2), **grid}
    scale = max(1, round(96 / measurement.answers.shape[1]))
    pictures.save_grid(file, {name: to_float(x[:count]) for name, x in grid.items()}, scale=scale)


def write(
    folder: Path,
    distillation: Distillation,
    measurement: Measurement,
    students: Mapping[str, tuple[Network, Variables]],
    steps: Mapping[str, int],
    *,
    planned: int,
    command: str,
    settings: Mapping[str, Any],
) -> dict[str, dict[str, Figure]]:
    """Measures all networks, and writes the report and its pictures.

    Args:
      folder: the distillation's folder.
      distillation: the distillation.
      measurement: the inputs and what networks are compared by.
      students: networks and averaged variables, by name.
      steps: the steps that each was trained for.
      planned: the number of steps of a complete training.
      command: the command that started it.
      settings: the settings, for the JSON file.

    Returns:
      The figures of all networks, the teacher first.
    """
    teacher = distillation.teacher
    networks = {TEACHER: (teacher.network, teacher.variables), **students}
    figures: dict[str, dict[str, Figure]] = {}
    shown = {}
    inputs = measurement.inputs
    for name, (network, variables) in networks.items():
        images = measurement.answers
        if name != TEACHER:
            images = make_sampler(teacher, network)(variables, inputs)
            shown[name] = images[:SHOWN]
        subject = EvaluatedGenerator(name, "", network, variables, teacher.inputs, 0, {})
        few = [x[: distillation.batch_size] for x in inputs]
        figures[name] = {**measurement.figures(images), **measure.cost_of(subject, few)}
    draw(folder / "examples.png", measurement, shown)
    report = Report(
        title="Distillation",
        summary=[
            _cost_sentence(figures),
            *_stopped(steps, planned),
            "A single training decides nothing about methods: compare several seeds.",
        ],
        tables=[
            Table(
                "Networks",
                _about(measurement),
                (*measurement.columns(), *measure.COST),
                tuple(Entry(name, "", own) for name, own in figures.items()),
            )
        ],
        galleries=[
            Gallery(
                "Examples",
                "All networks have the same inputs in a column.",
                [Picture("", "examples.png")],
            ),
            *_curves(folder),
        ],
        protocol={
            **dict(choice.split(": ", 1) for choice in distillation.choices),
            "steps": ", ".join(f"{name} {count:,}" for name, count in steps.items()),
            "batch size": distillation.batch_size,
            "samples": len(measurement.answers),
            "latencies": f"per image, in a batch of {distillation.batch_size} unless of one image",
        },
        environment=environment(),
        command=command,
        configuration=dict(settings),
    )
    for file in page.write(report, folder):
        print(f"written: {file}")
    print(f"\n{page.plain_text(report)}")
    return figures


def _cost_sentence(figures: Mapping[str, Mapping[str, Figure]]) -> str:
    large, small = figures[TEACHER], figures["student"]
    macs, parameters, latency = (
        large[name].value / small[name].value for name in ("macs", "parameters", "latency")
    )
    return (
        f"The student needs **{macs:.1f} times fewer multiply-accumulates** than its teacher, has "
        f"{parameters:.1f} times fewer parameters, and generates one image {latency:.1f} times "
        "faster on this machine."
    )


def _stopped(steps: Mapping[str, int], planned: int) -> list[str]:
    return [
        f"The training of the {name} ended at step {count:,} of {planned:,}, when its time was "
        "over: its learning rate had not decayed."
        for name, count in steps.items()
        if count < planned
    ]


def _about(measurement: Measurement) -> str:
    takes_images = measurement.inputs[0].ndim == 4
    about = f"{len(measurement.answers):,} {'held-out images' if takes_images else 'latents'}."
    if measurement.extractor is not None and not takes_images:
        about += (
            " Frechet and kernel distances are those to as many samples of the teacher for other "
            "latents; the teacher's own is the smallest that can be expected."
        )
    if measurement.extractor is not None and measurement.extractor.name.startswith("random"):
        about += (
            f" Features of `{measurement.extractor.name}`, a network with random weights: "
            "distances are comparable only with each other, and are not FIDs."
        )
    return about


def _curves(folder: Path) -> list[Gallery]:
    histories = {
        name: read_jsonl(folder / place / "metrics.jsonl")
        for name, place in (("student", "training"), ("baseline", "baseline"))
    }
    panels = {}
    for key, caption in CURVES.items():
        curves = {
            name: ([row["step"] for row in rows if key in row], [r[key] for r in rows if key in r])
            for name, rows in histories.items()
            if any(key in row for row in rows)
        }
        if curves:
            panels[caption] = curves
    if not panels:
        return []
    pictures.save_curves(folder / "curves.png", panels)
    return [Gallery("During training", "Of the average.", [Picture("", "curves.png")])]
