"""Data sets on the hub: resolved to a commit, downloaded once, opened from the cache when the hub is out of reach."""

from __future__ import annotations

import errno
import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from datasets import Dataset, get_dataset_config_names, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.packaged_modules.cache.cache import Cache
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vgpo_lite.config.problems import nearest
from vgpo_lite.config.recipes import recipe_names
from vgpo_lite.datasets.local import LocalData
from vgpo_lite.datasets.tables import ArrowTable, StoredSplit
from vgpo_lite.errors import ConfigError, DataError, StorageError, VgpoLiteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import DatasetBuilder

    from vgpo_lite.config.schema import DataConfig

_PAGE = "https://huggingface.co/datasets"
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_UNREACHED = "; the hub is out of reach, this is what the cache holds"
_TIMEOUT_SECONDS = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class HubData:
    """A data set of the hub at one commit.

    Attributes:
        repository: Its id.
        commit: Hash of the commit; what the cache holds, where the hub was out of reach.
        online: Whether the hub answered.
        splits: The splits it has.
        builder: The `datasets` library's reader, not yet downloaded.
    """

    repository: str
    commit: str
    online: bool
    splits: tuple[str, ...]
    builder: DatasetBuilder

    @property
    def provenance(self) -> str:
        """Repository and commit."""
        return f"{self.repository} at commit {self.commit}{'' if self.online else _UNREACHED}"

    def open_split(self, split: str, *, key: str) -> StoredSplit:
        """Download what is missing and open one split.

        Args:
            split: Name of the split.
            key: The setting that named it, for messages.

        Raises:
            ConfigError: There is no such split.
            DataError: The files cannot be had or read.
            StorageError: The disk is full.
        """
        with _failures_in_words(self.repository):
            if split not in self.splits:
                near = nearest(split, self.splits)
                hint = f" Did you mean {near}?" if near else ""
                raise ConfigError(f"{key} is {split}; {self.repository} has {', '.join(self.splits)}.{hint}")
            self.builder.download_and_prepare()
            dataset = self.builder.as_dataset(split=split)
        if not isinstance(dataset, Dataset):
            raise DataError(f"{self.repository}, split {split}, is no plain table")
        name = f"{self.repository}@{self.commit}/{self.builder.config.name}/{split}"
        return StoredSplit(
            table=ArrowTable(dataset), folder=None, fingerprint=hashlib.sha256(name.encode()).hexdigest()
        )


def open_hub(repository: str, data: DataConfig) -> HubData | LocalData:
    """Find a data set on the hub, or in the cache where the hub is out of reach.

    Args:
        repository: Its id.
        data: `revision` and `subset` are read.

    Raises:
        ConfigError: There is no such revision or subset.
        DataError: The data set is missing, private, gated, needs code of its own, or is neither reached nor cached.
    """
    commit = _commit(repository, data.revision)
    if commit is None:
        kept = _kept_folder(repository, data.revision)
        return kept or _hub_data(repository, _cached_builder(repository, data), commit)
    with _failures_in_words(repository):
        try:
            builder = load_dataset_builder(repository, data.subset, revision=commit)
        except ValueError as error:
            raise _subset_error(repository, data.subset, commit, error) from error
        if isinstance(builder, ImageFolder):
            snapshot = snapshot_download(repository, repo_type="dataset", revision=data.revision)
            return _hub_folder(repository, snapshot)
    return _hub_data(repository, builder, commit)


def _hub_data(repository: str, builder: DatasetBuilder, commit: str | None) -> HubData:
    splits = builder.info.splits or builder.config.data_files or {}
    return HubData(
        repository=repository,
        commit=commit or str(builder.hash),
        online=commit is not None,
        splits=tuple(str(name) for name in splits),
        builder=builder,
    )


def _hub_folder(repository: str, snapshot: str, unreached: str = "") -> LocalData:
    """A repository of image files, whose rows name them: read as the folder it is, links into the cache included."""
    folder = Path(snapshot)
    provenance = f"{repository} at commit {folder.name}{unreached}"
    return LocalData(path=folder, provenance=provenance, boundary=folder.parents[1], commit=folder.name)


