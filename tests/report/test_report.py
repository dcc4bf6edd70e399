"""The report of a run shows what its files say, whatever they lack, and never stops a run."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cheap_runs import lent, small_config
from tests.report.runs import make_run, metrics_of, recorded
from vgpo_lite.errors import CheckpointError
from vgpo_lite.failpoints import armed
from vgpo_lite.listening import SilentListener
from vgpo_lite.report import draw_report, refresh_report
from vgpo_lite.report.charts import charts_of
from vgpo_lite.report.drawing import Line, draw
from vgpo_lite.report.facts import shown
from vgpo_lite.report.records import read_run
from vgpo_lite.report.smoothing import DRAWN_POINTS, drawn_places, running_median
from vgpo_lite.report.writing import write_report
from vgpo_lite.trainer import train

NAMES = {"reward", "accuracy", "length", "truncated", "useful", "focus", "clip", "gradient", "memory", "time"}


class Page(HTMLParser):
    """What a reader finds on a page: tables, texts, pictures, and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)

    @property
    def table(self) -> dict[str, list[str]]:
        return {row[0]: row[1:] for row in self.rows if row}


@pytest.fixture(autouse=True)
def _with_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here reports are drawn."""
    monkeypatch.setattr("vgpo_lite.report.draw_report", draw_report)


@pytest.fixture
def one_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the first chart alone: these tests are about words."""
    monkeypatch.setattr("vgpo_lite.report.writing.charts_of", lambda runs: charts_of(runs)[:1])


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def test_the_numbers_of_the_table_are_those_of_the_records(tmp_path: Path, one_chart: None) -> None:
    run = make_run(tmp_path / "run", changes={3: {"policy/grad_norm": None}, 5: {"reward/mean": 0.123456}})
    table = page_of(run).table
    for name in metrics_of(1):
        known = recorded(run, name)
        expected = (known[0], known[-1], statistics.median(known), min(known), max(known))
        assert table[name] == [*map(shown, expected), str(len(known))]
    assert table["policy/grad_norm"][-1] == "5"
    assert table["reward/mean"][3] == "0.1235"
    assert table["held-out accuracy before"] == ["40.0 % (8 of 20; 95 % interval 21.9 to 61.3 %)"]
    assert table["held-out accuracy after"] == ["75.0 % (15 of 20; 95 % interval 53.1 to 88.8 %)"]
    assert table["change"] == ["+35.0 points"]
    assert table["time in steps"] == ["30.0 s, 5.0 s each on average"]
    assert table["hardware"] == ["CPU, 1 thread"]
    assert table["steps"] == ["6 of 6, 6 of them updates"]


def test_sizes_that_shrank_are_told_with_those_of_the_first_step(tmp_path: Path, one_chart: None) -> None:
    sizes = {"memory/prompts_per_decode": 4.0, "memory/rows_per_decode": 8.0, "memory/rows_per_micro_batch": 8.0}
    shrunk = sizes | {"memory/prompts_per_decode": 2.0}
    run = make_run(tmp_path / "run", steps=2, changes={1: sizes, 2: shrunk})
    expected = "2 prompts while decoding (4 at first), 8 completions of each, 8 completions per micro-batch"
    assert page_of(run).table["worked on together"] == [expected]


def test_every_chart_is_an_image_on_the_page_and_a_file_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = page_of(run)
    assert page.tags.count("svg") == page.tags.count("figure") == len(NAMES)
    pictures = {path.stem: Image.open(path) for path in (run / "plots").glob("*")}
    assert set(pictures) == NAMES
    for picture in pictures.values():
        assert picture.size == (800, 425)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20  # something is drawn


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run")).read_text()
    page = Page(text)
    assert all(link.startswith("#") for link in page.links)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.findall(r"url\((?!#)|@import|https?://(?!arxiv)", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert all(reference[1:] in ids for reference in page.links)
    assert "prefers-color-scheme: dark" in text
    assert "#0072b2" not in text.partition("</style>")[2]  # curves take the page's colours


def test_whatever_a_run_is_called_or_told_is_escaped(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "<b>run & $x$",
        state="failed",
        reason="<script>alert(1)</script>",
        dataset=str(tmp_path),
        changes={1: {"reward/<img src=x>$\\frac{": 1.0}},
    )
    text = write_report(run).read_text()
    page = Page(text)
    assert not {"script", "img", "b"} & set(page.tags)
    assert page.table["state"] == ["failed: <script>alert(1)</script>"]
    assert "<title>&lt;b&gt;run &amp; $x$</title>" in text
    assert "reward/<img src=x>$\\frac{" in page.table
    assert "&lt;img src=x&gt;$\\frac{</text>" in text  # the legend says it as it is written


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_run_of_few_steps_is_drawn(tmp_path: Path, steps: int) -> None:
    run = make_run(tmp_path / "run", steps=steps, state="running", accuracies={})
    page = page_of(run)
    assert page.table["state"] == ["running"]
    assert page.table["steps"][0].startswith(f"{steps} of 6")
    assert page.table["held-out accuracy"] == ["not measured"]
    assert page.tags.count("svg") == (len(NAMES) if steps else 0)


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    nothing: dict[str, float | None] = dict.fromkeys(metrics_of(1))
    run = make_run(tmp_path / "run", changes=dict.fromkeys(range(1, 7), nothing))
    page = page_of(run)
    assert page.table["policy/grad_norm"] == ["-"] * 5 + ["0"]
    assert page.tags.count("svg") == 1  # held-out accuracy alone


def test_an_interrupted_run_is_told_as_it_stands_and_cut_lines_are_counted(tmp_path: Path, one_chart: None) -> None:
    run = make_run(
        tmp_path / "run",
        steps=4,
        state="interrupted",
        reason="stopped by SIGTERM",
        accuracies={"before": {"right": 8, "total": 20, "low": 0.2, "high": 0.6}},
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"no": "step"}\n{"step": 5, "reward/me')
    table = page_of(run).table
    assert table["state"] == ["interrupted: stopped by SIGTERM"]
    assert table["steps"][0].startswith("4 of 6")
    assert "held-out accuracy after" not in table
    assert table["records"] == ["3 lines of metrics.jsonl cannot be read and are left out"]


def test_a_run_that_left_metrics_alone_is_drawn_and_a_folder_without_any_is_refused(
    tmp_path: Path, one_chart: None
) -> None:
    run = make_run(tmp_path / "run")
    for name in ("config.yaml", "events.jsonl", "status.json"):
        (run / name).unlink()
    assert page_of(run).table["state"] == ["unknown"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path / "empty")


def test_a_report_is_redrawn_when_the_run_has_gone_on_and_not_otherwise(tmp_path: Path, one_chart: None) -> None:
    run = make_run(tmp_path / "run", steps=3, state="running")
    page = run / "report.html"

    def drawn_anew(*, is_over: bool) -> bool:
        before = page.stat().st_ino
        refresh_report(run, is_over=is_over, on_failure=pytest.fail)
        return page.stat().st_ino != before

    refresh_report(run, is_over=False, on_failure=pytest.fail)
    assert not drawn_anew(is_over=True)  # nothing has changed
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4} | metrics_of(4)) + "\n")
    os.utime(page, (time.time() - 5, time.time() - 5))
    assert not drawn_anew(is_over=False)  # the page is young
    assert drawn_anew(is_over=True)
    assert Page(page.read_text()).table["reward/mean"][-1] == "4"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5} | metrics_of(5)) + "\n")
    os.utime(page, (time.time() - 1000, time.time() - 1000))
    assert drawn_anew(is_over=False)


