"""Tests of simulations.comparison.page and plots: one file, well-formed, in the page's colours."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from simulations.comparison.page import to_html
from simulations.comparison.plots import NUM_COLOURS, SERIES, series_style, themed
from simulations.comparison.tables import Origin
from tests.unit.test_comparison_tables import make_comparison

pytest.importorskip("matplotlib")

VOID = {"meta", "br", "link", "img", "hr", "input"}


class _Balance(HTMLParser):
    """Elements that are open; what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Neither opens nor closes anything."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    comparison = make_comparison(tmp_path_factory.mktemp("runs"), "<b>&")
    return to_html(comparison, Origin(title="<i>title", command="python -m simulations x > y"))


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.loaded == []
    assert "@import" not in page
    assert "url(http" not in page


def test_text_is_escaped(page: str) -> None:
    assert "<i>title" not in page
    assert "&lt;b&gt;&amp; res" in page
    assert "x &gt; y" in page


def test_every_picture_is_there_and_well_formed(page: str) -> None:
    """Dots, curves by round and by bytes, device time; and an entry of the legend per group."""
    figures = re.findall(r"<figcaption>(.*?)</figcaption>\n(<svg.*?</svg>)", page, re.DOTALL)
    assert [title for title, _ in figures] == [
        "Accuracy of every run",
        "Accuracy by round",
        "Accuracy by bytes sent",
        "Accuracy by device time",
    ]
    ids = []
    for _, svg in figures:
        ElementTree.fromstring(svg)
        ids += re.findall(r'<clipPath id="([^"]+)"', svg)
        assert "var(--ink)" in svg
        assert "var(--series-0)" in svg
    assert len(ids) == len(set(ids))
    assert page.count("<li><svg") == 2


def test_the_same_runs_give_the_same_page(page: str, tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, "<b>&")
    again = to_html(comparison, Origin(title="<i>title", command="python -m simulations x > y"))
    assert again == page


def test_an_svg_takes_its_colours_and_its_size_from_the_page() -> None:
    svg = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg width="3pt" height="4pt" viewBox="0 0 3 4">'
        f'<path width="9" style="stroke: {SERIES[1]}"/><text fill="#010203"/></svg>\n'
    )
    assert themed(svg) == (
        '<svg viewBox="0 0 3 4" role="img"><path width="9" style="stroke: var(--series-1)"/>'
        '<text fill="var(--ink)"/></svg>'
    )


def test_series_stay_distinct_beyond_the_colours() -> None:
    assert len({series_style(index) for index in range(4 * NUM_COLOURS)}) == 4 * NUM_COLOURS
