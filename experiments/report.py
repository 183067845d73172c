"""An experiment's report, as JSON and as Markdown."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kd_jax.core import cost as kd_cost
from kd_jax.core.cost import Latency
from kd_jax.core.network import Network
from kd_jax.core.types import Variables
from kd_jax.report.summary import Summary, gap_closed, summarize


class Cost(NamedTuple):
    """The cost of a generator.

    Attributes:
      parameters: the number of trained parameters.
      multiply_accumulates: the multiply-accumulates of one image.
      single, batch: the latency of one image, and of a batch of `batch_size`.
      batch_size: the number of images in the batch.
    """

    parameters: int
    multiply_accumulates: float
    single: Latency
    batch: Latency
    batch_size: int


def measure_cost(network: Network, variables: Variables, inputs: Sequence[Any]) -> Cost:
    """Measures a generator's cost, for a batch of inputs and for its first example."""
    one = [x[:1] for x in inputs]
    return Cost(
        parameters=kd_cost.parameter_count(variables),
        multiply_accumulates=kd_cost.multiply_accumulates(network, variables, *one),
        single=kd_cost.generator_latency(network, variables, *one),
        batch=kd_cost.generator_latency(network, variables, *inputs),
        batch_size=len(inputs[0]),
    )


class Regime(NamedTuple):
    """The results of one regime, one value per seed.

    Attributes:
      images: the number of real images available to the student.
      teacher, from_scratch, distilled: Frechet distances; lower is better.
    """

    images: int
    teacher: Sequence[float]
    from_scratch: Sequence[float]
    distilled: Sequence[float]

    def gap(self) -> Summary | None:
        """The share of the gap closed; None if a student from scratch matches its teacher."""
        seeds = list(zip(self.teacher, self.from_scratch, self.distilled, strict=True))
        if any(from_scratch <= teacher for teacher, from_scratch, _ in seeds):
            return None
        return summarize([gap_closed(a, d, t) for t, a, d in seeds])


class Report(NamedTuple):
    """The contents of a report.

    Attributes:
      title: the page's title.
      command: the command that reproduces it.
      extractor: the name and hash of the feature extractor of the distances.
      samples, reference: numbers of generated and of real images.
      classes_right: the share of samples that the classifier assigns to their conditioning class,
        per network; empty for unconditional generators.
      teacher, student: their costs.
      regimes: the results by regime.
      pictures: file names, by caption.
      configuration: all settings.
      environment: versions and hardware.
    """

    title: str
    command: str
    extractor: str
    samples: int
    reference: int
    classes_right: Mapping[str, Sequence[float]]
    teacher: Cost
    student: Cost
    regimes: Mapping[str, Regime]
    pictures: Mapping[str, str]
    configuration: Mapping[str, Any]
    environment: Mapping[str, str]


