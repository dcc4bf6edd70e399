"""Rows as they are stored, read one cell at a time: memory-mapped Arrow tables and lists of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
from datasets import ClassLabel, Features, Video

if TYPE_CHECKING:
    from datasets import Dataset

    from vgpo_lite.datasets.columns import Folder


class Table(Protocol):
    """Rows of named columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        ...

    @property
    def video_columns(self) -> tuple[str, ...]:
        """Columns whose type says that they hold videos."""
        ...

    def __len__(self) -> int: ...

    def cell(self, row: int, column: str) -> object:
        """One value in plain Python; bytes may come as a buffer over the file, which is not copied."""
        ...


class ArrowTable:
    """A split as the `datasets` library keeps it: on disk, mapped into memory. Images are not decoded."""

    def __init__(self, dataset: Dataset) -> None:
        self._table: pa.Table = dataset.data.table
        self._features: Features = dataset.features
        self.columns = tuple(self._table.column_names)
        self.video_columns = tuple(name for name, kind in self._features.items() if isinstance(kind, Video))

    def __len__(self) -> int:
        return self._table.num_rows

    def cell(self, row: int, column: str) -> object:
        """One value; the index of a class comes as the name of the class."""
        value = _plain(self._table.column(column)[row])
        kind = self._features[column]
        if isinstance(kind, ClassLabel) and isinstance(value, int) and 0 <= value < len(kind.names):
            return kind.names[value]
        return value


class RecordTable:
    """Records read from JSON or CSV files; a record that lacks a column has None there."""

    video_columns: tuple[str, ...] = ()

    def __init__(self, records: Sequence[Mapping[str, object]]) -> None:
        self._records = records
        self.columns = tuple(dict.fromkeys(name for record in records for name in record))

    def __len__(self) -> int:
        return len(self._records)

    def cell(self, row: int, column: str) -> object:
        """One value."""
        return self._records[row].get(column)


@dataclass(frozen=True, kw_only=True)
class StoredSplit:
    """One split, opened.

    Attributes:
        table: Its rows.
        folder: Where the rows may name image files; None for tables whose rows hold their images.
        fingerprint: Names the content, equally on every machine: the commit and split, or a hash of the files.
    """

    table: Table
    folder: Folder | None
    fingerprint: str


def _plain(scalar: pa.Scalar) -> object:
    """A value in plain Python; text that is not UTF-8 counts as absent, and bytes stay where they are."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StringScalar):
        try:
            return scalar.as_py()
        except UnicodeDecodeError:
            return None
    if isinstance(scalar, pa.BinaryScalar):
        return scalar.as_buffer()
    if isinstance(scalar, pa.StructScalar):
        return {name: _plain(value) for name, value in scalar.items()}
    if isinstance(scalar, pa.ListScalar):
        values = scalar.values
        return [] if values is None else [_plain(value) for value in values]
    return scalar.as_py()
