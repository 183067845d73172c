"""The report's metrics against hand-computed values and SciPy."""

import json
import math
import statistics

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.report import Cost, Regime, Report, markdown, measure_cost, write
from kd_jax.core.cost import Latency
from kd_jax.models import mlp

TEACHER, FROM_SCRATCH, DISTILLED = (1.0, 1.5, 2.0), (9.0, 11.5, 10.0), (5.0, 4.5, 7.0)
SHARES = [(9 - 5) / 8, (11.5 - 4.5) / 10, (10 - 7) / 8]


def latency(milliseconds):
    seconds = milliseconds / 1e3
    return Latency(seconds, 0.5 * seconds, 2 * seconds, 50)


def report(**regimes):
    return Report(
        title="A title",
        command="python -m experiments.digits --preset=demo",
        extractor="digits-classifier-0123abcd",
        samples=1790,
        reference=12345,
        classes_right={"teacher": (0.98, 0.96), "student": (0.875,)},
        teacher=Cost(1_060_000, 25e6, latency(3), latency(60), 64),
        student=Cost(10_600, 1.25e6, latency(0.5), latency(8), 64),
        regimes=regimes,
        pictures={"Some samples": "samples.png"},
        configuration={"steps": 3},
        environment={"device": "cpu x 2", "jax": "0.10.2"},
    )


def row(page, name):
    """The cells of the table row with the given name."""
    (line,) = (x for x in page.splitlines() if x.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def sentence(page, name):
    (line,) = (x for x in page.splitlines() if f"(*{name}*)" in x)
    return line


def test_metrics_of_the_page():
    page = markdown(report(scarce=Regime(90, TEACHER, FROM_SCRATCH, DISTILLED)))
    spreads = [
        f"{statistics.mean(x):.2f} ± {statistics.stdev(x):.2f}"
        for x in (TEACHER, FROM_SCRATCH, DISTILLED)
    ]
    mean = statistics.mean(SHARES)
    low, high = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(SHARES))
    gap = f"{100 * mean:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
    assert gap == "52% [12, 93]"
    assert row(page, "scarce") == ["scarce", "90", *spreads, gap]
    text = sentence(page, "scarce")
    assert "is **better** than" in text
    assert "in 3 of 3 seeds" in text
    assert "distance 5.50 against 10.17" in text
    assert "teacher's being 1.50" in text
    assert "closes **52%** of the gap" in text
    assert "over 3 seeds" in page
    assert "95% confidence interval" in page


def test_the_rest_of_the_page():
    page = markdown(report(scarce=Regime(90, TEACHER, FROM_SCRATCH, DISTILLED)))
    assert page.startswith("# A title\n")
    assert "**100 times fewer parameters**" in page
    assert "20 times fewer multiply-accumulates" in page
    assert "1,790 samples against the 12,345 real images" in page
    assert "`digits-classifier-0123abcd`" in page
    assert "not an FID" in page
    for name, parameters, products, one, many in (
        ("teacher", "1,060,000", "25 M", "3.00 ms (1.50 to 6.00)", "60.00 ms (30.00 to 120.00)"),
        ("student", "10,600", "1.25 M", "0.50 ms (0.25 to 1.00)", "8.00 ms (4.00 to 16.00)"),
    ):
        assert f"| {name} | {parameters} | {products} | {one} | {many} |" in page.splitlines()
    assert "batch of 1 | batch of 64" in page
    assert "median of 50 calls" in page
    assert "on cpu x 2" in page
    assert "| teacher | 97.0% |" in page
    assert "| student | 87.5% |" in page
    assert "![Some samples](samples.png)" in page
    assert "python -m experiments.digits --preset=demo" in page
    assert "jax 0.10.2" in page


