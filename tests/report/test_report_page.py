"""The evaluation report: its content, and the page in a real browser."""

import json
import re
import shutil

import numpy as np
import pytest

from kd_jax.report import comparison as report
from kd_jax.report.comparison import Classes, Column, Entry, Figure, Gallery, Picture, Report

QUALITY = Column("frechet", "Frechet distance", "Lower is nearer.", "quality", "lower", 2)
SECOND = Column("recall", "recall", "Of real images.", "quality", "higher", 3)
MACS = Column("macs", "MACs", "Multiply-accumulates.", "cost", "lower")
LATENCY = Column("latency", "one image (ms)", "Median.", "cost", "lower", 2, 1e3)


def figures(frechet, recall, macs, latency, deviation=None):
    return {
        "frechet": Figure(frechet, deviation),
        "recall": Figure(recall),
        "macs": Figure(macs),
        "latency": Figure(latency),
    }


# "dominated" is worse than "student" in both metrics; the others are on the Pareto front.
ENTRIES = (
    Entry("teacher", "runs/teacher", figures(6.5, 0.9, 61.6e6, 2.04e-3)),
    Entry("student </script><b>", "runs/student", figures(9.25, 0.7, 4.2e6, 0.5e-3, 0.31)),
    Entry("dominated", "runs/other", figures(80.0, 0.2, 9e6, 0.9e-3)),
)
PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def make_report(**changes):
    sheet = report.tile(PIXELS, 2)
    return Report(
        **{
            "title": "A comparison",
            "summary": "100 samples of each.",
            "columns": (QUALITY, SECOND, MACS, LATENCY),
            "entries": ENTRIES,
            "galleries": (Gallery("Samples", "Place by place.", (Picture("teacher", sheet),)),),
            "classes": Classes("Right.", ("teacher",), (3,), ((0, 0.5), (1, 1.0))),
            "protocol": {"samples": 100, "seed": 0},
            "environment": {"jax": "0"},
            "command": "kd-jax evaluate teacher --data digits",
        }
        | changes
    )


def test_markdown_and_json_have_the_same_content(tmp_path):
    text = report.write(make_report(), tmp_path)
    assert text == (tmp_path / "report.md").read_text()
    assert "| teacher | 6.50 | 0.900 | 61.6 M | 2.04 |" in text
    assert "| 9.25 ± 0.31 | 0.700 | 4.2 M | 0.50 |" in text
    assert "- seed: 0" in text
    assert "| 1 | 1.000 |" in text
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["networks"][1]["figures"]["frechet"] == {"value": 9.25, "deviation": 0.31}
    assert "source" not in json.dumps(stored)  # no picture


def test_missing_and_nan_values_are_a_dash():
    first = Entry("a", "a", {"frechet": Figure(float("nan"))})
    text = report.markdown(make_report(entries=(first, ENTRIES[0]), columns=(QUALITY, SECOND)))
    assert "| a | – | – |" in text


def test_tiles_by_hand():
    sheet = report.tile(np.array([[[[1]]], [[[2]]], [[[3]]]], np.uint8), 2, gap=1, scale=2)
    white = 255
    expected = [
        [1, 1, white, 2, 2],
        [1, 1, white, 2, 2],
        [white] * 5,
        [3, 3, white, white, white],
        [3, 3, white, white, white],
    ]
    np.testing.assert_array_equal(sheet[..., 0], expected)


def test_data_is_not_parsed_as_markup():
    """The only script end tags are the template's, for any network names."""
    page = report.page(make_report())
    assert page.count("</script>") == 2
    assert "__DATA__" not in page
    assert not re.search(r"(src|href)=\"?https?:", page)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, where installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1280,2400"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def column(browser, index):
    cells = browser.find_elements("css selector", f"#figures tbody td:nth-child({index})")
    return [cell.text for cell in cells]


@pytest.mark.slow
def test_the_page_in_a_browser(browser, tmp_path):
    report.write(make_report(), tmp_path)
    browser.get(f"file://{tmp_path / 'report.html'}")

    assert browser.title == "A comparison"
    assert column(browser, 1) == [entry.name for entry in ENTRIES]
    assert column(browser, 2) == ["6.50", "9.25 ± 0.31", "80.00"]
    best = browser.find_elements("css selector", "#figures td.best")
    assert [cell.text for cell in best] == ["6.50", "0.900", "4.20 M", "0.50"]

    heads = browser.find_elements("css selector", "#figures th button")
    heads[3].click()
    assert column(browser, 4) == ["4.20 M", "9.00 M", "61.6 M"]
    assert browser.find_element("css selector", "[aria-sort]").text.startswith("MACs")
    heads[3].click()
    assert column(browser, 4) == ["61.6 M", "9.00 M", "4.20 M"]
    heads[0].click()
    assert column(browser, 1) == sorted(entry.name for entry in ENTRIES)

    # Two of three points are on the front, so its path has one line.
    assert len(browser.find_elements("css selector", "#scatter circle")) == 3
    front = browser.find_element("css selector", "#scatter .front").get_attribute("d")
    assert front.count("L") == 1
    browser.find_element("css selector", "#axis-y option[value=recall]").click()
    assert "recall" in browser.find_element("id", "scatter").get_attribute("aria-label")

    image = browser.find_element("css selector", "figure img")
    assert image.get_property("naturalWidth") == 10
    facts = browser.find_element("css selector", "dl").text
    assert facts.split() == ["samples", "100", "seed", "0"]

    requested = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    outside = [url for url in requested if not url.startswith(("file:", "data:"))]
    assert not outside
    assert not browser.get_log("browser")


@pytest.mark.slow
def test_the_page_without_costs(browser, tmp_path):
    """A single network and no cost: no scatter plot, no best value, no error."""
    report.write(make_report(entries=ENTRIES[:1], columns=(QUALITY,), classes=None), tmp_path)
    browser.get(f"file://{tmp_path / 'report.html'}")
    assert column(browser, 2) == ["6.50"]
    assert not browser.find_elements("css selector", "#scatter, td.best")
    assert not browser.get_log("browser")
