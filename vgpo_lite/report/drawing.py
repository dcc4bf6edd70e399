"""Charts as PNG for a viewer and as SVG for the page, whose colours follow the reader's light or dark mode."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from vgpo_lite.report.smoothing import drawn_places, running_median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from vgpo_lite.report.charts import Chart

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f5fc4", "#8c6d31")
"""Told apart with any colour vision (Okabe and Ito 2008), then two more."""
INK, GRID, GROUND = "#202124", "#dfe1e5", "#fefefe"
_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)", GROUND: "var(--card)"} | {
    colour: f"var(--c{place})" for place, colour in enumerate(COLOURS)
}
_SIZE_INCHES = (6.4, 3.4)
_PNG_DOTS_PER_INCH = 125
_MARGINS = {"left": 0.125, "right": 0.97, "top": 0.9, "bottom": 0.155}  # a layout engine takes as long as the drawing
_DASHES = (0, (5, 2))
_SHORT_LABEL = 12  # characters: two columns of longer ones would hide half of the chart
_LEGEND_GROUND: dict[str, Any] = {"facecolor": GROUND, "edgecolor": "none", "framealpha": 0.85, "fancybox": False}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vgpo-lite",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is drawn of one curve.

    Attributes:
        label: What the legend says; several lines of one colour may share it.
        colour: Place in `COLOURS`, counted round.
        steps: Optimizer steps.
        values: One per step, in the axis's unit; nan where there is none.
        low: Lower edge of a band around the values; empty: none is drawn, the values are dots with a running median.
        high: Upper edge of it.
        style: What being solid, or dashed, stands for, where colours tell runs apart; None: nothing.
        is_dashed: Whether the line is dashed.
    """

    label: str
    colour: int
    steps: Sequence[int]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: str | None = None
    is_dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A held-out accuracy in a chart.

    Attributes:
        label: What the legend says; None: nothing.
        step: Where it stands: 0 before, the last step after.
        share: Right answers over all, in [0, 1].
        low: Lower end of its interval.
        high: Upper end of it.
        colour: Place in `COLOURS`.
    """

    label: str | None
    step: float
    share: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A chart, drawn.

    Attributes:
        chart: What it is a picture of.
        png: The file's bytes.
        svg: One `<svg>` element, its colours variables of the page.
    """

    chart: Chart
    png: bytes
    svg: str


def draw(
    chart: Chart,
    lines: Sequence[Line],
    *,
    measured: Sequence[Measured] = (),
    limit: float | None = None,
    has_dots: bool = True,
) -> Picture:
    """Draw one chart.

    Args:
        chart: Its title, axis and range.
        lines: Its curves.
        measured: Held-out accuracies to show with their intervals.
        limit: Height of a dashed line; None: none.
        has_dots: Whether single steps are drawn behind the running median.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_INCHES)
        figure.subplots_adjust(**_MARGINS)
        axes = figure.subplots()
        for line in lines:
            _draw_line(axes, line, has_dots=has_dots)
        for each in measured:
            _draw_measured(axes, each)
        if limit is not None:
            axes.axhline(limit, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        _set_scales(axes, chart, lines, limit)
        axes.set_title(chart.title, loc="left", fontweight="bold")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(chart.axis)
        _add_legend(axes, lines, measured)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=_PNG_DOTS_PER_INCH, pil_kwargs={"compress_level": 1})
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(chart=chart, png=png.getvalue(), svg=_inline(svg.getvalue()))


def _draw_line(axes: Axes, line: Line, *, has_dots: bool) -> None:
    steps, values = np.asarray(line.steps), np.asarray(line.values, dtype=np.float64)
    colour, dashes = COLOURS[line.colour % len(COLOURS)], _DASHES if line.is_dashed else "-"
    places = drawn_places(len(steps))
    if len(line.low):
        low, high = np.asarray(line.low), np.asarray(line.high)
        axes.fill_between(steps[places], low[places], high[places], color=colour, alpha=0.18, linewidth=0)
        axes.plot(steps[places], values[places], color=colour, linewidth=1.8, linestyle=dashes)
        return
    alone = np.count_nonzero(~np.isnan(values)) == 1
    opacity = 1.0 if alone else 0.35
    if has_dots or alone:
        axes.plot(steps[places], values[places], ".", color=colour, alpha=opacity, markersize=7, markeredgewidth=0)
    axes.plot(steps[places], running_median(values)[places], color=colour, linewidth=1.8, linestyle=dashes)


def _draw_measured(axes: Axes, each: Measured) -> None:
    axes.errorbar(
        [each.step],
        [100 * each.share],
        yerr=[[max(0.0, 100 * (each.share - each.low))], [max(0.0, 100 * (each.high - each.share))]],
        color=COLOURS[each.colour % len(COLOURS)],
        marker="D",
        markersize=5,
        capsize=4,
        linewidth=1.5,
    )


def _set_scales(axes: Axes, chart: Chart, lines: Sequence[Line], limit: float | None) -> None:
    values = np.array([value for line in lines for value in line.values] + ([] if limit is None else [limit]))
    known = values[~np.isnan(values)]
    if chart.logarithmic and len(known) and known.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    elif chart.highest is not None:
        axes.set_ylim(0, min(max(axes.get_ylim()[1], chart.highest / 20), chart.highest * 1.03))
    elif chart.from_zero and (len(known) == 0 or known.min() >= 0):
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.2 * known.max(initial=0)) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _add_legend(axes: Axes, lines: Sequence[Line], measured: Sequence[Measured]) -> None:
    """A legend where there is more than one label; set as text afterwards, so that any name can be a label."""
    keys: dict[str, Line2D] = {}
    for line in lines:
        dashes = _DASHES if line.is_dashed and line.style is None else "-"
        keys.setdefault(line.label, Line2D([], [], color=COLOURS[line.colour % len(COLOURS)], linestyle=dashes))
    for line in lines:
        if line.style is not None:
            keys.setdefault(line.style, Line2D([], [], color=INK, linestyle=_DASHES if line.is_dashed else "-"))
    for each in measured:
        if each.label is not None:
            colour = COLOURS[each.colour % len(COLOURS)]
            keys.setdefault(each.label, Line2D([], [], color=colour, linestyle="", marker="D", markersize=5))
    if len(keys) > 1:
        columns = 2 if len(keys) > 3 and max(map(len, keys)) <= _SHORT_LABEL else 1
        legend = axes.legend(
            list(keys.values()), ["-"] * len(keys), loc="best", fontsize=9, ncols=columns, **_LEGEND_GROUND
        )
        for text, label in zip(legend.get_texts(), keys, strict=True):
            text.set_text(label)


def _inline(svg: str) -> str:
    """An SVG file as an element of a page: without what would reach its neighbours, and in the page's own colours."""
    element = svg[svg.index("<svg") :].replace("xlink:href", "href")
    element = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', element, count=1)
    element = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", element, flags=re.DOTALL)
    element = re.sub(r' id="[\w.]+_\d+"', "", element)
    element = re.sub(r"font-family: [^;\"]*;? ?", "", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    return element
