"""A run in pictures and numbers: read from its directory, drawn at its checkpoints, and compared with other runs.

Nothing here is loaded before something is drawn; drawing loads matplotlib, which takes half a second.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vgpo_lite.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DRAWN_EVERY_SECONDS = 20.0
"""A page younger than this is not drawn anew at a checkpoint: drawing takes about a second, a twentieth of it."""


def refresh_report(folder: Path, *, is_over: bool, on_failure: Callable[[str], None]) -> None:
    """Write a run's report as its records stand; whatever fails is told and stops nothing.

    Args:
        folder: The run directory.
        is_over: Whether the run has ended, so that the page is drawn however young the last one is.
        on_failure: Told what failed.
    """
    try:
        if is_over or not _is_young(folder / "report.html"):
            failpoint("report.before_drawing")
            draw_report(folder)
    except Exception as error:  # noqa: BLE001  a run is worth more than its picture
        on_failure(f"the report could not be drawn: {error}")


def draw_report(folder: Path) -> None:
    """Write the report of a run into its directory."""
    from vgpo_lite.report.writing import write_report

    write_report(folder)


def _is_young(page: Path) -> bool:
    return page.is_file() and 0 <= time.time() - page.stat().st_mtime < DRAWN_EVERY_SECONDS
