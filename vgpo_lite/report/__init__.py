"""A run in pictures and numbers: read from its directory, drawn at each checkpoint, and compared with other runs.

Nothing here is imported before something is drawn; drawing loads matplotlib, which takes half a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def refresh_report(folder: Path, *, on_failure: Callable[[str], None]) -> None:
    """Write a run's report as its records stand; whatever fails is told and stops nothing.

    Args:
        folder: The run directory.
        on_failure: Told what failed.
    """
    try:
        failpoint("report.before_drawing")
        from vgpo_lite.report.writing import write_report

        write_report(folder)
    except Exception as error:  # noqa: BLE001  a run is worth more than its picture
        on_failure(f"the report could not be drawn: {error}")
