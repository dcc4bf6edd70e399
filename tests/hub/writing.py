"""What the stand-in hub does when it is written to: it creates repositories, takes files by git LFS, and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.hub.answers import RefusalError
from tests.hub.repository import LARGE_SUFFIXES, Repository, Snapshot

if TYPE_CHECKING:
    from tests.hub.server import HubServer


class Uploads:
    """Who may write under which names, what came so far, and the commits made of it.

    Attributes:
        writers: The owner that each token may write as; a token that is known but not here may only read.
        commits: The summary of each commit, by repository.
        fails: The number of requests of a kind (`commit`, `lfs`) that are answered with an error of the server first.
    """

    def __init__(self) -> None:
        self.writers: dict[str, str] = {}
        self.commits: dict[str, list[str]] = defaultdict(list)
        self.fails: dict[str, int] = {}
        self._large: dict[str, bytes] = {}
        self._folders = tempfile.TemporaryDirectory(prefix="vgpo-lite-uploads-")

    def allow(self, hub: HubServer, token: str, owner: str) -> None:
        """Let a token write as this owner."""
        hub.tokens.add(token)
        self.writers[token] = owner

    def answer(self, hub: HubServer, steps: list[str], body: bytes, token: str | None) -> object | None:
        """The answer to a request that writes; None where the request is of another kind."""
        match steps:
            case ["api", "validate-yaml"]:
                return _checked_card(json.loads(body)["content"])
            case ["api", "repos", "create"]:
                return self._created(hub, json.loads(body), token)
            case ["api", "models", owner, name, "preupload", "main"]:
                self._writable(hub, f"{owner}/{name}", token)
                files = [{"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                         for file in json.loads(body)["files"]]  # fmt: skip
                return {"files": files}
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self._writable(hub, f"{owner}/{name.removesuffix('.git')}", token)
                return {
                    "transfer": "basic",
                    "objects": [self._target(hub, each) for each in json.loads(body)["objects"]],
                }
            case ["lfs-upload", oid]:
                self._stumble("lfs")
                if hashlib.sha256(body).hexdigest() != oid:
                    raise RefusalError(400, "", "the content is not what its name says")
                self._large[oid] = body
                return {}
            case ["api", "models", owner, name, "commit", "main"]:
                self._stumble("commit")
                return self._committed(hub, f"{owner}/{name}", body, token)
        return None

    def _stumble(self, kind: str) -> None:
        if self.fails.get(kind, 0) > 0:
            self.fails[kind] -= 1
            raise RefusalError(500, "", "something went wrong here")

    def _created(self, hub: HubServer, wanted: dict[str, Any], token: str | None) -> object:
        if token is None or token not in hub.tokens:
            raise RefusalError(401, "", "Invalid username or password.")
        owner = wanted["organization"] or self.writers.get(token)
        if self.writers.get(token) != owner:
            raise RefusalError(403, "", f'You don\'t have the rights to create a model under the namespace "{owner}"')
        name = f"{owner}/{wanted['name']}"
        if ("models", name) in hub.repositories:
            raise RefusalError(409, "", "You already created this model repo")
        is_private = wanted.get("visibility") == "private" or wanted.get("private") is True
        folder = self._new_folder()
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        hub.repositories["models", name] = Repository(
            snapshots={"main": Snapshot(folder)},
            access="private" if is_private else "public",
            readers=frozenset({token}),
        )
        return {"url": f"{hub.endpoint}/{name}", "name": name}

    def _writable(self, hub: HubServer, name: str, token: str | None) -> Repository:
        repository = hub.repository("models", name, token, files=False)
        if self.writers.get(token or "") != name.split("/")[0]:
            raise RefusalError(403, "", "Authorization error.")
        return repository

    def _target(self, hub: HubServer, wanted: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{hub.endpoint}/lfs-upload/{wanted['oid']}", "header": {}}
        actions = {} if wanted["oid"] in self._large else {"actions": {"upload": upload}}
        return {"oid": wanted["oid"], "size": wanted["size"], **actions}

    def _committed(self, hub: HubServer, name: str, body: bytes, token: str | None) -> object:
        repository = self._writable(hub, name, token)
        files = {path: entry.source.read_bytes() for path, entry in repository.snapshots["main"].entries.items()}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commits[name].append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self._large[value["oid"]]
            else:
                del files[value["path"]]
        folder = self._new_folder()
        for path, content in files.items():
            (folder / path).write_bytes(content)
        snapshot = repository.snapshots["main"] = Snapshot(folder)
        return {"commitUrl": f"{hub.endpoint}/{name}/commit/{snapshot.commit}", "commitOid": snapshot.commit}

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folders.name))


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LARGE_SUFFIXES) else "regular"


def _checked_card(card: str) -> object:
    """What the hub says of a card: its front matter must be a YAML mapping."""
    matter = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else {}
    if not isinstance(matter, dict):
        raise RefusalError(400, "", "the metadata is no mapping")
    return {"errors": [], "warnings": []}
