"""Files that are complete or absent: written beside their place, synced, and renamed into it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from typing import TYPE_CHECKING

from vgpo_lite.errors import StorageError
from vgpo_lite.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LEFT_FOLDER = re.compile(r"\.(tmp|trash)-.+")
_LEFT_FILE = re.compile(r"\..+\.\d+\.tmp")


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn what the disk refuses into one message about `what`.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"{what} could not be written: {reason}. Free space or choose another --output.") from error


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write bytes and wait until they are on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Give `path` new content in one step: a reader sees the old bytes or the new ones.

    Raises:
        StorageError: The disk refuses.
    """
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            failpoint("file.before_write")
            write_synced(beside, data)
            failpoint("file.before_rename")
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_files(folder: Path) -> None:
    """Wait until every file of a folder, and the folder's own entries, are on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written or half-deleted in a folder; who calls it owns the folder."""
    for path in folder.glob(".*"):
        if _LEFT_FOLDER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif _LEFT_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def json_bytes(value: object) -> bytes:
    """A value as indented JSON with a final newline; nan and infinity are refused."""
    return (json.dumps(value, indent=2, allow_nan=False, sort_keys=False) + "\n").encode()


def discard_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen half-removed: renamed first, deleted then."""
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    folder.replace(trash)
    sync_folder(folder.parent)
    failpoint("folder.before_delete")
    shutil.rmtree(trash, ignore_errors=True)