def write(report: Report, directory: Path) -> str:
    """Writes `report.json` and `report.md` into a folder; returns the latter's text."""
    page = markdown(report)
    (directory / "report.md").write_text(page, encoding="utf-8")
    figures = {
        **report._asdict(),
        "teacher": plain(report.teacher),
        "student": plain(report.student),
    }
    figures["regimes"] = {
        name: {
            **regime._asdict(),
            "gap_closed": (summary := regime.gap()) and _finite(summary._asdict()),
        }
        for name, regime in report.regimes.items()
    }
    (directory / "report.json").write_text(
        json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    return page


def markdown(report: Report) -> str:
    """The report as Markdown."""
    seeds = len(next(iter(report.regimes.values())).teacher)
    small, large = report.student, report.teacher
    parameter_ratio = large.parameters / small.parameters
    compute_ratio = large.multiply_accumulates / small.multiply_accumulates
    lines = [
        f"# {report.title}",
        "",
        f"The student has **{parameter_ratio:.0f} times fewer parameters** than its teacher and "
        f"needs {compute_ratio:.0f} times fewer multiply-accumulates.",
        "",
    ]
    for name, regime in report.regimes.items():
        lines += [_summary_sentence(name, regime), ""]
    lines += [
        "## Quality",
        "",
        f"Frechet distance, lower is better: {report.samples:,} samples against the "
        f"{report.reference:,} real images, in the features of `{report.extractor}` "
        f"({_about(report.extractor)}). "
        + (f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "A single seed."),
        "",
        "| regime | real images | teacher | student from scratch | student distilled "
        "| gap closed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, regime in report.regimes.items():
        cells = [
            spread(summarize(x)) for x in (regime.teacher, regime.from_scratch, regime.distilled)
        ]
        lines.append(
            f"| {name} | {regime.images:,} | {' | '.join(cells)} | {_format_gap(regime.gap())} |"
        )
    lines += [
        "",
        "Gap closed: (from scratch − distilled) / (from scratch − teacher), per seed"
        + ("; in brackets, the 95% confidence interval of the mean." if seeds > 1 else "."),
        "",
        *cost_section({"teacher": large, "student": small}, report.environment["device"]),
    ]
    if report.classes_right:
        lines += [
            "",
            "## Class accuracy",
            "",
            "| network | samples assigned to their conditioning class by the same classifier |",
            "|---|---:|",
        ]
    for name, shares in report.classes_right.items():
        lines.append(f"| {name} | {100 * summarize(shares).mean:.1f}% |")
    for caption, file in report.pictures.items():
        lines += ["", f"## {caption}", "", f"![{caption}]({file})"]
    lines += ["", "## Command", "", "```", report.command, "```", ""]
    lines += [", ".join(f"{k} {v}" for k, v in report.environment.items()) + ".", ""]
    return "\n".join(lines)


def _about(extractor: str) -> str:
    if extractor.startswith("inception"):
        return "the FID's network; comparable with equal numbers of samples and real images"
    kind = (
        "VGG16 with random weights"
        if extractor.startswith("random")
        else ("a small classifier trained on this data")
    )
    return f"{kind}; comparable only with itself, and not an FID"


def _summary_sentence(name: str, regime: Regime) -> str:
    teacher, from_scratch, distilled = (
        summarize(x).mean for x in (regime.teacher, regime.from_scratch, regime.distilled)
    )
    images = f"With {regime.images:,} real images (*{name}*) the distilled student"
    end = f"{from_scratch:.2f}, the teacher's being {teacher:.2f}"
    if len(regime.distilled) == 1:
        return (
            f"{images} has distance {distilled:.2f} against that from scratch of {end}. A single "
            "seed decides nothing."
        )
    verdict = "better" if distilled < from_scratch else "no better"
    wins = sum(a < b for a, b in zip(regime.distilled, regime.from_scratch, strict=True))
    gap = regime.gap()
    improved = gap is not None and gap.mean > 0 and distilled < from_scratch
    closed = f", which closes **{100 * gap.mean:.0f}%** of the gap" if gap and improved else ""
    return (
        f"{images} is **{verdict}** than the same student from scratch, in {wins} of "
        f"{len(regime.distilled)} seeds: distance {distilled:.2f} against {end}{closed}."
    )


def spread(summary: Summary, digits: int = 2) -> str:
    """A mean, and its standard deviation where there are several values."""
    if math.isnan(summary.deviation):
        return f"{summary.mean:.{digits}f}"
    return f"{summary.mean:.{digits}f} ± {summary.deviation:.{digits}f}"


def _format_gap(gap: Summary | None) -> str:
    if gap is None:
        return "no gap in every seed"
    if math.isnan(gap.low):
        return f"{100 * gap.mean:.0f}%"
    return f"{100 * gap.mean:.0f}% [{100 * gap.low:.0f}, {100 * gap.high:.0f}]"


def cost_section(costs: Mapping[str, Cost], device: str) -> list[str]:
    """The lines of the cost section."""
    first = next(iter(costs.values()))
    return [
        "## Cost",
        "",
        "| network | parameters | multiply-accumulates | batch of 1 | "
        f"batch of {first.batch_size} |",
        "|---|---:|---:|---:|---:|",
        *(_cost_row(name, cost) for name, cost in costs.items()),
        "",
        f"Latency: median of {first.single.runs} calls after warm-up (quartiles), on {device}. "
        "Multiply-accumulates: of one example, half of XLA's FLOPs.",
    ]


def _cost_row(name: str, cost: Cost) -> str:
    return (
        f"| {name} | {cost.parameters:,} | {cost.multiply_accumulates / 1e6:.3g} M | "
        f"{_milliseconds(cost.single)} | {_milliseconds(cost.batch)} |"
    )


def _milliseconds(latency: Latency) -> str:
    median, lower, upper = (1e3 * t for t in latency[:3])
    return f"{median:.2f} ms ({lower:.2f} to {upper:.2f})"


def plain(cost: Cost) -> dict[str, Any]:
    """A cost as JSON values."""
    return {**cost._asdict(), "single": cost.single._asdict(), "batch": cost.batch._asdict()}


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in figures.items()}
