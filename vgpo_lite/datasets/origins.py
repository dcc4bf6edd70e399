"""What the name of a data set stands for: a folder or file, a repository on the hub, or the shapes drawn here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vgpo_lite.config.problems import nearest
from vgpo_lite.datasets.hub import open_hub
from vgpo_lite.datasets.local import CSV, JSON, PARQUET, LocalData
from vgpo_lite.errors import DataError

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.datasets.tables import StoredSplit


class Origin(Protocol):
    """Where stored rows come from."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits there are."""
        ...

    @property
    def provenance(self) -> str:
        """Where it was found, and at which state."""
        ...

    @property
    def commit(self) -> str | None:
        """The commit on the hub; None for files that come from no hub."""
        ...

    def open_split(self, split: str, *, key: str) -> StoredSplit:
        """Open one split; `key` is the setting that named it."""
        ...


def find_origin(config: RunConfig) -> Origin:
    """What `data.id`, or else `dataset`, stands for: what lies under that path, or else a repository on the hub.

    Raises:
        ConfigError: There is no such revision or subset.
        DataError: There is no such file, or the hub's data set cannot be had.
    """
    name = config.data.id or config.dataset
    path = Path(name).expanduser()
    if path.exists():
        return LocalData(path=path, provenance=str(path), boundary=None)
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or path.suffix in PARQUET + JSON + CSV:
        beside = [str(other) for other in path.parent.glob("*")] if path.parent.is_dir() else []
        near = nearest(str(path), beside)
        hint = f" Did you mean {near}?" if near else ""
        raise DataError(f"there is no file or folder {name}.{hint}")
    return open_hub(name, config.data)


def short_name(config: RunConfig) -> str:
    """What rows are called by: the preset's name, the repository's id, or the name of the file or folder."""
    path = Path(config.dataset).expanduser()
    return path.stem if path.is_file() else path.resolve().name if path.is_dir() else config.dataset
