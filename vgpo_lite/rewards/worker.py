"""One forked grading process: reads a pair, says whether it is right, and may be killed at any moment.

The kernel ends it: an alarm nobody handles after the time an answer has, the address-space limit beyond the memory it
has. Both work where Python code does not get to run any more, and when the supervisor itself is gone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import resource
import signal
from typing import IO

import sympy.core.random

from vgpo_lite.rewards import symbolic

MEMORY_BYTES = 2 * 1024**3
"""Address space of a worker: 2 GB, promise 5 of the project's design."""

RESERVE_SHARE = 0.05
"""Share of an answer's time kept for killing its worker and forking the next, so that a hostile answer costs its time
and no more: measured 10-25 ms each, the share of 2 s being 100 ms."""

ANSWERS_PER_WORKER = 2000
"""Answers after which a worker retires: the parser's tables grow by about 5 kB with each, so by 10 MB in its life."""

FAREWELL = b" bye"
"""Ends the reply of a worker that will not take another pair."""


def work(tasks: IO[bytes], replies: IO[bytes]) -> None:
    """Grade pairs, one JSON line each, until the supervisor hangs up or this process has grown old.

    A task is `[gold, answer, seconds]`, a reply `true` or `false`, with a farewell where it is the last. No reply
    before the end of the stream means that the process died over the answer.
    """
    _limit()
    for count, line in enumerate(tasks, start=1):
        gold, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds * (1 - RESERVE_SHARE))
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
