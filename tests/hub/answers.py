"""What the stand-in hub says about what it serves, in the hub's own form."""

from __future__ import annotations

from tests.hub.repository import Repository, Snapshot, folder_as_json


class RefusalError(Exception):
    """An answer that is not a success, as the hub would word it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}


def information(kind: str, name: str, repository: Repository, snapshot: Snapshot, *, blobs: bool) -> dict[str, object]:
    """The answer to `/api/models/{name}`: the commit and the files, with their sizes where asked for."""
    siblings = []
    for entry in snapshot.entries.values():
        sibling: dict[str, object] = {"rfilename": entry.path}
        if blobs:
            sibling |= {"size": entry.size, "blobId": entry.blob_id}
            if entry.is_large:
                sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 130}
        siblings.append(sibling)
    return {
        "_id": snapshot.commit[:24],
        "id": name,
        "modelId" if kind == "models" else "datasetId": name,
        "sha": snapshot.commit,
        "private": repository.access == "private",
        "gated": "manual" if repository.access == "gated" else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
    }


def tree(snapshot: Snapshot, folder: str, *, recursive: bool) -> list[dict[str, object]]:
    """The files and folders below a folder of a snapshot, as `/tree/` lists them."""
    folder = folder.strip("/")
    inside = f"{folder}/" if folder else ""
    if folder and folder not in snapshot.folders():
        raise RefusalError(404, "EntryNotFound", f"{folder} does not exist")
    listed: list[dict[str, object]] = []
    for path in sorted(snapshot.folders()):
        if path.startswith(inside) and (recursive or "/" not in path[len(inside) :]):
            listed.append(folder_as_json(path))
    for path, entry in snapshot.entries.items():
        if path.startswith(inside) and (recursive or "/" not in path[len(inside) :]):
            listed.append(entry.as_json())
    return listed


def paths(snapshot: Snapshot, paths: list[str]) -> list[dict[str, object]]:
    """What `/paths-info/` says about the paths that exist; the others are left out."""
    folders = snapshot.folders()
    known = [path.strip("/") for path in paths]
    return [
        snapshot.entries[path].as_json() if path in snapshot.entries else folder_as_json(path)
        for path in known
        if path in snapshot.entries or path in folders
    ]


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open range a `Range` header asks for, or None for the whole file."""
    if header is None or not header.startswith("bytes="):
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    return start, end