def test_a_student_that_does_not_improve():
    page = markdown(report(all=Regime(1797, TEACHER, DISTILLED, FROM_SCRATCH)))
    text = sentence(page, "all")
    assert "**no better**" in text
    assert "closes" not in text
    shares = [(5 - 9) / 4, (4.5 - 11.5) / 3, (7 - 10) / 5]
    assert row(page, "all")[-1].startswith(f"{100 * statistics.mean(shares):.0f}% [")
    assert row(page, "all")[1] == "1,797"
    same = markdown(report(all=Regime(1797, TEACHER, FROM_SCRATCH, FROM_SCRATCH)))
    assert "**no better**" in sentence(same, "all")


def test_one_seed_has_no_deviation_and_no_interval():
    page = markdown(report(scarce=Regime(90, (1.0,), (9.0,), (5.0,))))
    assert row(page, "scarce") == ["scarce", "90", "1.00", "9.00", "5.00", "50%"]
    assert "A single seed." in page
    text = sentence(page, "scarce")
    assert "**" not in text  # no verdict
    assert "distance 5.00 against that from scratch of 9.00, the teacher's being 1.00" in text
    assert "A single seed decides nothing" in text
    for word in ("±", "confidence", "bracket", "nan"):
        assert word not in page


def test_no_gap():
    regime = Regime(90, (1.0, 3.0), (9.0, 3.0), (5.0, 2.0))
    assert regime.gap() is None
    page = markdown(report(scarce=regime))
    assert row(page, "scarce")[-1] == "no gap in every seed"
    assert "closes" not in sentence(page, "scarce")
    assert "**better**" in sentence(page, "scarce")


def test_the_files(tmp_path):
    content = report(
        scarce=Regime(90, TEACHER, FROM_SCRATCH, DISTILLED),
        one=Regime(5, (1.0,), (9.0,), (5.0,)),
        none=Regime(5, (3.0,), (2.0,), (1.0,)),
    )
    page = write(content, tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == page == markdown(content)

    def reject(constant):
        raise AssertionError(constant)

    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    stored = json.loads(text, parse_constant=reject)
    assert set(stored) == set(Report._fields)
    assert stored["samples"] == 1790
    assert stored["teacher"]["parameters"] == 1_060_000
    assert stored["student"]["single"]["median"] == 0.0005
    assert stored["student"]["batch_size"] == 64
    scarce, one, none = (stored["regimes"][name] for name in ("scarce", "one", "none"))
    assert scarce["images"] == 90
    assert tuple(scarce["distilled"]) == DISTILLED
    gap = scarce["gap_closed"]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(SHARES), scale=stats.sem(SHARES))
    assert (gap["low"], gap["high"]) == (pytest.approx(low), pytest.approx(high))
    assert gap["values"] == pytest.approx(SHARES)
    assert one["gap_closed"] == {
        "mean": 0.5, "deviation": None, "low": None, "high": None, "values": [0.5]
    }  # fmt: skip
    assert none["gap_closed"] is None


def test_nan_metrics_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(report(scarce=Regime(90, TEACHER, FROM_SCRATCH, (math.nan, 1.0, 1.0))), tmp_path)


def test_cost_of_one_image_and_of_the_batch():
    network, z = mlp.generator(4, 8), np.zeros((6, 3), np.float32)
    cost = measure_cost(network, network.init(jax.random.key(0), z), [z])
    assert cost.parameters == (3 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 16
    products = 3 * 8 + 8 * 8 + 8 * 16
    assert products <= cost.multiply_accumulates < 2 * products  # of one image, not six
    assert cost.batch_size == 6
    assert cost.single.runs == cost.batch.runs == 50


def test_a_worse_mean_is_not_reported_as_a_closed_gap():
    text = sentence(markdown(report(all=Regime(9, (1.0, 1.0), (3.0, 10.0), (2.0, 12.0)))), "all")
    assert "no better" in text
    assert "closes" not in text


def test_different_numbers_of_seeds_are_rejected():
    with pytest.raises(ValueError, match="shorter"):
        Regime(9, (1.0, 1.0), (3.0, 10.0), (2.0,)).gap()
