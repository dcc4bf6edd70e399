"""A report on a phone: its labels can be read, and nothing but a chart's own box scrolls sideways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.microscope.test_in_a_browser import CHROMIUM, Browser
from tests.report.runs import make_run
from vgpo_lite.report.writing import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium"),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [390, 1200])
def test_labels_of_charts_are_readable_and_the_page_stays_as_wide_as_the_screen(
    width: int, tmp_path: Path, browser: Browser
) -> None:
    page = write_report(make_run(tmp_path / "run"))
    browser.page("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.open(page)
    heights = browser.run("[...document.querySelectorAll('figure text')].map(t => t.getBoundingClientRect().height)")
    assert min(heights) >= 10
    assert browser.run("document.documentElement.scrollWidth") <= width
    scrolls = browser.run(
        "[...document.querySelectorAll('figure .scroll')].map(box => { box.scrollLeft = 9999; return box.scrollLeft; })"
    )
    assert len(scrolls) == 10
    assert all(moved > 0 for moved in scrolls) if width < 500 else not any(scrolls)
