"""Reports on the disk: one HTML file that needs nothing else, and its pictures as PNG beside it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from vgpo_lite.report.charts import charts_of
from vgpo_lite.report.drawing import COLOURS, Line, Measured, draw
from vgpo_lite.report.facts import METRIC_TITLES, metric_rows, outcome_rows, setting_rows
from vgpo_lite.report.records import read_run
from vgpo_lite.report.smoothing import window_of
from vgpo_lite.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vgpo_lite.report.charts import Chart
    from vgpo_lite.report.drawing import Picture
    from vgpo_lite.report.records import RunRecord

DARK_COLOURS = ("#56b4e9", "#ff8c42", "#2fc79a", "#e39ac6", "#9ad0f5", "#f0c04f", "#b39ddb", "#c9a66b")
"""The same hues, light enough to read on a dark page."""

_FINGERPRINT = re.compile(rb'<meta name="drawn-from" content="([0-9a-f]+)">')
_HEAD_BYTES = 1000  # the fingerprint stands among the first lines


def write_report(folder: Path, *, page: Path | None = None) -> Path:
    """Write the report of a run, unless the one that is there shows the same.

    Args:
        folder: The run directory.
        page: The HTML file; None: `report.html` in the run directory.

    Returns:
        The page.

    Raises:
        CheckpointError: The folder holds no run.
        StorageError: The disk refuses.
    """
    run = read_run(folder)
    page = folder / "report.html" if page is None else page
    if drawn_from(page) == run.fingerprint():
        return page
    drawn = [_picture(chart, run) for chart in charts_of([run])]
    text = rendered(
        "run.html.jinja",
        fingerprint=run.fingerprint(),
        title=run.name,
        subtitle=" on ".join(str(run.settings[key]) for key in ("model", "dataset") if key in run.settings),
        how_drawn=f"Dots are single steps, the line is the median of {window_of(len(run.steps))} neighbouring steps.",
        pictures=drawn,
        tables=[("outcome", outcome_rows(run)), ("settings", setting_rows(run))],
        metric_titles=METRIC_TITLES,
        metric_rows=metric_rows(run),
        config=run.config,
    )
    write_pictures(plots_beside(page), drawn)
    write_whole(page, text.encode())
    return page


def plots_beside(page: Path) -> Path:
    """The folder of a page's PNG files: `plots` beside a `report.html`, `NAME-plots` beside another `NAME.html`."""
    return page.parent / ("plots" if page.name == "report.html" else f"{page.stem}-plots")


def drawn_from(page: Path) -> str | None:
    """The fingerprint of what a page shows; None where there is no page of ours."""
    try:
        with page.open("rb") as file:
            found = _FINGERPRINT.search(file.read(_HEAD_BYTES))
    except OSError:
        return None
    return None if found is None else found[1].decode()


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """Write each picture as `<chart>.png`.

    Raises:
        StorageError: The disk refuses.
    """
    for picture in pictures:
        write_whole(folder / f"{picture.chart.name}.png", picture.png)


def write_whole(path: Path, data: bytes) -> None:
    """Give a file new content in one step. Not synced: what a power cut takes can be drawn again.

    Raises:
        StorageError: The disk refuses.
    """
    beside = path.with_name(f".{path.name}.tmp")
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)


def rendered(template: str, **values: object) -> str:
    """A page of this room; every value is escaped, but for pictures that were drawn here."""
    environment = Environment(
        loader=PackageLoader("vgpo_lite.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(light=COLOURS, dark=DARK_COLOURS, **values)


def _picture(chart: Chart, run: RunRecord) -> Picture:
    lines = [
        Line(
            label=curve.label,
            colour=place,
            steps=run.steps,
            values=curve.values(run),
        )
        for place, curve in enumerate(chart.recorded([run]))
    ]
    measured = []
    if chart.accuracies:
        places: Mapping[str, int] = {"before": 0, "after": run.steps[-1] if run.steps else 1}
        measured = [
            Measured(
                label="held out",
                step=places[name],
                share=accuracy.share,
                low=accuracy.low,
                high=accuracy.high,
                colour=1,
            )
            for name, accuracy in run.accuracies.items()
            if name in places
        ]
    limit = run.settings.get(chart.limit) if chart.limit else None
    return draw(chart, lines, measured=measured, limit=float(limit) if isinstance(limit, int | float) else None)
