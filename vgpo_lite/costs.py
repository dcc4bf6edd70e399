"""What each phase of a step costs: its seconds, and the most memory in use while it lasts."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Literal

import torch

from vgpo_lite.memory import begin_peak, peak_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

Phase = Literal["sampling", "grading", "checking", "looking", "updating"]
"""As the loop goes; `checking` is the first step's alone (`invariants`)."""


class Costs:
    """Measures phases as they pass, each apart from the others.

    A phase inside another interrupts it, so the phases' seconds add up to the step's. Peaks are read from the process's
    one counter, which begins anew with each phase; the highest of all is therefore kept here.

    Attributes:
        earlier_bytes: Highest that earlier processes of the run recorded; 0 where there was none.
    """

    earlier_bytes: int = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[Phase, float] = {}
        self._peaks: dict[Phase, int] = {}
        self._entered: list[Phase] = []
        self._marked_at = 0.0
        self._is_fresh = False
        self._highest = 0

    @property
    def highest_bytes(self) -> int:
        """Highest memory in use by this process so far, in phases and outside of them."""
        self._highest = max(self._highest, peak_bytes(self._device))
        return self._highest

    @property
    def highest_of_run_bytes(self) -> int:
        """The same, of the run's earlier processes too."""
        return max(self.earlier_bytes, self.highest_bytes)

    @contextlib.contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Put down to a phase what passes inside, but for phases in it. One that an error ends counts until then."""
        self._mark()
        self._entered.append(name)
        try:
            yield
        finally:
            self._mark()
            self._entered.pop()

    def end_step(self) -> dict[str, float]:
        """The metrics of the step that is over; the next one begins with nothing.

        A phase that the step did not have is left out, and so are all phases' peaks where no peak can be begun anew.
        """
        seconds = {f"time/{name}_seconds": spent for name, spent in self._seconds.items()}
        peaks = {f"memory/{name}_peak_bytes": float(peak) for name, peak in self._peaks.items()}
        total, highest = sum(self._seconds.values()), float(self.highest_of_run_bytes)
        self._seconds, self._peaks = {}, {}
        return {**seconds, "time/step_seconds": total, **peaks, "memory/peak_bytes": highest}

    def _mark(self) -> None:
        """Add what has passed since the last mark to the phase it passed in, if any."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # work that has been ordered belongs to who ordered it
        now, peak = time.perf_counter(), peak_bytes(self._device)
        self._highest = max(self._highest, peak)
        if self._entered:
            name = self._entered[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._marked_at
            if self._is_fresh:
                self._peaks[name] = max(self._peaks.get(name, 0), peak)
        self._is_fresh = begin_peak(self._device)
        self._marked_at = now
