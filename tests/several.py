"""Several processes of one run: forked from this one, so that nothing is imported or opened anew."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from vgpo_lite.errors import UNFORESEEN_EXIT_CODE, ending
from vgpo_lite.failpoints import armed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

PATIENCE_SECONDS = 240
"""After which a test fails, and not the suite."""


class Ended(NamedTuple):
    """The exception that ended a process."""

    kind: str
    exit_code: int
    message: str


def in_processes(
    folder: Path, work: Callable[[int], Any], *, count: int = 2, faults: Mapping[int, str] | None = None
) -> list[Any]:
    """What each process's `work(rank)` returned, or how it ended; None where it was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    children = [_forked(folder, work, rank, count, port, (faults or {}).get(rank, "")) for rank in range(count)]
    deadline, left = time.monotonic() + PATIENCE_SECONDS, set(children)
    while left and time.monotonic() < deadline:
        left -= {child for child in left if os.waitpid(child, os.WNOHANG)[0]}
        time.sleep(0.02)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not left, "processes wait for each other"
    results = [folder / f"result-{rank}" for rank in range(count)]
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in results]


def _forked(folder: Path, work: Callable[[int], Any], rank: int, count: int, port: int, faults: str) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            with armed(faults) if faults else contextlib.nullcontext():
                result = work(rank)
        except BaseException as error:  # noqa: BLE001  it is what the test asks for
            result = Ended(kind=type(error).__name__, exit_code=ending(error).exit_code, message=str(error))
            if result.exit_code == UNFORESEEN_EXIT_CODE:
                traceback.print_exc(file=sys.stderr)
        place = folder / f"result-{rank}"
        place.with_suffix(".part").write_bytes(pickle.dumps(result))
        place.with_suffix(".part").rename(place)
    finally:
        os._exit(0)