def _kept_folder(repository: str, revision: str | None) -> LocalData | None:
    """A repository of image files that an earlier run has downloaded."""
    try:
        snapshot = snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
        if not any(Path(snapshot).rglob("metadata.*")):
            return None
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return _hub_folder(repository, snapshot, _UNREACHED)


def _cached_builder(repository: str, data: DataConfig) -> DatasetBuilder:
    """What an earlier run left in the cache, without asking the hub again: at the pinned commit, or the newest."""
    name = repository.rpartition("/")[2]
    try:
        newest = Cache(dataset_name=name, repo_id=repository, config_name=data.subset, version="auto", hash="auto")
    except ValueError as error:
        raise DataError(
            f"the hub is out of reach, and {_with_subset(repository, data)} is not in the cache; "
            "open it once while connected"
        ) from error
    if data.revision is None or not _COMMIT.fullmatch(data.revision) or data.revision == newest.hash:
        return newest
    folder = Path(newest.cache_dir).parent
    if not (folder / data.revision).is_dir():
        held = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise DataError(f"the hub is out of reach, and the cache holds {repository} at {held}, not {data.revision}")
    return Cache(
        dataset_name=name,
        repo_id=repository,
        config_name=newest.config.name,
        version=folder.name,
        hash=data.revision,
    )


def _with_subset(repository: str, data: DataConfig) -> str:
    return repository if data.subset is None else f"{repository}, subset {data.subset},"


def _commit(repository: str, revision: str | None) -> str | None:
    """The commit that a revision stands for now; None where the hub is out of reach."""
    try:
        return HfApi().dataset_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS).sha
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"data.revision is {revision}, which {repository} does not have; see {_PAGE}/{repository}"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(_missing(repository)) from error
    except (OfflineModeIsEnabled, httpx.TransportError):
        return None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise DataError(f"the hub refuses {repository}: {error}; {_LOGIN}") from error
        return None


def _missing(repository: str) -> str:
    presets = recipe_names("datasets")
    near = nearest(repository, presets) or nearest(repository.rpartition("/")[2], presets)
    hint = f"Did you mean {near}?" if near else f"Presets: {', '.join(presets)}."
    return (
        f"{repository} is no file here, and no data set on the hub that you may read; were it private, {_LOGIN}. {hint}"
    )


def _subset_error(repository: str, subset: str | None, commit: str, error: ValueError) -> VgpoLiteError:
    names = get_dataset_config_names(repository, revision=commit)
    if subset not in names:
        near = nearest(subset, names) if subset else None
        hint = f" Did you mean {near}?" if near else " Name one of them."
        return ConfigError(f"data.subset is {subset or 'not set'}; {repository} has {', '.join(names)}.{hint}")
    return DataError(f"{repository} cannot be opened: {error}")


@contextmanager
def _failures_in_words(repository: str) -> Iterator[None]:
    """What fails below in the words of this project."""
    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise DataError(
                f"{repository} is gated: accept its terms at {_PAGE}/{repository}, then {_LOGIN}"
            ) from error
        raise DataError(_missing(repository)) from error
    except (OfflineModeIsEnabled, httpx.TransportError, ConnectionError) as error:
        raise DataError(f"{repository} is not in the cache, and the hub is out of reach: {error}") from error
    except RuntimeError as error:
        code = "brings code of its own, which is never run" if "scripts" in str(error) else "cannot be read"
        raise DataError(f"{repository} {code}: {error}") from error
    except (DatasetsError, OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
        cause = error.__cause__ or error
        full = isinstance(cause, OSError) and cause.errno == errno.ENOSPC
        if full or "Not enough disk space" in str(error):
            raise StorageError(f"the disk is too full for {repository}: {cause}") from error
        raise DataError(f"{repository} cannot be read: {cause}") from error
