"""A stand-in for the model and data set hub on the loopback address, for tests that download for real.

It speaks the part of the hub's interface that `huggingface_hub`, `transformers` and `datasets` use to read: repository
information, file trees, and files by revision with their hashes, sizes and byte ranges. Uploads by git LFS are in
`writing.py`. Refusals look like the hub's:
repositories that are missing, private or gated, revisions and files that do not exist, tokens that are not known.

    with HubServer() as hub:
        hub.publish("datasets", "hiyouga/geometry3k", folder)
        subprocess.run(command, env=os.environ | hub.environment(home))
"""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.answers import RefusalError, byte_range, information, paths, tree
from tests.hub.repository import Repository, Snapshot
from tests.hub.writing import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["models", "datasets"]


class HubServer:
    """The stand-in hub. Starts when entered, stops when left; `requests` holds what was asked, as `METHOD /path`."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        self.downloads: list[str] = []
        self.tokens: set[str] = set()
        self.uploads = Uploads()
        self._down: tuple[int | None] | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def start(self) -> HubServer:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: str | Path) -> dict[str, str]:
        """Variables that send a process here, with its caches under `home`. They must be set before it imports."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    @contextmanager
    def unreachable(self, *, status: int | None = None) -> Iterator[None]:
        """While the body runs, answer everything with this status, or cut every connection without a word."""
        self._down = (status,)
        try:
            yield
        finally:
            self._down = None

    def publish(self, kind: Kind, name: str, folder: str | Path, *, revision: str = "main") -> str:
        """Serve a folder under a name and a branch or tag; returns the commit it got, made from the content."""
        snapshot = Snapshot(Path(folder))
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.snapshots[revision] = snapshot
        return snapshot.commit

    def restrict(self, kind: Kind, name: str, access: Literal["gated", "private"], readers: tuple[str, ...]) -> None:
        """Let only these tokens read the files (gated), or see the repository at all (private)."""
        repository = self.repositories[kind, name]
        repository.access = access
        repository.readers = frozenset(readers)
        self.tokens.update(readers)

    def repository(self, kind: str, name: str, token: str | None, *, files: bool) -> Repository:
        """The repository, if this token may see it (and its files); raises the hub's refusal otherwise."""
        if token is not None and token not in self.tokens:
            raise RefusalError(401, "", "Invalid credentials in Authorization header")
        repository = self.repositories.get((kind, name))
        if repository is None or (repository.access == "private" and token not in repository.readers):
            if token is None:
                raise RefusalError(401, "RepoNotFound", "Invalid username or password.")
            raise RefusalError(404, "RepoNotFound", "Repository not found")
        if files and repository.access == "gated" and token not in repository.readers:
            status = 401 if token is None else 403
            raise RefusalError(status, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted.")
        return repository


def _handler_for(hub: HubServer) -> type[BaseHTTPRequestHandler]:  # noqa: C901  (one class, closed over its hub)
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name is the base class's)
            hub.requests.append(f"{self.command} {self.path}")

        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self._body())

        def do_PUT(self) -> None:
            self._answer(self._body())

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, body: bytes) -> None:
            if hub._down == (None,):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            try:
                if hub._down is not None:
                    raise RefusalError(hub._down[0] or 500, "", "the stand-in hub is down")
                self._route(body)
            except RefusalError as refusal:
                self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), refusal.headers)

        @property
        def _token(self) -> str | None:
            return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

        def _route(self, body: bytes) -> None:
            parts = urlsplit(self.path)
            steps = [unquote(step) for step in parts.path.strip("/").split("/")]
            query = parse_qs(parts.query)
            if self.command in ("POST", "PUT"):
                written = hub.uploads.answer(hub, steps, body, self._token)
                if written is not None:
                    self._send(200, json.dumps(written).encode(), {"Content-Type": "application/json"})
                    return
            match steps:
                case ["api", ("models" | "datasets") as kind, owner, name, *rest]:
                    self._api(kind, f"{owner}/{name}", rest, query, body)
                case ["datasets", owner, name, "resolve", revision, *path]:
                    self._file("datasets", f"{owner}/{name}", revision, "/".join(path))
                case [owner, name, "resolve", revision, *path]:
                    self._file("models", f"{owner}/{name}", revision, "/".join(path))
                case _:
                    raise RefusalError(404, "", f"nothing is served at {parts.path}")

        def _api(self, kind: str, name: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
            repository = hub.repository(kind, name, self._token, files=False)
            match rest:
                case []:
                    snapshot = self._snapshot(repository, "main")
                    answer: object = information(kind, name, repository, snapshot, blobs="blobs" in query)
                case ["revision", revision]:
                    snapshot = self._snapshot(repository, revision)
                    answer = information(kind, name, repository, snapshot, blobs="blobs" in query)
                case ["tree", revision, *path]:
                    recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                    answer = tree(self._snapshot(repository, revision), "/".join(path), recursive=recursive)
                case ["paths-info", revision]:
                    answer = paths(self._snapshot(repository, revision), self._form_paths(body))
                case ["refs"]:
                    branches = [
                        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": snapshot.commit}
                        for name, snapshot in repository.snapshots.items()
                    ]
                    answer = {"branches": branches, "converts": [], "tags": []}
                case _:
                    raise RefusalError(404, "", f"the stand-in hub has no {'/'.join(rest)}")
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def _form_paths(self, body: bytes) -> list[str]:
            if self.headers.get("Content-Type", "").startswith("application/json"):
                return json.loads(body)["paths"]
            return parse_qs(body.decode()).get("paths", [])

        @staticmethod
        def _snapshot(repository: Repository, revision: str) -> Snapshot:
            snapshot = repository.at(revision)
            if snapshot is None:
                raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return snapshot

        def _file(self, kind: str, name: str, revision: str, path: str) -> None:
            repository = hub.repository(kind, name, self._token, files=True)
            snapshot = self._snapshot(repository, revision)
            entry = snapshot.entries.get(path)
            if entry is None:
                raise RefusalError(404, "EntryNotFound", f"{path} does not exist")
            headers = {
                "ETag": f'"{entry.etag}"',
                "X-Repo-Commit": snapshot.commit,
                "X-Linked-Size": str(entry.size),
                "X-Linked-ETag": f'"{entry.etag}"',
                "Accept-Ranges": "bytes",
                "Content-Type": "application/octet-stream",
            }
            content = entry.source.read_bytes()
            wanted = byte_range(self.headers.get("Range"), entry.size)
            if self.command == "GET":
                hub.downloads.append(f"{name}/{path}")
            if wanted is None:
                self._send(200, content, headers)
            else:
                start, end = wanted
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
                self._send(206, content[start:end], headers)

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
