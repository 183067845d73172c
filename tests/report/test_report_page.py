"""The evaluation report: its content, and the page in a real browser."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from kd_jax.report import page as report
from kd_jax.report.columns import Column, Entry, Figure, Table
from kd_jax.report.page import Gallery, Picture, Report

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
CLASSES = Table(
    "Classes",
    "Right.",
    (Column("teacher", "teacher", group="", better="higher", digits=3),),
    (Entry("0", "", {"teacher": Figure(0.5)}), Entry("1", "", {"teacher": Figure(1.0)})),
    "class",
)
PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def make_report(entries=ENTRIES, columns=(QUALITY, SECOND, MACS, LATENCY), **changes):
    sheet = report.tile(PIXELS, 2)
    table = Table("Metrics", "In features of `one`.", columns, entries)
    return Report(
        **{
            "title": "A comparison",
            "summary": ["100 samples of each.", "The student is **better** than the other."],
            "tables": [table, CLASSES],
            "galleries": (Gallery("Samples", "Place by place.", (Picture("teacher", sheet),)),),
            "protocol": {"samples": 100, "seed": 0},
            "environment": {"jax": "0"},
            "command": "kd-jax evaluate teacher --data digits",
        }
        | changes
    )


def test_markdown_and_json_have_the_same_content(tmp_path):
    files = report.write(make_report(configuration={"steps": 3}), tmp_path)
    assert sorted(file.name for file in files) == ["report.html", "report.json", "report.md"]
    text = (tmp_path / "report.md").read_text()
    assert "| teacher | 6.50 | 0.900 | 61.6 M | 2.04 |" in text
    assert "| 9.25 ± 0.31 | 0.700 | 4.2 M | 0.50 |" in text
    assert "- seed: 0" in text
    assert "| 1 | 1.000 |" in text
    stored = json.loads((tmp_path / "report.json").read_text())
    entries = stored["tables"][0]["entries"]
    assert entries[1]["figures"]["frechet"] == {"value": 9.25, "deviation": 0.31}
    assert stored["configuration"] == {"steps": 3}
    assert "galleries" not in stored
    with pytest.raises(ValueError, match="JSON"):
        report.write(make_report(configuration={"rate": np.nan}), tmp_path)


def test_the_terminal_has_aligned_columns_without_markup():
    text = report.plain_text(make_report(ENTRIES[:1], (QUALITY, MACS)))
    assert "The student is better than the other." in text
    head, row = (line for line in text.splitlines() if "61.6 M" in line or "MACs" in line)
    assert head == "network  Frechet distance    MACs"
    assert row == "teacher              6.50  61.6 M"


def test_formats_by_hand():
    percent = Column("gap", "gap", digits=0, scale=100, unit="%")
    cells = {
        ("x", QUALITY): "x",
        (Figure(1234.5), QUALITY): "1234.50",
        (Figure(1234.5), Column("n", "n", digits=0)): "1,234",
        (Figure(0.5204, None, (0.12, 0.93)), percent): "52% [12, 93]",
        (Figure(0.5204, None, (np.nan, np.nan)), percent): "52%",
        (Figure(2e9), MACS): "2 G",
    }
    for (figure, column), text in cells.items():
        assert report.Table("", "", (column,), (Entry("a", "", {column.name: figure}),)).rows()[
            1
        ] == ["a", text]


def test_files_of_pictures_are_linked_and_embedded(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "own.png")
    gallery = Gallery("Own", "From a file.", (Picture("mine", "own.png"),))
    report.write(make_report(galleries=[gallery]), tmp_path)
    assert "![mine](own.png)" in (tmp_path / "report.md").read_text()
    encoded = base64.b64encode((tmp_path / "own.png").read_bytes()).decode()
    assert encoded in (tmp_path / "report.html").read_text()


def test_missing_and_nan_values_are_a_dash():
    first = Entry("a", "a", {"frechet": Figure(float("nan"))})
    text = report.markdown(make_report((first, ENTRIES[0]), (QUALITY, SECOND)))
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


def test_data_is_not_parsed_as_markup(tmp_path):
    """The only script end tags are the template's, for any network names."""
    page = report.page(make_report(), tmp_path)
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
    table = browser.find_element("css selector", "table.figures")
    return [c.text for c in table.find_elements("css selector", f"tbody td:nth-child({index})")]


@pytest.mark.slow
def test_the_page_in_a_browser(browser, tmp_path):
    report.write(make_report(), tmp_path)
    browser.get(f"file://{tmp_path / 'report.html'}")

    assert browser.title == "A comparison"
    assert column(browser, 1) == [entry.name for entry in ENTRIES]
    assert column(browser, 2) == ["6.50", "9.25 ± 0.31", "80.00"]
    table = browser.find_element("css selector", "table.figures")
    best = table.find_elements("css selector", "td.best")
    assert [cell.text for cell in best] == ["6.50", "0.900", "4.2 M", "0.50"]
    assert browser.find_element("css selector", "strong").text == "better"
    assert browser.find_element("css selector", "section p code").text == "one"

    heads = table.find_elements("css selector", "th button")
    heads[3].click()
    assert column(browser, 4) == ["4.2 M", "9 M", "61.6 M"]
    assert browser.find_element("css selector", "[aria-sort]").text.startswith("MACs")
    heads[3].click()
    assert column(browser, 4) == ["61.6 M", "9 M", "4.2 M"]
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
    full = make_report(ENTRIES[:1], (QUALITY,))
    report.write(full._replace(tables=full.tables[:1]), tmp_path)
    browser.get(f"file://{tmp_path / 'report.html'}")
    assert column(browser, 2) == ["6.50"]
    assert not browser.find_elements("css selector", "#scatter, td.best")
    assert not browser.get_log("browser")
