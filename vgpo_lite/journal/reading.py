"""What a journal holds, read back and compared with the hashes of its index."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from safetensors.torch import load as load_tensors

from vgpo_lite.checkpoint import checkpoint_adapter
from vgpo_lite.errors import CheckpointError, ConfigError
from vgpo_lite.journal.index import FOLDER, adapter_file, ranges, read_index
from vgpo_lite.journal.pages import page_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vgpo_lite.journal.index import Entry
    from vgpo_lite.journal.pages import Page


def kept_steps(run: Path) -> list[tuple[Entry, str | None]]:
    """The steps that the journal of a run holds, each with why it cannot be replayed; None: it can.

    Raises:
        CheckpointError: There is no journal, or its index is damaged.
    """
    entries = read_index(run / FOLDER)
    if not entries:
        raise CheckpointError(
            f"{run} holds no journal of its steps: it is no run directory, or ran with journal.steps=0 or "
            "journal.max_bytes=0."
        )
    return [(entry, _hindrance(run, entry)) for entry in entries]


def _hindrance(run: Path, entry: Entry) -> str | None:
    if not entry.groups:
        return "no: it trained on nothing"
    return None if adapter_place(run, entry) else "no: its adapter is not kept any more"


def read_page(run: Path, step: int) -> Page:
    """The recorded step of a run.

    Raises:
        ConfigError: The journal does not hold the step; the message names those it holds.
        CheckpointError: There is no journal, or the step's file is damaged.
    """
    entries = {entry.step: entry for entry, _ in kept_steps(run)}
    if step not in entries:
        raise ConfigError(f"the journal of {run} does not hold step {step}; it holds {ranges(entries)}.")
    entry = entries[step]
    path = run / FOLDER / entry.file
    return page_of(path, _verified(path, entry.sha256, f"the journal of step {step}"), entry)


def read_adapter(run: Path, entry: Entry) -> dict[str, Tensor]:
    """The adapter that a step began with: the journal's, or that of a checkpoint with the same weights.

    Raises:
        CheckpointError: It is not kept any more, or its file is not what it was.
    """
    path = adapter_place(run, entry)
    if path is None:
        able = [other.step for other, hindrance in kept_steps(run) if hindrance is None]
        raise CheckpointError(
            f"the adapter that step {entry.step} began with is not kept any more; the steps whose adapter is: "
            f"{ranges(able) or 'none'}. A larger journal.max_bytes keeps more."
        )
    return load_tensors(_verified(path, entry.adapter, f"the adapter of step {entry.step}"))


def adapter_place(run: Path, entry: Entry) -> Path | None:
    """Where the adapter that a step began with is kept; None: nowhere any more."""
    own = adapter_file(run / FOLDER, entry.adapter)
    return own if own.is_file() else checkpoint_adapter(run / "checkpoints", entry.adapter)


def _verified(path: Path, sha256: str, what: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{what} cannot be read: {path}: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{what} is damaged: {path} has sha256 {found[:16]}, recorded was {sha256[:16]}")
    return data
