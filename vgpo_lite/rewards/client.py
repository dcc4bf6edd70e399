"""The trainer's side of grading: starts the grading server, talks to it over pipes, restarts it when it is killed.

No thread and no signal handler is involved: whoever asks for verdicts does the reading and writing, one caller at a
time, and looks up every 0.1 s so that a signal to the run is honoured.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vgpo_lite.errors import HardwareError
from vgpo_lite.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Verdict = Literal["right", "wrong", "late", "dead"]

ANSWER_SECONDS = 2.0
"""Time one answer may take (promise 5 of the project's design)."""

MOST_WORKERS = 8
"""Workers at most, where their number is left open; the default of the setting `reward.workers`."""

POLL_SECONDS = 0.1
"""How often a waiting caller looks up."""

START_SECONDS = 120.0
"""Time the server may take to load: 1 s from a warm disk, and room for a cold network disk."""

STALL_SECONDS = 10.0
"""Silence, beyond the time an answer has, after which the server counts as dead."""

MOST_DEATHS = 3
"""Deaths in a row without a verdict in between after which grading stops the run."""

_MODULE = "vgpo_lite.rewards.server"
_ROOT = Path(__file__).resolve().parents[2]


class GradingServer:
    """Verdicts on pairs of gold and answer, from processes that may hang, crash or be killed.

    Safe to use from any thread; callers wait for each other. After a fork, the child gets a server of its own. The
    server is started when it is first needed and again when it was killed.

    Args:
        workers: Grading processes; None: one per core that this process may use, at most `MOST_WORKERS`.
        timeout_seconds: Time one answer may take.
    """

    def __init__(self, *, workers: int | None = None, timeout_seconds: float = ANSWER_SECONDS) -> None:
        self.workers = workers or min(usable_cores(), MOST_WORKERS)
        self.timeout_seconds = timeout_seconds
        self._disown()

    def _disown(self) -> None:
        """Begin without a server: at first, and in a forked child, whose copy of the pipes belongs to its parent."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._connection: _Connection | None = None

    def warm_up(self, poll: Callable[[], None] | None = None) -> None:
        """Start the server and wait until it is ready (about a second)."""
        self.verdicts([], poll=poll)

    def verdicts(self, pairs: Sequence[tuple[str, str]], *, poll: Callable[[], None] | None = None) -> list[Verdict]:
        """Return the verdict on each pair of gold and answer, in their order.

        Args:
            pairs: Gold and answer; any text.
            poll: Called at least every 0.1 s; whatever it raises ends the wait and the server.

        Raises:
            HardwareError: The server died several times in a row without deciding anything.
        """
        with self._turn(poll or _nothing):
            verdicts: dict[int, Verdict] = {}
            deaths = decided = 0
            try:
                while not self._converse(pairs, verdicts, poll or _nothing):
                    self._drop()
                    deaths = deaths + 1 if decided == len(verdicts) else 1
                    decided = len(verdicts)
                    if deaths == MOST_DEATHS:
                        raise HardwareError(_death_notice(deaths))
            except BaseException:
                self._drop()
                raise
            return [verdicts[number] for number in range(len(pairs))]

    def close(self) -> None:
        """End the server and wait for it; closing twice, or what never started, does nothing."""
        if self._owner != os.getpid():
            return
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextlib.contextmanager
    def _turn(self, poll: Callable[[], None]) -> Iterator[None]:
        """Wait until no other thread talks to the server, looking up meanwhile."""
        if self._owner != os.getpid():
            if self._connection is not None:
                self._connection.hang_up()
            self._disown()
        while not self._lock.acquire(timeout=POLL_SECONDS):
            poll()
        try:
            yield
        finally:
            self._lock.release()

    def _drop(self) -> None:
        """Kill the server and everything it forked."""
        if self._connection is not None:
            self._connection.kill()
            self._connection = None

    def _converse(
        self, pairs: Sequence[tuple[str, str]], verdicts: dict[int, Verdict], poll: Callable[[], None]
    ) -> bool:
        """Ask for the verdicts still missing and fill them in; False when the server died or fell silent."""
        if self._connection is None:
            self._connection = _Connection(self.workers, self.timeout_seconds)
        connection = self._connection
        for number, (gold, answer) in enumerate(pairs):
            if number not in verdicts:
                connection.ask({"id": number, "gold": gold, "answer": answer})
        connection.heard = time.monotonic()
        while not connection.ready or len(verdicts) < len(pairs):
            failpoint("grade.waiting")
            poll()
            replies = connection.exchange(POLL_SECONDS)
            if replies is None:
                return False
            for reply in replies:
                verdicts[reply["id"]] = reply["verdict"]
            patience = self.timeout_seconds + STALL_SECONDS if connection.ready else START_SECONDS
            if time.monotonic() - connection.heard > patience:
                return False
        return True


class _Connection:
    """One running server and the two pipes to it, both kept off the standard descriptors and out of other children."""

    def __init__(self, workers: int, timeout_seconds: float) -> None:
        its_input, self._to = _pipe()
        self._from, its_output = _pipe()
        options = [f"--workers={workers}", f"--timeout={timeout_seconds}", f"--parent={os.getpid()}"]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, *options],
                stdin=its_input,
                stdout=its_output,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            self.hang_up()
            raise HardwareError(f"the grading server cannot be started: {error}; free memory or processes") from error
        finally:
            os.close(its_input)
            os.close(its_output)
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self.ready = False
        self.heard = time.monotonic()
        self._unsent = bytearray()
        self._unread = b""

    def ask(self, message: dict[str, object]) -> None:
        """Queue a message; `exchange` sends it."""
        self._unsent += json.dumps(message).encode() + b"\n"

    def exchange(self, seconds: float) -> list[dict] | None:
        """Send and receive for at most so long; returns the verdicts that came, None when the server is gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            if self._unsent:
                selector.register(self._to, selectors.EVENT_WRITE)
            happened = {key.fd for key, _ in selector.select(seconds)}
        try:
            if self._to in happened:
                del self._unsent[: os.write(self._to, self._unsent)]
            chunk = os.read(self._from, 1 << 16) if self._from in happened else None
        except BlockingIOError:
            return []
        except OSError:
            return None
        if chunk is None:
            return []
        self.heard = time.monotonic()
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self.ready = self.ready or any("ready" in message for message in messages)
        return [message for message in messages if "verdict" in message] if chunk else None

    def close(self) -> None:
        """Ask the server to end; kill it when it does not."""
        with contextlib.suppress(OSError):
            os.write(self._to, b'{"stop": true}\n')
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the server's process group, wait for it and close the pipes."""
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Close this process's ends of the pipes."""
        for descriptor in (self._to, self._from):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends are none of the standard descriptors, even where those are closed in this process."""
    low = os.pipe()
    try:
        read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in low)
    finally:
        for end in low:
            os.close(end)
    return read, write


def _environment() -> dict[str, str]:
    """Return the server's environment: this package importable, the working folder not, hashing the same every time."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"}
    if _ROOT.name not in ("site-packages", "dist-packages"):
        paths = [environment.get("PYTHONPATH"), str(_ROOT)]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _death_notice(deaths: int) -> str:
    return (
        f"the grading server died {deaths} times in a row without grading an answer; "
        f"run `{sys.executable} -m {_MODULE} --workers=1 </dev/null` to see why (expected: no error)"
    )


def _nothing() -> None:
    """Do nothing: the poll of a caller who waits for nothing else."""
