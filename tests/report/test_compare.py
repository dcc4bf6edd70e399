"""Runs side by side: grouped by what differs beside the seed, with intervals over seeds."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import Outcome
from tests.commands.conftest import cli as cli  # a fixture
from tests.report.runs import BEFORE, make_run, recorded
from tests.report.test_report import Page
from vgpo_lite.report.charts import Curve, charts_of
from vgpo_lite.report.comparing import _line, write_comparison
from vgpo_lite.report.records import read_run
from vgpo_lite.report.seeds import _T_95, curves_over_seeds, differing_rows, grouped, over_seeds
from vgpo_lite.report.smoothing import running_median

RIGHT = {"vgpo": (15, 16, 19), "grpo": (10, 12, 12)}


@pytest.fixture
def six(tmp_path: Path) -> list[Path]:
    """Three seeds of two methods; seeds differ in their output folder and their checkpoints too."""
    return [
        make_run(
            tmp_path / f"{method}-{seed}",
            advantage=method,
            seed=seed,
            checkpoint={"every": 5 + seed},
            accuracies={"before": BEFORE, "after": {"right": right, "total": 20, "low": 0.1, "high": 0.9}},
            changes={2: {"completions/mean_length": 20.0 + seed}},
        )
        for method, rights in RIGHT.items()
        for seed, right in enumerate(rights)
    ]


def test_runs_that_differ_in_the_seed_alone_are_one_group_named_by_what_differs(six: list[Path]) -> None:
    groups = grouped([read_run(folder) for folder in six])
    assert [(group.label, len(group.runs)) for group in groups] == [("advantage vgpo", 3), ("advantage grpo", 3)]


def test_labels_fall_back_on_names_where_settings_say_too_much_or_nothing(tmp_path: Path) -> None:
    many = make_run(tmp_path / "many", learning_rate=1e-3, loss="grpo", num_generations=4, temperature=0.9)
    bare = make_run(tmp_path / "bare")
    (bare / "config.yaml").unlink()
    runs = [read_run(folder) for folder in (make_run(tmp_path / "plain"), many, bare, make_run(tmp_path / "again"))]
    assert [group.label for group in grouped(runs)] == ["plain, again", "many", "bare"]


def test_the_table_has_the_mean_and_the_t_interval_of_the_seeds(
    six: list[Path], tmp_path: Path, one_chart: None
) -> None:
    titles, vgpo, grpo = write_comparison(six, tmp_path / "all.html")
    told = dict(zip(titles, vgpo, strict=True))
    shares = [right / 20 for right in RIGHT["vgpo"]]
    # mean 83.33 %, standard deviation 10.41 points, so 4.303 x 10.41 / sqrt(3) = 25.86 points either way
    half = 4.303 * statistics.stdev(shares) / math.sqrt(3)
    assert half == pytest.approx(0.2586, abs=1e-4)
    assert told["after, %"] == "83.3 [57.5 to 100.0]"
    assert told["before, %"] == "40.0 [21.9 to 61.3]"  # of the one measurement that all three made: Wilson's
    assert told["change, points"] == f"+43.3 [{100 * (0.8333 - half - 0.4):+.1f} to {100 * (0.8333 + half - 0.4):+.1f}]"
    assert (told["seeds"], told["steps"], told["time"]) == ("3", "6", "30.0 s")
    rows = Page((tmp_path / "all.html").read_text()).rows
    assert rows[:3] == [list(titles), list(vgpo), list(grpo)]
    assert ["advantage", "vgpo", "grpo"] in rows
    assert ["seed", "0, 1, 2", "0, 1, 2"] in rows
    assert [path.name for path in (tmp_path / "all-plots").iterdir()] == ["reward.png"]


def test_a_single_run_has_the_interval_of_its_answers_and_no_other(tmp_path: Path, one_chart: None) -> None:
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=3, accuracies={}, advantage="grpo")]
    titles, first, second = write_comparison(folders, tmp_path / "page.html")
    told = dict(zip(titles, first, strict=True))
    assert told["after, %"] == "75.0 [53.1 to 88.8]"
    assert told["change, points"] == "+35.0"
    assert dict(zip(titles, second, strict=True))["after, %"] == "-"
    assert second[2] == "3"


def test_what_lies_in_brackets_holds_what_stands_before_them(tmp_path: Path, one_chart: None) -> None:
    rights = (20, 20, 20, 20, 2)  # median 20, but mean 16.4, deviation 8.05, half width 2.776 x 8.05 / sqrt(5) = 10
    folders = [
        make_run(
            tmp_path / f"{seed}",
            seed=seed,
            accuracies={
                "before": {"right": 8 + seed, "total": 20, "low": 0.1, "high": 0.9},
                "after": {"right": right, "total": 20, "low": 0.1, "high": 0.9},
            },
        )
        for seed, right in enumerate(rights)
    ]
    titles, row = write_comparison(folders, tmp_path / "page.html")
    told = dict(zip(titles, row, strict=True))
    assert told["after, %"] == "82.0 [32.0 to 100.0]"
    for name in ("before, %", "after, %", "change, points"):
        value, low, high = (float(number) for number in re.findall(r"[-+]?\d+\.\d", told[name]))
        assert low < value < high


def test_seeds_that_are_all_alike_are_no_sign_of_certainty(tmp_path: Path, one_chart: None) -> None:
    folders = [make_run(tmp_path / f"{seed}", seed=seed) for seed in (3, 5)]
    titles, row = write_comparison(folders, tmp_path / "page.html")
    told = dict(zip(titles, row, strict=True))
    assert told["after, %"] == "75.0 [53.1 to 88.8]"
    assert told["change, points"] == "+35.0"
    assert told["last reward"] == "0.460"
    assert ["seed", "3, 5"] in Page((tmp_path / "page.html").read_text()).rows


def test_what_differs_names_the_seed_where_single_runs_differ_in_it_too(tmp_path: Path, one_chart: None) -> None:
    runs = [make_run(tmp_path / "a", seed=7), make_run(tmp_path / "b", seed=1234, advantage="grpo")]
    write_comparison(runs, tmp_path / "page.html")
    rows = Page((tmp_path / "page.html").read_text()).rows
    assert ["advantage", "vgpo", "grpo"] in rows
    assert ["seed", "7", "1,234"] in rows
    alike = [read_run(runs[0]), read_run(make_run(tmp_path / "c", seed=7, advantage="grpo"))]
    assert [row[0] for row in differing_rows(grouped(alike))] == ["advantage"]


def test_the_line_of_several_seeds_is_their_mean_within_the_smallest_and_the_largest(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"{seed}", steps=2, seed=seed, changes={step: {"reward/mean": reward} for step in (1, 2)})
        for seed, reward in enumerate((0.0, 0.1, 0.8))
    ]
    (group,) = grouped([read_run(folder) for folder in folders])
    line = _line(group, Curve(metric="reward/mean", label="all", scale=100), 0, None, is_dashed=False)
    assert list(line.values) == pytest.approx([30.0, 30.0])
    assert (list(line.low), list(line.high)) == ([0.0, 0.0], [80.0, 80.0])


def test_the_line_of_several_seeds_ends_where_the_first_of_them_does_and_never_jumps(tmp_path: Path) -> None:
    folders = [
        make_run(
            tmp_path / f"{seed}",
            steps=steps,
            seed=seed,
            changes={
                step: {"reward/mean": reward} | ({} if seed < 2 else {"reward/mean": None}) for step in range(1, 13)
            },
        )
        for seed, (reward, steps) in enumerate(((0.2, 12), (0.8, 6), (0.5, 3)))
    ]
    (group,) = grouped([read_run(folder) for folder in folders])
    line = _line(group, Curve(metric="reward/mean", label="all"), 0, None, is_dashed=False)
    assert list(line.steps) == list(range(1, 13))
    for drawn, expected in ((line.values, 0.5), (line.low, 0.2), (line.high, 0.8)):
        assert drawn[:6] == pytest.approx([expected] * 6)  # the third seed, which records no reward, does not count
        assert np.isnan(drawn[6:]).all()
    nothing = _line(group, Curve(metric="reward/none", label="none"), 0, None, is_dashed=False)
    assert (len(nothing.steps), len(nothing.values)) == (0, 0)
    write_comparison(folders, tmp_path / "page.html")
    assert "on steps where each seed has a value" in (tmp_path / "page.html").read_text()


def test_runs_side_by_side_show_whole_steps_and_the_highest_memory(six: list[Path]) -> None:
    charts = {chart.name: chart for chart in charts_of([read_run(folder) for folder in six])}
    assert [curve.metric for curve in charts["time"].curves] == ["time/step_seconds"]
    assert [curve.metric for curve in charts["memory"].curves] == ["memory/peak_bytes"]


def test_quantiles_of_student_s_t_are_those_of_its_density() -> None:
    for freedom in (1, 2, 5, 30):
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        place = np.linspace(0, _T_95[freedom - 1], 200_001)
        density = scale * (1 + place**2 / freedom) ** (-(freedom + 1) / 2)
        assert 2 * np.trapezoid(density, place) == pytest.approx(0.95, abs=1e-4)
    assert len(_T_95) == 30
    assert over_seeds([math.nan]) is None


def test_curves_of_seeds_stand_on_their_own_steps(tmp_path: Path) -> None:
    short, long = make_run(tmp_path / "short", steps=2, seed=1), make_run(tmp_path / "long", steps=4, seed=2)
    (group,) = grouped([read_run(short), read_run(long)])
    steps, curves = curves_over_seeds(group, Curve(metric="reward/mean", label="all"))
    assert steps == (1, 2, 3, 4)
    assert np.isnan(curves[0, 2:]).all()
    assert curves[1].tolist() == running_median(recorded(long, "reward/mean")).tolist()


def test_every_chart_is_drawn_for_groups_and_single_runs_together(six: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "<i>$x$_other", steps=1, loss="grpo", accuracies={})
    write_comparison([*six[:3], other], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == len(list((tmp_path / "page-plots").glob("*.png"))) == 10
    assert not {"script", "img", "i"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)


@pytest.fixture
def one_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the first chart alone: these tests are about words."""
    monkeypatch.setattr("vgpo_lite.report.comparing.charts_of", lambda runs: charts_of(runs)[:1])


def test_the_command_prints_the_table_and_names_what_is_wrong(
    cli: Callable[..., Outcome], six: list[Path], one_chart: None
) -> None:
    shown = cli("compare", *(folder.name for folder in six), "-o", "seeds.html")
    assert shown.code == 0, shown.err
    assert "the mean over seeds, and in brackets its 95 % interval by Student's t" in shown.out
    assert shown.out.splitlines()[1].startswith("advantage vgpo  3")
    assert shown.out.endswith("seeds.html written, pictures in seeds-plots\n")
    alone = cli("compare", "vgpo-0")
    assert (alone.code, "one run cannot be compared" in alone.err) == (2, True)
    twice = cli("compare", "vgpo-0", "./vgpo-0")
    assert (twice.code, "is named twice" in twice.err) == (2, True)
    gone = cli("compare", "vgpo-0", "vgpo-9")
    assert (gone.code, "there is no folder vgpo-9" in gone.err) == (2, True)
