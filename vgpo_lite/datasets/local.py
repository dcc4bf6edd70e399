"""Data sets on this machine: parquet files, JSON lines, and folders of images with a metadata file."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from vgpo_lite.config.problems import nearest
from vgpo_lite.datasets.columns import Folder
from vgpo_lite.datasets.tables import ArrowTable, RecordTable, StoredSplit
from vgpo_lite.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vgpo_lite.datasets.tables import Table

METADATA = ("metadata.jsonl", "metadata.csv")
"""Files that make a folder an image folder, as the `datasets` library has them."""
PARQUET, JSON, CSV = (".parquet",), (".jsonl", ".ndjson", ".json"), (".csv",)

_PARQUET_TAIL_BYTES = 8  # parquet format: a file ends in the length of its footer, 4 bytes, and PAR1
_SHARD = re.compile(r"[-_.]\d{1,5}([-_]of[-_]\d{1,5})?$")


@dataclass(frozen=True, kw_only=True)
class LocalData:
    """Files on this machine.

    Attributes:
        path: One file, or the folder that holds them.
        provenance: Where they are, in words.
        boundary: Image files may lie anywhere in it; None: only beside the file that names them.
        commit: Of the hub they were fetched from; None for files that come from no hub.
    """

    path: Path
    provenance: str
    boundary: Path | None
    commit: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits there are."""
        return tuple(split_files(self.path))

    def open_split(self, split: str, *, key: str) -> StoredSplit:
        """Open one split.

        Args:
            split: Its name. A file answers to any name that `data.split` gives it.
            key: The setting that named it, for messages.

        Raises:
            ConfigError: There is no such split.
            DataError: A file cannot be read.
        """
        splits = split_files(self.path)
        if split not in splits and not (self.path.is_file() and key == "data.split"):
            near = nearest(split, splits)
            hint = f" Did you mean {near}?" if near else ""
            raise ConfigError(f"{key} is {split}; {self.path} has {', '.join(splits)}.{hint}")
        return _opened(splits.get(split, (self.path,)), self.boundary)


def split_files(path: Path) -> Mapping[str, tuple[Path, ...]]:
    """The files of each split of a local data set.

    A file is one split, `train`. So is a folder with a metadata file; subfolders with one are splits by their names.
    Other files are grouped by name: `test-00000-of-00002.parquet` belongs to `test`; a single group is `train`.

    Raises:
        DataError: There is nothing that can be read.
    """
    if path.is_file():
        return {"train": (path,)}
    metadata = _metadata_of(path)
    if metadata is not None:
        return {"train": (metadata,)}
    folders = [folder for part in (path, path / "data") for folder in sorted(part.glob("*/"))]
    image_folders = {folder.name: (file,) for folder in folders if (file := _metadata_of(folder)) is not None}
    if image_folders:
        return image_folders
    groups: dict[str, list[Path]] = {}
    for folder in (path, path / "data"):
        for file in sorted(folder.glob("*")):
            if file.suffix in PARQUET + JSON and file.is_file() and not file.name.startswith("."):
                groups.setdefault(_SHARD.sub("", file.stem), []).append(file)
    if not groups:
        raise DataError(_nothing_found(path))
    if len(groups) == 1:
        return {"train": tuple(next(iter(groups.values())))}
    return {name: tuple(files) for name, files in groups.items()}


def _metadata_of(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _nothing_found(path: Path) -> str:
    if any(path.glob("*.arrow")) or (path / "dataset_dict.json").is_file():
        return f"{path} was written by save_to_disk; write parquet instead: dataset.to_parquet('train.parquet')"
    names = sorted(file.name for file in path.glob("*"))
    held = f"it holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it is empty"
    return f"{path}: expected .parquet, .jsonl, or images with a metadata.jsonl or metadata.csv; {held}"


def _opened(files: Sequence[Path], boundary: Path | None) -> StoredSplit:
    suffixes = {file.suffix for file in files}
    if suffixes <= set(PARQUET):
        table = _parquet(files)
        return StoredSplit(table=table, folder=None, fingerprint=_content_hash(files))
    if not suffixes <= set(JSON + CSV):
        raise DataError(f"{files[0]}: expected .parquet, .jsonl, or a folder; mixed formats are not read")
    records = [record for file in files for record in _records(file)]
    if not records:
        raise DataError(f"{', '.join(map(str, files))}: no rows")
    folder = Folder(path=files[0].parent, boundary=boundary or files[0].parent)
    return StoredSplit(table=RecordTable(records), folder=folder, fingerprint=_content_hash(files))


def _parquet(files: Sequence[Path]) -> Table:
    """Rows mapped into memory from the `datasets` library's cache, which takes as much disk again as the files."""
    try:
        dataset = load_dataset("parquet", data_files=[glob.escape(str(file)) for file in files], split="train")
    except (DatasetGenerationError, OSError, ValueError, KeyError) as error:
        cause = error.__cause__ or error
        raise DataError(f"{files[0]} cannot be read as parquet: {cause}") from error
    if not isinstance(dataset, Dataset):
        raise DataError(f"{files[0]} is no plain table")
    return ArrowTable(dataset)


def _records(file: Path) -> list[dict[str, object]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start:,}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    if file.suffix in CSV:
        return _csv_records(file, text)
    if text.lstrip().startswith("["):
        return _checked_records(_parsed(text, str(file)), lambda place: f"{file}, entry {place}")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    values = [_parsed(line, f"{file}:{number}") for number, line in lines]
    return _checked_records(values, lambda place: f"{file}:{lines[place][0]}")


def _parsed(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is no JSON: {error}; expected one object per line") from error


def _checked_records(values: object, place: Callable[[int], str]) -> list[dict[str, object]]:
    records = []
    for index, value in enumerate(values if isinstance(values, list) else [values]):
        if not isinstance(value, dict):
            raise DataError(f"{place(index)} holds a {type(value).__name__}, expected an object with columns")
        records.append(value)
    return records


def _csv_records(file: Path, text: str) -> list[dict[str, object]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        return [{name: value for name, value in row.items() if name is not None} for row in reader]
    except csv.Error as error:
        raise DataError(f"{file} is no CSV: {error}") from error


def _content_hash(files: Sequence[Path]) -> str:
    """Hash of the bytes of small tables; of parquet its footer, which lists the size and statistics of every chunk."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            if file.suffix in PARQUET:
                stream.seek(-_PARQUET_TAIL_BYTES, os.SEEK_END)
                footer = int.from_bytes(stream.read(4), "little") + _PARQUET_TAIL_BYTES
                stream.seek(-footer, os.SEEK_END)
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
