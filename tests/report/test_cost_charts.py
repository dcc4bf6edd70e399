"""What steps cost in time and memory, drawn: over whole windows, and told in sentences that hold for these runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.runs import make_run, metrics_of
from vgpo_lite.report.charts import Chart, charts_of
from vgpo_lite.report.comparing import _line
from vgpo_lite.report.facts import outcome_rows
from vgpo_lite.report.records import RunRecord, read_run
from vgpo_lite.report.seeds import grouped
from vgpo_lite.report.smoothing import running_median


def charts_by_name(*runs: RunRecord) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts_of(list(runs))}


def test_memory_and_time_are_drawn_by_phase_and_whole_where_no_phase_is_told(tmp_path: Path) -> None:
    phases = ["sampling", "grading", "looking", "updating"]
    run = make_run(tmp_path / "run", memory={"gpu_memory": 8.0})
    charts = {chart.name: chart for chart in charts_of([read_run(run)])}
    assert [curve.label for curve in charts["time"].curves] == phases
    assert [curve.metric for curve in charts["time"].curves] == [f"time/{name}_seconds" for name in phases]
    assert [curve.metric for curve in charts["memory"].curves] == [f"memory/{name}_peak_bytes" for name in phases]
    assert charts["memory"].limit is None  # the whole process is no measure of what tensors may take
    on_gpu = (run / "events.jsonl").read_text().replace("CPU, 1 thread", "NVIDIA T4, 15.6 GB")
    (run / "events.jsonl").write_text(on_gpu)
    record = read_run(run)
    limit = {chart.name: chart for chart in charts_of([record])}["memory"].limit
    assert limit is not None
    assert record.settings[limit] == 8.0
    untold = {name for name in metrics_of(1) if name.endswith(tuple(f"{phase}_peak_bytes" for phase in phases))}
    nowhere = make_run(tmp_path / "mac", changes=dict.fromkeys(range(1, 7), dict.fromkeys(untold)))
    charts = {chart.name: chart for chart in charts_of([read_run(nowhere)])}
    assert [curve.metric for curve in charts["memory"].curves] == ["memory/peak_bytes"]
    assert [curve.label for curve in charts["time"].curves] == phases


def windows_of_four(folder: Path, *, steps: int, **settings: int) -> RunRecord:
    """A run whose every fourth step samples for 25 of its 30 seconds; the others update alone, in 5."""
    updating: dict[str, float | None] = {
        f"{section}/{phase}_{unit}": None
        for section, unit in (("time", "seconds"), ("memory", "peak_bytes"))
        for phase in ("sampling", "grading", "looking")
    }
    updating |= {"time/updating_seconds": 5.0, "time/step_seconds": 5.0}
    sampling = {"time/sampling_seconds": 25.0, "time/grading_seconds": 0.0, "time/looking_seconds": 0.0}
    sampling |= {"time/updating_seconds": 5.0, "time/step_seconds": 30.0}
    changes = {step: sampling if step % 4 == 1 else updating for step in range(1, steps + 1)}
    return read_run(make_run(folder, steps=steps, changes={**changes}, num_iterations=4, **settings))


@pytest.mark.parametrize("steps", [4, 40, 43])
def test_a_step_costs_what_its_window_does_where_one_rollout_trains_several(tmp_path: Path, steps: int) -> None:
    run = windows_of_four(tmp_path / "run", steps=steps)
    charts = charts_by_name(run)
    drawn = {curve.label: running_median(curve.values(run)).tolist() for curve in charts["time"].curves}
    assert drawn["sampling"] == pytest.approx([25 / 4] * steps)
    assert drawn["updating"] == pytest.approx([5.0] * steps)
    peaks = {curve.label: running_median(curve.values(run)).tolist() for curve in charts["memory"].curves}
    assert not any(map(math.isnan, peaks["sampling"]))  # no line is broken where steps do not sample
    assert peaks["sampling"] == pytest.approx([0.9] * steps)
    assert "mean of the 4 steps up to it" in charts["time"].reading
    assert "highest of the 4 steps up to it" in charts["memory"].reading


@pytest.mark.parametrize("seeds", [1, 2])
def test_runs_side_by_side_show_the_mean_step_of_a_window(tmp_path: Path, seeds: int) -> None:
    runs = [windows_of_four(tmp_path / f"{seed}", steps=40, seed=seed) for seed in range(seeds)]
    other = read_run(make_run(tmp_path / "other", advantage="grpo"))
    group, single = grouped([*runs, other])
    chart = charts_by_name(*runs, other)["time"]
    line = _line(group, chart.curves[0], 0, None, is_dashed=False)
    assert running_median(line.values).tolist() == pytest.approx([11.25] * 40)
    assert _line(single, chart.curves[0], 0, None, is_dashed=False).values == [5.0] * 6
    assert "mean of num_iterations steps up to it" in chart.reading


def test_the_outcome_tells_the_mean_of_the_steps(tmp_path: Path) -> None:
    told = dict(outcome_rows(windows_of_four(tmp_path / "run", steps=40)))
    assert told["time in steps"] == "7:30, 11.2 s each on average"


def test_a_step_whose_time_is_unknown_took_no_known_time(tmp_path: Path) -> None:
    unknown: dict[str, float | None] = {name: None for name in metrics_of(1) if name.startswith("time/")}
    run = read_run(make_run(tmp_path / "run", steps=3, changes={2: unknown}))
    (sampling, *_) = charts_by_name(run)["time"].curves
    assert [sampling.values(run)[place] for place in (0, 2)] == [2.75, 2.75]
    assert math.isnan(sampling.values(run)[1])


LIE, LEVEL, FLAT = "lie on one another", "level after the first steps", "flat after the first steps"
OWN, LOOKING, BEFORE = (
    "own report tells its phases",
    "update's own forward pass",
    "one pass before the first of several",
)


def on_a_card(run: RunRecord) -> RunRecord:
    return replace(run, facts={"device": "NVIDIA T4, 15.6 GB"})


def without_phases(run: RunRecord) -> RunRecord:
    """As a run tells it that knows whole steps alone."""
    return replace(run, metrics={name: run.metrics[name] for name in ("time/step_seconds", "memory/peak_bytes")})


def test_what_is_said_of_costs_holds_for_what_is_drawn(tmp_path: Path) -> None:
    run, several = read_run(make_run(tmp_path / "run")), windows_of_four(tmp_path / "several", steps=8)
    old, card = without_phases(run), on_a_card(run)
    process, tensors, both = "The whole process at its", "What tensors held", "On a GPU what tensors held"
    told = {
        "one on a CPU": ([run], {process, FLAT, LIE, LOOKING}),
        "one on a card": ([card], {tensors, FLAT, "Dashed", LOOKING}),
        "one of several updates": ([several], {process, FLAT, LIE, BEFORE, "of the 4 steps"}),
        "one without phases": ([old], {process, LEVEL}),
        "two on CPUs": ([run, run], {process, LEVEL, OWN}),
        "two on cards": ([card, card], {tensors, LEVEL, "Dashed", OWN}),
        "a CPU and a card": ([run, card], {both, LEVEL, OWN}),
        "two of which one has phases": ([run, old], {process, LEVEL}),
    }
    sentences = set.union(*(expected for _, expected in told.values()))
    for name, (runs, expected) in told.items():
        charts = charts_by_name(*runs)
        text = f"{charts['memory'].reading} {charts['time'].reading}"
        assert {sentence for sentence in sentences if sentence in text} == expected, name
        assert "  " not in text
        assert text.endswith(".")