def test_a_run_is_drawn_at_its_checkpoints_and_its_end_and_goes_on_where_drawing_fails(
    tmp_path: Path, one_chart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    passed: list[str] = []
    listener = SilentListener()
    listener.noted = notes.append
    with lent(tmp_path / "opened"), armed("report.before_drawing=raise:OSError:28@2", passed=passed.append):
        monkeypatch.setattr("vgpo_lite.report.draw_report", draw_report)
        monkeypatch.setattr("vgpo_lite.report.DRAWN_EVERY_SECONDS", 0.0)
        summary = train(small_config(tmp_path / "run", max_steps=2), listener=listener)
    sites = [site for site in passed if site in ("checkpoint.after_rename", "report.before_drawing")]
    assert sites == ["checkpoint.after_rename", "report.before_drawing"] * 3 + ["report.before_drawing"]
    assert summary.steps == 2
    assert [note.partition(":")[0] for note in notes].count("the report could not be drawn") == 1
    table = Page((tmp_path / "run" / "report.html").read_text()).table
    assert (table["state"], table["steps"]) == (["finished"], ["2 of 2, 2 of them updates"])
    assert table["hardware"][0].startswith("CPU")
    assert table["policy/grad_norm"][:2] == [shown(value) for value in recorded(tmp_path / "run", "policy/grad_norm")]


def test_what_fails_while_drawing_is_told_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    run = make_run(tmp_path / "run")
    with armed("report.before_drawing=raise:OSError:28"):
        refresh_report(run, is_over=True, on_failure=told.append)
    monkeypatch.setattr("vgpo_lite.report.writing.draw", lambda *_, **__: 1 / 0)
    refresh_report(run, is_over=True, on_failure=told.append)
    refresh_report(tmp_path / "nowhere", is_over=True, on_failure=told.append)
    assert [message.partition(":")[0] for message in told] == ["the report could not be drawn"] * 3
    assert "No space left" in told[0]
    assert "division by zero" in told[1]
    assert not (run / "report.html").exists()


def test_a_running_median_is_a_plain_loop_and_passes_over_what_is_missing() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=100)
    values[[0, 7, 8, 50, 99]] = np.nan
    half = 6  # 2 * (100 // 16) + 1 = 13 steps
    expected = [float(np.nanmedian(values[max(0, at - half) : at + half + 1])) for at in range(100)]
    assert running_median(values).tolist() == expected
    assert np.isnan(running_median([float("nan")])).all()
    assert running_median([]).tolist() == []


def test_a_line_behind_a_legend_does_not_strike_through_it(tmp_path: Path) -> None:
    chart = next(chart for chart in charts_of([read_run(make_run(tmp_path / "run"))]) if chart.name == "gradient")
    lines = [Line(label=name, colour=place, steps=(1, 2), values=(1.0, 2.0)) for place, name in enumerate("ab")]
    svg = draw(chart, lines, limit=1.0).svg
    assert svg.index("stroke-dasharray") < svg.index("fill: var(--card)") < svg.index(">a</text>")


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    assert drawn_places(5).tolist() == [0, 1, 2, 3, 4]
    places = drawn_places(10_000)
    assert (len(places), places[0], places[-1]) == (DRAWN_POINTS, 0, 9_999)


def test_components_of_the_reward_and_the_kl_are_drawn_where_they_are_recorded(tmp_path: Path) -> None:
    more: dict[str, float | None] = {"reward/format": 0.9, "policy/kl": 0.01}
    charts = {chart.name: chart for chart in charts_of([read_run(make_run(tmp_path / "run", changes={2: more}))])}
    assert set(charts) == NAMES | {"kl"}
    assert [curve.label for curve in charts["reward"].curves] == ["all rewards", "format"]
    assert charts["focus"].axis == "share of attention on the image"
