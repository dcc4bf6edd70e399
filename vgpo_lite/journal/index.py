"""The index of a journal: which steps are kept, and which of them the limits leave room for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vgpo_lite.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vgpo_lite.config.sections import JournalConfig

FOLDER = "journal"
"""Where a run directory keeps its journal."""

INDEX = "index.jsonl"
"""The index, inside the journal."""

ADAPTERS = "adapters"
"""The folder of the adapters, inside the journal."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the index.

    Attributes:
        step: The optimizer step.
        sha256: Of the step's file.
        bytes: Size of the step's file.
        adapter: sha256 of the file of the adapter the step began with.
        adapter_bytes: Size of that file.
        groups: Groups the step trained on; 0: there is nothing to take anew.
        tokens: Completion tokens it trained on.
        loss: `policy/loss`; None where it was not finite, or there was none.
        grad_norm: `policy/grad_norm`; None where it was not finite.
    """

    step: int
    sha256: str
    bytes: int
    adapter: str
    adapter_bytes: int
    groups: int
    tokens: int
    loss: float | None
    grad_norm: float | None

    @property
    def file(self) -> str:
        """Name of the step's file."""
        return f"step-{self.step:06d}.safetensors"


def read_index(folder: Path) -> list[Entry]:
    """The steps a journal holds, oldest first; none where there is no journal.

    Raises:
        CheckpointError: The index is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        return []
    try:
        return [Entry(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def adapter_file(folder: Path, sha256: str) -> Path:
    """Where a journal keeps the adapter whose file has this hash, if it does."""
    return folder / ADAPTERS / f"{sha256}.safetensors"


def within(settings: JournalConfig, entries: list[Entry]) -> tuple[list[Entry], set[str]]:
    """The steps that the limits leave room for, and the adapters of as many of the newest of them as then fit."""
    kept = entries[-settings.steps :]
    while kept and _size(kept) > settings.max_bytes:
        kept = kept[1:]
    room, adapters = settings.max_bytes - _size(kept), set()
    for entry in reversed(kept):
        if entry.adapter in adapters or not entry.groups:
            continue
        if entry.adapter_bytes > room:
            break
        room -= entry.adapter_bytes
        adapters.add(entry.adapter)
    return kept, adapters


def _size(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries) + len(index_bytes(entries))


def index_bytes(entries: list[Entry]) -> bytes:
    """The index that names these steps."""
    return "".join(json.dumps(asdict(entry), allow_nan=False) + "\n" for entry in entries).encode()


def ranges(steps: Iterable[int]) -> str:
    """Steps in words, consecutive ones together.

    >>> ranges([1, 2, 3, 7, 9, 10])
    '1-3, 7, 9-10'
    """
    runs: list[list[int]] = []
    for step in sorted(steps):
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
