"""Every row is checked before the GPU is touched: marks, golds, headers of images. Pixels are decoded only in doubt."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from vgpo_lite.datasets.refusals import RefusalError
from vgpo_lite.datasets.reports import DataReport
from vgpo_lite.datasets.rows import Rows
from vgpo_lite.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vgpo_lite.data_types import Outline
    from vgpo_lite.datasets.rows import Source


def checked_rows(
    source: Source, *, limit: int | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[Rows, DataReport]:
    """The usable rows of a split, and why the others are not.

    Args:
        source: The split.
        limit: Only the first rows, as many as this; None: all.
        progress: Called with rows done and rows in all, now and then.
    """
    total = len(source) if limit is None else min(limit, len(source))
    kept: dict[int, Outline] = {}
    dropped: dict[str, list[str]] = {}
    examples: dict[str, str] = {}
    content = hashlib.sha256()
    for row in range(total):
        if progress is not None and row % 1000 == 0:
            progress(row, total)
        try:
            outline = source.outline(row)
        except RefusalError as error:
            dropped.setdefault(error.reason, []).append(f"{source.name}/{row}")
            examples.setdefault(error.reason, error.detail)
        else:
            kept[row] = outline
            content.update(repr((outline.question, outline.image_sizes, outline.answer)).encode())
    report = DataReport(
        kept=len(kept), dropped={reason: tuple(names) for reason, names in dropped.items()}, examples=examples
    )
    return Rows(source, list(kept), outlines=kept, content=content.hexdigest()), report


def refuse_if_too_bad(report: DataReport, *, max_bad_rows: float, apart: tuple[str, ...] = ()) -> None:
    """Stop where too large a share of a data set is unusable: a run on the rest would be a run on something else.

    Args:
        report: What the check found.
        max_bad_rows: Largest share of rows that may be left out, in [0, 1].
        apart: Reasons that do not count towards it.

    Raises:
        DataError: The share is larger, or no row is left.
    """
    bad = sum(count for reason, count in report.counts.items() if reason not in apart)
    if report.total == 0:
        raise DataError("the data set has no rows")
    if report.kept and bad <= max_bad_rows * report.total:
        return
    share = f"{bad:,} of {report.total:,} rows ({bad / report.total:.1%}) cannot be used"
    remedy = "repair them, or allow more with data.max_bad_rows" if report.kept else "none is left"
    raise DataError(f"{share}, data.max_bad_rows is {max_bad_rows:.0%}; {remedy}:\n{report.in_words()}")
