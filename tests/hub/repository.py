"""What the stand-in hub serves: folders as commits, their files with the hashes the hub would name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

LARGE_SUFFIXES = (".safetensors", ".parquet", ".bin", ".png", ".jpg", ".zip")  # the hub keeps these outside git


@dataclass(frozen=True)
class Entry:
    """One file of a published folder, with the hashes the hub would name."""

    path: str
    source: Path
    size: int
    sha256: str
    blob_id: str

    @property
    def is_large(self) -> bool:
        return self.path.endswith(LARGE_SUFFIXES)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.blob_id

    def as_json(self) -> dict[str, object]:
        answer: dict[str, object] = {"type": "file", "path": self.path, "size": self.size, "oid": self.blob_id}
        if self.is_large:
            answer["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return answer


def folder_as_json(path: str) -> dict[str, object]:
    """A folder as the hub lists it."""
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha256(path.encode()).hexdigest()[:40]}


@dataclass(frozen=True)
class Snapshot:
    """A folder as it is published under one commit."""

    folder: Path

    @cached_property
    def entries(self) -> dict[str, Entry]:
        found = {}
        for source in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            content = source.read_bytes()
            path = source.relative_to(self.folder).as_posix()
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
            found[path] = Entry(path, source, len(content), hashlib.sha256(content).hexdigest(), blob)
        return found

    @cached_property
    def commit(self) -> str:
        listing = "\n".join(f"{entry.path} {entry.blob_id}" for entry in self.entries.values())
        return hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()

    def folders(self) -> set[str]:
        parents = {parent.as_posix() for path in self.entries for parent in PurePosixPath(path).parents}
        return parents - {"."}


@dataclass
class Repository:
    """What is published under one name: snapshots by branch or tag, and who may read them."""

    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    access: Literal["public", "gated", "private"] = "public"
    readers: frozenset[str] = frozenset()

    def at(self, revision: str) -> Snapshot | None:
        by_commit = {snapshot.commit: snapshot for snapshot in self.snapshots.values()}
        return self.snapshots.get(revision) or by_commit.get(revision)
