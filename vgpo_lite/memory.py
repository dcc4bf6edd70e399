"""What a run costs in memory, as the device itself counts it."""

from __future__ import annotations

import platform
import re
import resource
import sys
from pathlib import Path
from typing import Literal

import psutil
import torch

_SMALL_MODEL = 50_000_000  # parameters; a matrix product of a smaller model takes less than starting a second thread
_PROCESS = Path("/proc/self")
_KILOBYTES = rb"^%s:\s+(\d+) kB$"
_FRESH_BYTES = 4_000_000  # measured: VmHWM is VmRSS to the byte then; other threads may come and go in between
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS


def peak_bytes(device: torch.device) -> int:
    """Highest memory in use since a peak was begun with `begin_peak`, or since the process started.

    On a GPU: bytes the allocator held for tensors. On a CPU: the resident size of the whole process.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    (highest,) = _bytes_of("VmHWM")
    if highest is None:  # getrusage also counts what ran before an exec: a launcher
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * _RSS_UNIT_BYTES
    return highest


def begin_peak(device: torch.device) -> bool:
    """Begin a new peak, for the whole process and whoever else reads its counter.

    Returns:
        Whether that could be done; otherwise the old one stays: on a CPU only Linux lets a process do it, and not
        every sandbox that stands in for it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (_PROCESS / "clear_refs").write_text("5")  # proc_pid_clear_refs(5): VmHWM begins anew at what is resident now
    except OSError:
        return False
    highest, resident = _bytes_of("VmHWM", "VmRSS")  # a sandbox may take the write and do nothing
    return highest is not None and resident is not None and highest - resident <= _FRESH_BYTES


def _bytes_of(*names: str) -> list[int | None]:
    """What Linux says of the process at one moment, such as VmHWM, its own high-water mark; None elsewhere."""
    try:
        status = (_PROCESS / "status").read_bytes()
    except OSError:
        status = b""
    found = (re.search(_KILOBYTES % name.encode(), status, re.MULTILINE) for name in names)
    return [None if match is None else 1024 * int(match[1]) for match in found]


def counts_process(device: torch.device) -> bool:
    """Whether `peak_bytes` counts the whole process, and not tensors alone."""
    return device.type != "cuda"


def memory_limit(device: torch.device, wanted_bytes: int | None) -> int | None:
    """Bytes that the run may use: what was asked for, on a GPU at most what the card has; None: no limit is known."""
    if device.type != "cuda":
        return wanted_bytes
    total = int(torch.cuda.get_device_properties(device).total_memory)
    return total if wanted_bytes is None else min(wanted_bytes, total)


def enforce_limit(device: torch.device, wanted_bytes: int | None, *, context_bytes: int) -> None:
    """Make a limit hard on a GPU: the allocator then refuses more, as a smaller card would.

    Args:
        device: The card; nothing happens on a CPU.
        wanted_bytes: What the run may use; None: no limit.
        context_bytes: What of it the card's context takes, which the allocator does not count.
    """
    if device.type != "cuda" or wanted_bytes is None:
        return
    total = int(torch.cuda.get_device_properties(device).total_memory)
    share = max(wanted_bytes - context_bytes, 0) / total
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)


def cpu_threads(wanted: int | Literal["auto"], *, parameters: int) -> int:
    """Threads torch should use on a CPU.

    Measured beside one busy process: an NF4 step of a model of 1.3 million parameters took 2.3 s on one thread, 43-60 s
    on two.

    Args:
        wanted: `memory.cpu_threads`.
        parameters: Weights of the model.
    """
    if wanted != "auto":
        return wanted
    return 1 if parameters < _SMALL_MODEL else torch.get_num_threads()


def hardware_in_words(device: torch.device) -> str:
    """The device for people elsewhere: like `device_in_words`, a CPU with its name and the machine's memory."""
    if device.type == "cuda":
        return device_in_words(device)
    installed = psutil.virtual_memory().total
    return f"{processor_name()}, {device_in_words(device).removeprefix('CPU, ')}, {installed / 1e9:.0f} GB"


def processor_name() -> str:
    """The processor's name, as Linux gives it; elsewhere its kind."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_in_words(device: torch.device) -> str:
    """The device as a person knows it, such as `NVIDIA T4, 15.6 GB` or `CPU, 2 threads`."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 1e9:.1f} GB"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads != 1 else ''}"
