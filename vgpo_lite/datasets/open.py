"""One entry to every data set: presets, the hub, local files and the built-in shapes, checked and split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from vgpo_lite.datasets.checks import checked_rows, refuse_if_too_bad
from vgpo_lite.datasets.columns import map_columns
from vgpo_lite.datasets.origins import find_origin, short_name
from vgpo_lite.datasets.reports import DataReport, DataSplit
from vgpo_lite.datasets.rows import Rows, TableSource
from vgpo_lite.datasets.shapes import LENGTHS, ShapesRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Outline, Sample
    from vgpo_lite.datasets.origins import Origin

SHAPES = "shapes"
"""The name of the built-in data set."""

_ROWS_PER_HELD_OUT_ROW = 5  # however small the data set, four rows in five train


def open_rows(
    config: RunConfig,
    *,
    purpose: Literal["train", "measure"] = "train",
    progress: Callable[[int, int], None] | None = None,
) -> DataSplit:
    """Open the data set of a run: every row checked, bad ones left out and counted, some held out for measuring.

    Held-out rows come from `data.eval_split`, or else from the training rows by a choice that the content alone makes,
    at most a fifth of them. An evaluation set that is only measured, and has no split for it, is measured whole.

    Args:
        config: `dataset`, `data`, `eval.held_out` and the names of the rewards are read.
        purpose: Whether rows shall train and be measured, or be measured alone; `train` may then be empty.
        progress: Called with rows checked and rows in all, now and then.

    Raises:
        ConfigError: A split, subset, revision or column that does not exist.
        DataError: The data set cannot be had, or more of its rows than `data.max_bad_rows` cannot be used.
        StorageError: The disk is too full for it.
    """
    if config.data.id is None and config.dataset == SHAPES:
        return _drawn_rows(config)
    data = config.data
    reader = _Reader(config=config, origin=find_origin(config), progress=progress)
    notes = reader.notes(purpose)
    if data.eval_split is not None:
        held_out, report = reader.rows(data.eval_split, "data.eval_split", limit=None)
        held_out = held_out.keep(held_out.in_private_order())
        train = held_out.keep([])
        if purpose == "train":
            train, trained = reader.rows(reader.split, "data.split", limit=data.limit)
            report = report.joined(trained)
    else:
        usable, report = reader.rows(reader.split, "data.split", limit=data.limit)
        order = usable.in_private_order()
        whole = purpose == "measure" and data.evaluation_only
        count = len(usable) if whole else min(config.eval.held_out, len(usable) // _ROWS_PER_HELD_OUT_ROW)
        held_out, train = usable.keep(order[:count]), usable.keep(np.sort(order[count:]))
    refuse_if_too_bad(report, max_bad_rows=data.max_bad_rows)
    return DataSplit(
        train=train, held_out=held_out, report=report, notes=notes, columns=reader.roles, commit=reader.origin.commit
    )


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Reads the splits of one data set, and notes what it found each column to be."""

    config: RunConfig
    origin: Origin
    progress: Callable[[int, int], None] | None
    roles: dict[str, str] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The split that trains; the only one there is, where an evaluation set calls it otherwise."""
        data, splits = self.config.data, self.origin.splits
        return splits[0] if data.evaluation_only and len(splits) == 1 else data.split

    def rows(self, split: str, key: str, *, limit: int | None) -> tuple[Rows, DataReport]:
        stored = self.origin.open_split(split, key=key)
        needs_gold = "accuracy" in self.config.reward.functions
        columns = map_columns(
            stored.table.columns,
            self.config.data,
            needs_gold=needs_gold,
            video_columns=stored.table.video_columns,
        )
        self.roles.update(columns.roles(stored.table.columns))
        source = TableSource(
            name=f"{short_name(self.config)}/{split}",
            fingerprint=stored.fingerprint,
            table=stored.table,
            columns=columns,
            folder=stored.folder,
            needs_image=self.config.data.require_image,
            needs_gold=needs_gold,
        )
        return checked_rows(source, limit=limit, progress=self.progress)

    def notes(self, purpose: Literal["train", "measure"]) -> tuple[str, ...]:
        """What the user should know of the data set before the run."""
        data, name = self.config.data, self.config.dataset
        notes = [f"data: {self.origin.provenance}"]
        if self.split != data.split:
            notes.append(f"{name} has one split, {self.split}; it stands in for {data.split}")
        if data.evaluation_only and purpose == "train":
            notes.append(f"{name} is an evaluation set: what trained on it cannot be compared on it any more")
        if not data.columns_verified:
            notes.append(
                f"the columns of {name} are known from descriptions of it only; `data check` shows what it has"
            )
        return tuple(notes)


@dataclass(frozen=True, kw_only=True)
class _DrawnSource:
    """Rows that are drawn when they are asked for; none of them is bad."""

    drawn: ShapesRows

    @property
    def name(self) -> str:
        return self.drawn.name

    @property
    def fingerprint(self) -> str:
        return self.drawn.fingerprint

    def __len__(self) -> int:
        return len(self.drawn)

    def sample(self, row: int) -> Sample:
        return self.drawn[row]

    def outline(self, row: int) -> Outline:
        return self.drawn.outline(row)


def _drawn_rows(config: RunConfig) -> DataSplit:
    """The built-in shapes; `data.subset` names their difficulty."""
    difficulty = config.data.subset or "normal"
    count = min(config.data.limit or LENGTHS["train"], LENGTHS["train"])
    train = _DrawnSource(drawn=ShapesRows("train", difficulty=difficulty, length=count))
    held_out = _DrawnSource(drawn=ShapesRows("eval", difficulty=difficulty))
    return DataSplit(
        train=Rows(train, range(count)),
        held_out=Rows(held_out, range(len(held_out))),
        report=DataReport(kept=count + len(held_out)),
        notes=("data: shapes drawn from a seed",),
    )
