"""Several runs on one page: the same charts overlaid, and a table with intervals over seeds."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import numpy as np

from vgpo_lite.report.charts import charts_of
from vgpo_lite.report.drawing import Line, Measured, draw
from vgpo_lite.report.facts import shown
from vgpo_lite.report.records import read_run
from vgpo_lite.report.seeds import accuracy_of, curves_over_seeds, differing_rows, gain_of, grouped, over_seeds
from vgpo_lite.report.writing import plots_beside, rendered, write_pictures, write_whole
from vgpo_lite.units import duration, memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vgpo_lite.report.charts import Chart, Curve
    from vgpo_lite.report.drawing import Picture
    from vgpo_lite.report.seeds import Estimate, SeedGroup

TITLES = ("runs", "seeds", "steps", "before, %", "after, %", "change, points", "last reward", "time", "memory")
INTERVALS = (
    "Runs that differ in the seed alone are one row: the mean over seeds, and in brackets its 95 % interval by "
    "Student's t. A single run has the 95 % Wilson interval of its held-out answers, and so have seeds that all "
    "measured the same, as they do before training: that is one measurement. Last reward: median of the last tenth of "
    "the steps."
)
_CURVES_EACH = 2  # a third per group would need a legend longer than the chart
_DOTTED_GROUPS = 2  # dots of more groups hide each other


def write_comparison(folders: Sequence[Path], page: Path) -> list[tuple[str, ...]]:
    """Compare runs on one page, with its pictures beside it.

    Args:
        folders: Run directories.
        page: The HTML file.

    Returns:
        The table, titles first.

    Raises:
        CheckpointError: A folder holds no run.
        StorageError: The disk refuses.
    """
    groups = grouped([read_run(folder) for folder in folders])
    runs = [run for group in groups for run in group.runs]
    pictures = [_picture(chart, groups) for chart in charts_of(runs)]
    table = [TITLES, *(_row(group) for group in groups)]
    text = rendered(
        "compare.html.jinja",
        fingerprint="0",
        title="Comparison of runs",
        subtitle=f"{len(runs)} runs in {len(groups)} groups",
        how_drawn="Lines are medians of neighbouring steps. Where a row has several seeds, the line is the mean "
        "over them and the band reaches from the smallest to the largest, on steps where each seed has a value.",
        pictures=pictures,
        intervals=INTERVALS,
        table=table,
        labels=[group.label for group in groups],
        settings=differing_rows(groups),
        runs=[
            (group.label, run.name, shown(run.settings.get("seed", "-")), run.state)
            for group in groups
            for run in group.runs
        ],
    )
    write_pictures(plots_beside(page), pictures)
    write_whole(page, text.encode())
    return table


def _row(group: SeedGroup) -> tuple[str, ...]:
    rewards = [_last(run.metrics.get("reward/mean", ())) for run in group.runs]
    seconds = [_total(run.metrics.get("time/step_seconds", ())) for run in group.runs]
    peaks = [_most(run.metrics.get("memory/peak_bytes", ())) for run in group.runs]
    steps = sorted({run.steps[-1] if run.steps else 0 for run in group.runs})
    return (
        group.label,
        str(len(group.runs)),
        " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1]))),
        _cell(accuracy_of(group, "before"), lambda share: f"{100 * share:.1f}"),
        _cell(accuracy_of(group, "after"), lambda share: f"{100 * share:.1f}"),
        _cell(gain_of(group), lambda share: f"{100 * share:+.1f}"),
        _cell(over_seeds(rewards), lambda reward: f"{reward:.3f}"),
        _cell(over_seeds(seconds), duration, interval=False),
        _cell(over_seeds(peaks), memory, interval=False),
    )


def _cell(estimate: Estimate | None, words: Callable[[float], str], *, interval: bool = True) -> str:
    if estimate is None:
        return "-"
    if math.isnan(estimate.low) or not interval:
        return words(estimate.value)
    return f"{words(estimate.value)} [{words(estimate.low)} to {words(estimate.high)}]"


def _last(values: Sequence[float]) -> float:
    known = [value for value in values[-max(1, len(values) // 10) :] if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def _total(values: Sequence[float]) -> float:
    return float(np.nansum(values)) if len(values) else math.nan


def _most(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return max(known, default=math.nan)


def _picture(chart: Chart, groups: Sequence[SeedGroup]) -> Picture:
    runs = [run for group in groups for run in group.runs]
    curves = chart.recorded(runs)[:_CURVES_EACH]
    lines, measured = [], []
    for colour, group in enumerate(groups):
        for place, curve in enumerate(curves):
            style = curve.label if len(curves) > 1 else None
            lines.append(_line(group, curve, colour, style, is_dashed=place > 0))
        if chart.accuracies:
            measured += _measured(group, colour, len(groups))
    has_dots = len(groups) <= _DOTTED_GROUPS and len(curves) == 1
    limits = {run.settings.get(chart.limit) for run in runs} if chart.limit else set()
    limit = limits.pop() if len(limits) == 1 else None
    return draw(
        chart,
        lines,
        measured=measured,
        limit=float(limit) if isinstance(limit, int | float) else None,
        has_dots=has_dots,
    )


def _line(group: SeedGroup, curve: Curve, colour: int, style: str | None, *, is_dashed: bool) -> Line:
    """The line of a group: one run as it is, several as their mean within a band where all that record it have a value.

    A mean over fewer seeds would jump where one ends, though none of them changed.
    """
    low, high = (), ()
    if len(group.runs) == 1:
        values = curve.values(group.runs[0])
        steps = group.runs[0].steps if values else ()
    else:
        steps, curves = curves_over_seeds(group, curve)
        recording = curves[~np.isnan(curves).all(1)]
        if len(recording):
            values, low, high = (over(recording, 0).tolist() for over in (np.mean, np.min, np.max))  # nan where one is
        else:
            steps, values = (), ()
    return Line(
        label=group.label,
        colour=colour,
        steps=steps,
        values=values,
        low=low,
        high=high,
        style=style,
        is_dashed=is_dashed,
    )


def _measured(group: SeedGroup, colour: int, groups: int) -> list[Measured]:
    """Held-out accuracy before and after, a little apart from that of the other groups."""
    last = max((run.steps[-1] for run in group.runs if run.steps), default=1)
    apart = (colour - (groups - 1) / 2) * 0.012 * last
    found = ((step, accuracy_of(group, name)) for name, step in (("before", 0), ("after", last)))
    return [
        Measured(
            label=None,
            step=step + apart,
            share=estimate.value,
            low=estimate.value if math.isnan(estimate.low) else estimate.low,
            high=estimate.value if math.isnan(estimate.high) else estimate.high,
            colour=colour,
        )
        for step, estimate in found
        if estimate is not None
    ]
