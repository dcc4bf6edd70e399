"""Where a merge takes its adapter from, and where it has room to work."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import psutil
import torch

from vgpo_lite.errors import CheckpointError, HardwareError, MergeError
from vgpo_lite.models.lora import find_adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HEADROOM = 1.25  # memory per weight byte while merging: activations of a short prompt, one layer in float32, buffers


def adapter_folder(source: Path) -> Path:
    """The adapter in a run directory or adapter folder.

    Raises:
        MergeError: The run learned nothing, or is not finished.
        CheckpointError: There is no adapter.
    """
    status = read_json(source / "status.json")
    if status.get("updated_steps") == 0:
        raise MergeError(f"the run in {source} never moved its adapter: there is nothing to merge.")
    try:
        return find_adapter(source)
    except CheckpointError as error:
        if not status:
            raise
        told = str(status.get("reason") or "").rstrip(". ")
        place = shlex.quote(str(source))
        finish = status.get("continue_with") or f"vgpo-lite train --recipe {place} --output {place} --resume auto"
        raise MergeError(
            f"the run in {source} ({status.get('state')}) has written no adapter{told and ': '}{told}. Finish it "
            f"first: {finish}"
        ) from error


def read_json(path: Path) -> dict[str, object]:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def workplace(
    parameters: int, device: torch.device, *, narrow: torch.dtype, free: Callable[[torch.device], int] | None = None
) -> tuple[torch.device, torch.dtype]:
    """Where to merge and in which format to compute: float32 where it fits, on the device or else on the CPU.

    Float32 tells an update from rounding; 16 bits blur the comparison, so they come last.

    Raises:
        HardwareError: The model fits nowhere.
    """
    free = free or _free_bytes
    devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    for dtype in (torch.float32, narrow):
        for place in devices:
            if parameters * dtype.itemsize * _HEADROOM < free(place):
                return place, dtype
    needed, found = parameters * narrow.itemsize * _HEADROOM, max(free(place) for place in devices)
    raise HardwareError(
        f"merging takes {needed / 1e9:.1f} GB of memory, {found / 1e9:.1f} GB are free. Close other programs, or "
        "merge on a larger machine: the adapter folder is all it needs."
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
