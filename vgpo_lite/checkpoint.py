"""Checkpoints that are complete or invisible, and never the last one lost.

A checkpoint is written into a temporary folder, every file synced, with a manifest of sizes and sha256, and renamed
into place; the folder above is synced. What a kill leaves behind is swept when the run starts again. Safetensors and
JSON only.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes

from vgpo_lite.errors import CheckpointError
from vgpo_lite.failpoints import failpoint
from vgpo_lite.storage import discard_folder, json_bytes, storage_errors, sync_folder, write_synced

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_MANIFEST = "manifest.json"
_ADAPTER = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: Optimizer steps done.
        progress: Counters and states that are numbers and text (cursor, loss scale, identity of model and data).
        adapter: Adapter weights by name.
        optimizer: `state_dict()` of the optimizer.
        generators: States of the process-wide random generators, as torch gives them.
        pending: Tensors of the rollouts still to be trained on, inside a window of several updates; else empty.
    """

    step: int
    progress: Mapping[str, Any]
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    generators: Mapping[str, Tensor]
    pending: Mapping[str, Tensor] = field(default_factory=dict)


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies below a run's `checkpoints/`."""
    return root / f"step-{step:06d}"


def save_checkpoint(root: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint below `root` and let the oldest beyond `keep` go.

    Raises:
        StorageError: The disk refuses; older checkpoints are untouched.
    """
    final = checkpoint_folder(root, checkpoint.step)
    with storage_errors(f"The checkpoint of step {checkpoint.step}"):
        root.mkdir(parents=True, exist_ok=True)
        beside = root / f".tmp-{final.name}-{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            failpoint("checkpoint.before_files")
            _write_files(beside, checkpoint)
            failpoint("checkpoint.before_rename")
            if final.exists():
                discard_folder(final)
            beside.replace(final)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync_folder(root)
        failpoint("checkpoint.after_rename")
        for old in checkpoints(root)[:-keep]:
            discard_folder(old)
    return final


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    optimizer_tensors, optimizer_numbers = _split_optimizer(checkpoint.optimizer)
    files = {
        _ADAPTER: state_bytes(checkpoint.adapter),
        "optimizer.safetensors": state_bytes(optimizer_tensors),
        "optimizer.json": json_bytes(optimizer_numbers),
        "generators.safetensors": state_bytes(checkpoint.generators),
        "pending.safetensors": state_bytes(checkpoint.pending),
        "progress.json": json_bytes({"step": checkpoint.step, **checkpoint.progress}),
    }
    for name, data in files.items():
        write_synced(folder / name, data)
        failpoint("checkpoint.between_files")
    manifest = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    failpoint("checkpoint.before_manifest")
    write_synced(folder / _MANIFEST, json_bytes({"format": 1, "files": manifest}))
    sync_folder(folder)


def state_bytes(tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> bytes:
    """Tensors as a safetensors file: the same tensors always give the same bytes."""
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return tensor_bytes(apart, metadata=metadata)


def checkpoints(root: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest first."""
    return sorted(folder for folder in root.glob("step-*") if (folder / _MANIFEST).is_file())


def checkpoint_adapter(root: Path, sha256: str) -> Path | None:
    """The file of a checkpoint's adapter whose bytes have this hash by its manifest; None: no checkpoint has it."""
    for folder in reversed(checkpoints(root)):
        try:
            found = json.loads((folder / _MANIFEST).read_bytes())["files"][_ADAPTER]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):  # a damaged one, which resuming will name
            continue
        if found == sha256:
            return folder / _ADAPTER
    return None


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is what its manifest says; reads them piece by piece."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())["files"]
        return all(_sha256(folder / name) == entry["sha256"] for name, entry in manifest.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_checkpoint(root: Path) -> tuple[Checkpoint, tuple[str, ...]]:
    """The newest whole checkpoint, and a note for each newer one that is damaged.

    Raises:
        CheckpointError: There is none, or none is whole: a run never silently starts over.
    """
    notes: list[str] = []
    for folder in reversed(checkpoints(root)):
        try:
            return load_checkpoint(folder), tuple(notes)
        except CheckpointError as error:
            notes.append(str(error))
    found = "; ".join(notes) if notes else "the folder holds no complete checkpoint"
    raise CheckpointError(f"{root}: cannot resume: {found}. Start afresh with another --output.")


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with its manifest.

    Raises:
        CheckpointError: A file is missing, changed or unreadable; the message names it.
    """
    files = _verified_files(folder)
    progress = json.loads(files["progress.json"])
    return Checkpoint(
        step=progress.pop("step"),
        progress=progress,
        adapter=load_tensors(files[_ADAPTER]),
        optimizer=_join_optimizer(load_tensors(files["optimizer.safetensors"]), json.loads(files["optimizer.json"])),
        generators=load_tensors(files["generators.safetensors"]),
        pending=load_tensors(files["pending.safetensors"]),
    )


def _verified_files(folder: Path) -> dict[str, bytes]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())["files"]
        files = {name: (folder / name).read_bytes() for name in manifest}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder.name} is damaged: {error}") from error
    for name, data in files.items():
        if len(data) != manifest[name]["bytes"] or hashlib.sha256(data).hexdigest() != manifest[name]["sha256"]:
            raise CheckpointError(f"checkpoint {folder.name} is damaged: {name} does not match its manifest")
    return files


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as flat tensors `index/name` and the JSON that remains.

    A state may hold tables of its own, as that of bitsandbytes' 8-bit optimizers does: `index/table/name`.
    """
    tensors: dict[str, Tensor] = {}
    numbers = {str(index): _split(entries, f"{index}/", tensors) for index, entries in state["state"].items()}
    return tensors, {"state": numbers, "param_groups": state["param_groups"]}


def _split(entries: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, torch.Tensor):
            tensors[prefix + name] = value
        else:
            numbers[name] = _split(value, f"{prefix}{name}/", tensors) if isinstance(value, dict) else value
    return numbers


def _join_optimizer(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = numbers["state"]
    for key, tensor in tensors.items():
        *tables, name = key.split("/")
        place = state
        for table in tables:
            place = place[table]
        place[name] = tensor
    return {"state": {int(index): entries for index, entries in state.items()}, "param_groups": numbers["param_groups"]}


def generator_states() -> dict[str, Tensor]:
    """States of the process-wide generators that a reward function or a library may draw from.

    Words are int64; beside them stands, where there is one, the second half of the last normal pair that was drawn.
    """
    _, words, gauss = random.getstate()
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # pyright: ignore[reportAssignmentType]
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]], dtype=torch.int64),
        "numpy_gauss": torch.tensor([numpy_state["has_gauss"], numpy_state["gauss"]], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Put the process-wide generators back to where `generator_states` found them."""
    torch.set_rng_state(states["torch"])
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    *key, position = states["numpy"].tolist()
    has_gauss, cached = states["numpy_gauss"].tolist()
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), position, int(has_gauss), cached))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
