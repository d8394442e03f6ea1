"""Every form of the report has all methods and numbers, and the page needs nothing but itself."""

import json
import re
from html.parser import HTMLParser

import pytest

from modes_fx.bench.demo.comparison import METHODS
from modes_fx.bench.demo.render import to_markdown, write_report


class Links(HTMLParser):
    """Collects what a page would have to load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def folder(report, tmp_path):
    write_report(report, tmp_path)
    return tmp_path


def test_markdown_names_every_method_and_its_numbers(report):
    text = to_markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for result in report.results:
        wanted = (
            f"| {result.method} | {100 * result.target:.0f} % ",
            f" {100 * result.accuracy:.1f} % ",
            f" {100 * result.skip_ratio:.1f} % ",
            f" {result.kl:.4f} |",
        )
        assert any(all(piece in row for piece in wanted) for row in rows), result.method
    for case in report.timing.cases:
        assert f"| {case.name} |" in text
    assert set(METHODS) <= {result.method for result in report.results}


def test_markdown_says_where_the_numbers_come_from(report):
    text = to_markdown(report)
    facts = (
        "Test processor",
        "torch 2.13.0",
        "special",
        "out/demo/policy",
        "text 0.5, vision 1",
        "60",
    )
    for fact in facts:
        assert fact in text


def test_failures_come_first(report):
    failed = report.model_copy(update={"failures": ["tau 0 gave other tokens"]})
    text = to_markdown(failed)
    assert text.index("tau 0 gave other tokens") < text.index("## ")
    assert "failed" not in to_markdown(report)


def test_tables_are_whole(report):
    """Every row of a table has as many cells as its heading."""
    for table in re.findall(r"(?:^\|.*\|\n)+", to_markdown(report), re.MULTILINE):
        rows = table.strip().splitlines()
        assert len({row.count("|") for row in rows}) == 1, rows[0]


def test_the_page_loads_nothing(folder):
    page = folder.joinpath("report.html").read_text()
    links = Links(page).found
    assert len(links) == len(list(folder.glob("*.png"))) == 6
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)


def test_the_page_shows_tables(folder):
    page = folder.joinpath("report.html").read_text()
    assert page.count("<table>") == 5
    assert "|---" not in page


def test_the_json_is_the_report(report, folder):
    written = json.loads(folder.joinpath("report.json").read_text())
    assert written == json.loads(report.model_dump_json())
