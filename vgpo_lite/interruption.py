"""Signals that ask a run to save and leave.

The first SIGINT or SIGTERM only raises a flag; whoever works polls it between decoding steps, answers and micro-batches
and stops at a point from which the run can be saved. The second leaves at once; the last checkpoint is whole by then,
since a checkpoint is complete or invisible.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

from vgpo_lite.errors import InterruptedRunError
from vgpo_lite.launch import launched

if TYPE_CHECKING:
    from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_entered: list[StopFlag] = []


class StopFlag:
    """Catches SIGINT and SIGTERM while it is entered, and tells when asked.

    Outside the main thread, where Python allows no handlers, it never fires and the caller's own handling stands.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopFlag:
        _entered.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _entered.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] what signal() itself returned
        self._previous.clear()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received is not None:
            os._exit(128 + number)
        self._received = number
        if launched().rank == 0:
            os.write(2, b"\nstopping after this step of the work; once more to leave at once\n")

    def poll(self, *_progress: object) -> None:
        """Stop here if a signal has come; arguments are ignored, so that it fits wherever progress is reported.

        Raises:
            InterruptedRunError: A signal came; its exit code is 128 plus the signal's number.
        """
        if self._received is not None:
            raise InterruptedRunError(self._received)


def poll_stop() -> None:
    """Poll the flag in use, if there is one: for work that nobody hands a flag to, between its parts.

    Raises:
        InterruptedRunError: A signal came.
    """
    if _entered:
        _entered[-1].poll()
