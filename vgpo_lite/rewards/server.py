"""The grading process: loads math-verify once, forks workers and replaces those that die of an answer.

Run as `python -m vgpo_lite.rewards.server`, never forked from the trainer, so that neither a GPU context nor the user's
script is in it. It is one thread around one selector. JSON lines come in, `{"id": 7, "gold": "4", "answer": "2+2"}`,
and go out in the order in which they are decided, `{"id": 7, "verdict": "right"}`; a verdict is right, wrong, late (the
time ran out) or dead (two workers died). A first line says that it is ready. It ends when its input ends, when it is
told to (`{"stop": true}`) or when its parent is gone, and ignores signals meant for the trainer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field, replace

from vgpo_lite.rewards import symbolic, worker

RESERVE_SHARE = 0.05
"""Share of an answer's time kept for killing its worker and forking the next, so that a hostile answer costs its time
and no more: measured 3 ms of processor time each, 10-80 ms on a busy machine; the share of 2 s is 100 ms."""

PARENT_POLL_SECONDS = 0.5
"""How often the parent is looked for: end of input alone does not come while a fork of the parent holds the pipe."""

CHUNK_BYTES = 1 << 16
"""Bytes read at a time: the capacity of a Linux pipe."""


@dataclass(kw_only=True)
class Pair:
    """A gold and an answer to compare.

    Attributes:
        number: The parent's id of it.
        gold: The gold.
        answer: The answer.
        seconds: Time left for it.
        second_try: Whether a worker already died over it.
    """

    number: int
    gold: str
    answer: str
    seconds: float
    second_try: bool = False


@dataclass(kw_only=True)
class Worker:
    """A forked grading process and what it is busy with.

    Attributes:
        pid: Its process id.
        channel: The supervisor's end of its socket.
        pair: What it grades, None when idle.
        deadline: Monotonic time at which the pair's time is up, in seconds; infinite when idle.
    """

    pid: int
    channel: socket.socket
    pair: Pair | None = None
    deadline: float = float("inf")


@dataclass(kw_only=True)
class Supervisor:
    """Hands pairs to idle workers and tells their verdicts.

    Attributes:
        size: Workers kept alive.
        timeout_seconds: Time one answer has.
        parent: Process whose end ends this one.
    """

    size: int
    timeout_seconds: float
    parent: int
    workers: dict[int, Worker] = field(default_factory=dict)
    dying: set[int] = field(default_factory=set)
    queue: deque[Pair] = field(default_factory=deque)
    unread: bytearray = field(default_factory=bytearray)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    running: bool = True

    def serve(self) -> None:
        """Serve until the input ends or the parent is gone; leaves no worker behind."""
        try:
            self.selector.register(0, selectors.EVENT_READ, None)
            while len(self.workers) < self.size:
                self.fork()
            self.tell({"ready": True})
            while self.running and os.getppid() == self.parent:
                self.turn()
        except BrokenPipeError:
            return
        finally:
            for process in list(self.workers.values()):
                self.give_up(process)
            self.reap(0)

    def turn(self) -> None:
        """Wait for something to happen, and deal with it."""
        self.assign()
        next_deadline = min((process.deadline for process in self.workers.values()), default=float("inf"))
        for key, _ in self.selector.select(min(max(next_deadline - time.monotonic(), 0), PARENT_POLL_SECONDS)):
            if key.data is None:
                self.read()
            elif key.data in self.workers:
                self.hear(self.workers[key.data])
        now = time.monotonic()
        for process in [process for process in self.workers.values() if process.deadline <= now]:
            self.replace(process)
        self.reap(os.WNOHANG)

    def read(self) -> None:
        """Take in whole lines of pairs; a line that is no pair is passed over."""
        chunk = os.read(0, CHUNK_BYTES)
        if not chunk:
            self.running = False
            return
        self.unread += chunk
        seconds = self.timeout_seconds * (1 - RESERVE_SHARE)
        *lines, rest = self.unread.split(b"\n")
        self.unread = bytearray(rest)
        for line in lines:
            try:
                message = json.loads(line)
                if message.get("stop"):
                    self.running = False
                    return
                number, gold, answer = int(message["id"]), str(message["gold"]), str(message["answer"])
                self.queue.append(Pair(number=number, gold=gold, answer=answer, seconds=seconds))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def assign(self) -> None:
        """Give each idle worker a pair."""
        for process in [process for process in self.workers.values() if process.pair is None]:
            if not self.queue:
                return
            pair = process.pair = self.queue.popleft()
            process.deadline = time.monotonic() + pair.seconds
            with contextlib.suppress(OSError):  # killed from outside while idle: `hear` notices
                process.channel.sendall(json.dumps([pair.gold, pair.answer, process.deadline]).encode() + b"\n")

    def hear(self, process: Worker) -> None:
        """Pass on what a worker decided, or that it died."""
        try:
            reply = process.channel.recv(CHUNK_BYTES)
        except ConnectionError:
            reply = b""
        if process.pair is None or not reply:
            self.replace(process)
            return
        self.tell({"id": process.pair.number, "verdict": "right" if reply.startswith(b"true") else "wrong"})
        process.pair, process.deadline = None, float("inf")
        if reply.endswith(worker.FAREWELL + b"\n"):
            self.replace(process)

    def replace(self, process: Worker) -> None:
        """Give up a worker and fork the next; a pair that it died over is tried once more in the time that is left.

        Somebody else may have killed it: the system when memory ran out, or an administrator.
        """
        self.give_up(process)
        if process.pair is not None:
            seconds = process.deadline - time.monotonic()
            if seconds <= 0 or process.pair.second_try:
                self.tell({"id": process.pair.number, "verdict": "late" if seconds <= 0 else "dead"})
            else:
                self.queue.appendleft(replace(process.pair, seconds=seconds, second_try=True))
        self.fork()
        self.assign()

    def give_up(self, process: Worker) -> None:
        """Kill a worker and hang up, without waiting: a dying process takes its time on a busy machine."""
        del self.workers[process.pid]
        self.selector.unregister(process.channel)
        process.channel.close()
        os.kill(process.pid, signal.SIGKILL)
        self.dying.add(process.pid)

    def reap(self, options: int) -> None:
        """Take leave of the workers that were killed, so that no zombie stays; 0 waits for them."""
        for pid in list(self.dying):
            if os.waitpid(pid, options)[0] == pid:
                self.dying.remove(pid)

    def fork(self) -> None:
        """Start a worker."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self.become_worker(theirs)
        theirs.close()
        self.workers[pid] = Worker(pid=pid, channel=ours)
        self.selector.register(ours, selectors.EVENT_READ, pid)

    def become_worker(self, channel: socket.socket) -> None:
        """Go on as a worker; never returns. What belongs to the supervisor is closed, so that hanging up is noticed."""
        try:
            self.selector.close()
            for process in self.workers.values():
                process.channel.close()
            with channel.makefile("rb") as tasks, channel.makefile("wb") as replies:
                worker.work(tasks, replies)
        finally:
            os._exit(0)

    def tell(self, message: dict[str, object]) -> None:
        """Write one line to the parent."""
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(1, line) :]


def main() -> None:
    """Read the options, warm the parser and serve."""
    options = argparse.ArgumentParser(prog="python -m vgpo_lite.rewards.server", description=__doc__)
    options.add_argument("--workers", type=int, default=1, help="grading processes")
    options.add_argument("--timeout", type=float, default=2.0, help="seconds one answer may take")
    options.add_argument("--parent", type=int, default=os.getppid(), help="process whose end ends this one")
    chosen = options.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for gold, answer in symbolic.WARM_UP:
        symbolic.equivalent(gold, answer)
    Supervisor(size=chosen.workers, timeout_seconds=chosen.timeout, parent=chosen.parent).serve()


if __name__ == "__main__":
    sys.exit(main())
