"""One forked grading process: reads a pair, says whether it is right, and may be killed at any moment.

The supervisor kills it when an answer's time is up. Where the supervisor itself is gone the kernel ends it, by an alarm
that nobody handles; and beyond the memory it has, by its address-space limit.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import resource
import signal
import time
from typing import IO

import sympy.core.random

from vgpo_lite.rewards import symbolic

MEMORY_BYTES = 2 * 1024**3
"""Address space of a worker: 2 GB, promise 5 of the project's design."""

GRACE_SECONDS = 0.5
"""How long after an answer's time a worker ends by itself that its supervisor did not kill."""

ANSWERS_PER_WORKER = 2000
"""Answers after which a worker retires: the parser's tables grow by about 5 kB with each, so by 10 MB in its life."""

NICENESS = 5
"""How much a worker gives way to its supervisor: on two busy cores, eight hostile answers took 2.4 s at 0, 2.2 at 5."""

FAREWELL = b" bye"
"""Ends the reply of a worker that will not take another pair."""


def work(tasks: IO[bytes], replies: IO[bytes]) -> None:
    """Grade pairs, one JSON line each, until the supervisor hangs up or this process has grown old.

    A task is `[gold, answer, deadline]`, the deadline in the monotonic clock, which all processes share. A reply is
    `true` or `false`, with a farewell where it is the last; none before the end of the stream means that the process
    died over the answer.
    """
    _limit()
    for count, line in enumerate(tasks, start=1):
        gold, answer, deadline = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0) + GRACE_SECONDS)
        right, healthy = _verdict(gold, answer)
        signal.setitimer(signal.ITIMER_REAL, 0)
        last = count == ANSWERS_PER_WORKER or not healthy
        replies.write((b"true" if right else b"false") + (FAREWELL if last else b"") + b"\n")
        replies.flush()
        if last:
            return


def _verdict(gold: str, answer: str) -> tuple[bool, bool]:
    """Grade one pair; the second value says whether this process may go on."""
    random.seed(0)
    sympy.core.random.seed(0)
    try:
        return bool(symbolic.equivalent(gold, answer)), True
    except MemoryError:
        return False, False
    except Exception:  # noqa: BLE001 - sympy raises nearly every kind of error on text that is no mathematics
        return False, True


def _limit() -> None:
    """Bound this process: memory, no files, no core dump, the first to go when the machine runs out of memory."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    gc.freeze()
    os.nice(NICENESS)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    for name, limit in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(name)
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (bound, bound))
    quiet = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(quiet, standard)
    os.close(quiet)
