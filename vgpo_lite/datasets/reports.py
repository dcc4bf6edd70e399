"""What the check of a data set found, and the rows it left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vgpo_lite.datasets.rows import Rows


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What the check of a data set found.

    Attributes:
        kept: Rows that can be used.
        dropped: Names of the rows left out, by reason.
        examples: What was found in the first row of each reason.
    """

    kept: int
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Rows looked at."""
        return self.kept + sum(map(len, self.dropped.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Rows left out, by reason, the most frequent first."""
        by_count = sorted(self.dropped.items(), key=lambda item: -len(item[1]))
        return {reason: len(names) for reason, names in by_count}

    def dropping(self, reason: str, names: Sequence[str], example: str = "") -> DataReport:
        """The report after some of the kept rows were left out for a further reason."""
        if not names:
            return self
        dropped = {**self.dropped, reason: (*self.dropped.get(reason, ()), *names)}
        examples = {reason: example, **self.examples}
        return DataReport(kept=self.kept - len(names), dropped=dropped, examples=examples)

    def joined(self, other: DataReport) -> DataReport:
        """One report on the rows of both."""
        report = DataReport(kept=self.kept + other.total, dropped=self.dropped, examples=self.examples)
        for reason, names in other.dropped.items():
            report = report.dropping(reason, names, other.examples.get(reason, ""))
        return report

    def in_words(self) -> str:
        """One line per reason: how many rows, which is the first, and what was found there."""
        lines = [
            f"  {count:,} x {reason}: {self.dropped[reason][0]} {self.examples.get(reason, '')}".rstrip()
            for reason, count in self.counts.items()
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class DataSplit:
    """A data set, opened and checked.

    Attributes:
        train: Rows that train.
        held_out: Rows that measure; none of them trains, except where a data set's own split overlaps.
        report: What the check found, over both.
        notes: What the user should read before the run: the revision, warnings.
        columns: What each stored column serves as; empty for rows that are drawn.
        commit: Of the hub; None for rows that come from no hub.
    """

    train: Rows
    held_out: Rows
    report: DataReport
    notes: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
