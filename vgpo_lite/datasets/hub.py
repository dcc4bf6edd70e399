"""Data sets on the hub: resolved to a commit, downloaded once, opened from the cache when the hub is out of reach."""

from __future__ import annotations

import errno
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from datasets import Dataset, get_dataset_config_names, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vgpo_lite.config.problems import nearest
from vgpo_lite.config.recipes import recipe_names
from vgpo_lite.datasets.local import open_local_split
from vgpo_lite.datasets.tables import ArrowTable, StoredSplit
from vgpo_lite.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import DatasetBuilder

    from vgpo_lite.config.schema import DataConfig

_PAGE = "https://huggingface.co/datasets"
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_TIMEOUT_SECONDS = 30.0


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
        unreached = "" if self.online else "; the hub is out of reach, this is what the cache holds"
        return f"{self.repository} at commit {self.commit}{unreached}"

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
            if isinstance(self.builder, ImageFolder):
                folder = Path(snapshot_download(self.repository, repo_type="dataset", revision=self.commit))
                return open_local_split(folder, split, key=key, boundary=folder.parents[1])
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


def open_hub(repository: str, data: DataConfig) -> HubData:
    """Find a data set on the hub, or in the cache where the hub is out of reach.

    Args:
        repository: Its id.
        data: `revision` and `subset` are read.

    Raises:
        ConfigError: There is no such revision or subset.
        DataError: The data set is missing, private, gated, needs code of its own, or is neither reached nor cached.
    """
    commit = _commit(repository, data.revision)
    with _failures_in_words(repository):
        try:
            builder = load_dataset_builder(repository, data.subset, revision=commit or data.revision)
        except ValueError as error:
            raise _subset_error(repository, data.subset, commit, error) from error
    cached = str(builder.hash)
    pinned = data.revision is not None and len(data.revision) == 40 and data.revision != cached
    if commit is None and pinned:
        raise DataError(f"the hub is out of reach, and the cache holds {repository} at {cached}, not {data.revision}")
    splits = builder.info.splits or builder.config.data_files or {}
    return HubData(
        repository=repository,
        commit=commit or cached,
        online=commit is not None,
        splits=tuple(str(name) for name in splits),
        builder=builder,
    )


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


def _subset_error(repository: str, subset: str | None, commit: str | None, error: ValueError) -> Exception:
    names = get_dataset_config_names(repository, revision=commit) if commit else []
    if names and subset not in names:
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
        raise DataError(f"{repository} brings code of its own, which is never run: {error}") from error
    except (DatasetsError, OSError) as error:
        cause = error.__cause__ or error
        full = isinstance(cause, OSError) and cause.errno == errno.ENOSPC
        if full or "Not enough disk space" in str(error):
            raise StorageError(f"the disk is too full for {repository}: {cause}") from error
        raise DataError(f"{repository} cannot be read: {cause}") from error
