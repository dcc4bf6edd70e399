"""Faults on demand, at named places: how the project tests that nothing is lost when something breaks.

    VGPO_LITE_FAILPOINT="checkpoint.before_rename=kill@2,optimizer.before_step=raise:oom" vgpo-lite train

Each entry is `site=action`, or `site=action@n` for the n-th time the site is passed alone. Without the variable a site
costs one comparison.

kill            end the process at once, as `kill -9` does
term            send the process SIGTERM
raise:oom       raise torch's error for a GPU that is out of memory
raise:OSError:N raise OSError with errno N; 28 is a full disk
sleep:SECONDS   wait
nan             make the value at hand nan, at a site that has one
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vgpo_lite.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

VARIABLE = "VGPO_LITE_FAILPOINT"
"""The environment variable that names sites and actions; read once, when this module is loaded."""

SITES = {
    "file.before_write": "a small file of a run is about to be written beside its place",
    "file.before_rename": "it is on the disk and about to take its place",
    "folder.before_delete": "an old folder is out of sight and about to be deleted",
    "record.step": "a line of metrics.jsonl is about to be appended",
    "record.event": "a line of events.jsonl is about to be appended",
    "checkpoint.before_files": "the temporary folder of a checkpoint is there and empty",
    "checkpoint.between_files": "one more file of a checkpoint is on the disk",
    "checkpoint.before_manifest": "all files of a checkpoint are on the disk but its manifest",
    "checkpoint.before_rename": "a checkpoint is whole and still has its temporary name",
    "checkpoint.after_rename": "a checkpoint is in place; older ones have not been let go yet",
    "decode.step": "a token of every open completion has been drawn",
    "look.micro_batch": "some completions are about to be looked at, without or with a graph",
    "update.micro_batch": "the loss of some completions is about to be formed and gone backward through",
    "update.gradient": "the loss of some completions; nan makes its gradients nan",
    "optimizer.before_step": "gradients are clipped and finite; the optimizer is about to move the adapter",
    "optimizer.after_step": "the adapter has moved; the step does not count yet",
    "journal.before_rename": "a step and its adapter are on the disk; the index does not name them yet",
    "grade.before": "a group is about to be graded",
    "grade.waiting": "the grading server has been asked and is waited for",
    "evaluate.batch": "a batch of held-out rows is about to be answered",
    "tracker.log": "a step's metrics are about to be mirrored to the tracker",
    "report.before_drawing": "the report of a run is about to be drawn",
    "adapter.before_files": "the finished adapter is about to be written beside its place",
    "adapter.before_rename": "the finished adapter is on the disk and about to take its place",
    "export.before_files": "a merged model is about to be written beside its place",
    "export.before_rename": "a merged model is on the disk, checked, and about to take its place",
}
"""Every site, and where a process that passes it stands."""

_VALUE_SITES = frozenset({"update.gradient"})

_ACTIONS = "kill, term, raise:oom, raise:OSError:28, sleep:60, nan"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What shall happen at a site.

    Attributes:
        site: A key of `SITES`.
        action: The action's name.
        number: Its errno or seconds; 0 where it has none.
        hit: Which passing of the site it befalls, from 1; None: every one.
    """

    site: str
    action: str
    number: float
    hit: int | None


def parsed(specification: str) -> tuple[Fault, ...]:
    """The faults that a specification asks for.

    Raises:
        ConfigError: A site or an action is unknown; the message names the known ones.

    >>> parsed("checkpoint.before_rename=raise:OSError:28@3")
    (Fault(site='checkpoint.before_rename', action='raise:OSError', number=28.0, hit=3),)
    """
    return tuple(_fault(entry.strip()) for entry in specification.split(",") if entry.strip())


def _fault(entry: str) -> Fault:
    site, _, rest = entry.partition("=")
    action, at, hit = rest.partition("@")
    if site not in SITES:
        raise ConfigError(f"{VARIABLE} names the site {site!r} in {entry!r}; known sites: {', '.join(SITES)}.")
    if at and not (hit.isascii() and hit.isdigit() and int(hit) > 0):
        raise ConfigError(f"{VARIABLE} asks for passing {hit!r} in {entry!r}; expected a number from 1, as in @2.")
    name, number = _action(action, entry)
    if name == "nan" and site not in _VALUE_SITES:
        values = ", ".join(sorted(_VALUE_SITES))
        raise ConfigError(f"{VARIABLE} asks for nan at {site!r}, which has no value; sites with one: {values}.")
    return Fault(site=site, action=name, number=number, hit=int(hit) if at else None)


def _action(text: str, entry: str) -> tuple[str, float]:
    if text in ("kill", "term", "raise:oom", "nan"):
        return text, 0.0
    name, colon, number = text.rpartition(":")
    if colon and name in ("raise:OSError", "sleep") and number.isascii() and number.isdigit():
        return name, float(number)
    raise ConfigError(
        f"{VARIABLE} names the action {text!r} in {entry!r}; known actions: {_ACTIONS}; each may end in @n."
    )


class _Faults:
    """Faults that are armed, and how often each site has been passed."""

    def __init__(self, faults: tuple[Fault, ...], passed: Callable[[str], object] | None = None) -> None:
        self._faults = faults
        self._passed = passed
        self._counts: Counter[str] = Counter()

    def at(self, site: str) -> bool:
        """Let happen what shall happen here; returns whether the value at hand shall be nan."""
        self._counts[site] += 1
        if self._passed is not None:
            self._passed(site)
        due = [f for f in self._faults if f.site == site and f.hit in (None, self._counts[site])]
        for fault in due:
            _happen(fault)
        return any(fault.action == "nan" for fault in due)


def _happen(fault: Fault) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif fault.action == "sleep":
        time.sleep(fault.number)
    elif fault.action == "raise:OSError":
        raise OSError(int(fault.number), f"{os.strerror(int(fault.number))} (injected at {fault.site})")
    elif fault.action == "raise:oom":
        import torch

        raise torch.OutOfMemoryError(f"injected at {fault.site}")


_unread = os.environ.get(VARIABLE, "").strip()
_faults: _Faults | None = None


def check_failpoints() -> None:
    """Read the environment variable, unless it has been read.

    Raises:
        ConfigError: It names an unknown site or action.
    """
    global _faults, _unread
    if _unread:
        _faults = _Faults(parsed(_unread))
        _unread = ""


def failpoint(site: str) -> None:
    """A place where a fault may be asked for; does nothing unless one is.

    Args:
        site: A key of `SITES`; a test holds every call to the table.

    Raises:
        OSError: Asked for.
        torch.OutOfMemoryError: Asked for.
        ConfigError: The environment variable names an unknown site or action.
    """
    if _faults is not None or _unread:
        _at(site)


def poisoned(site: str, value: Tensor) -> Tensor:
    """The value, or nan in its place where that is asked for; otherwise as `failpoint`."""
    if (_faults is not None or _unread) and _at(site):
        return value * float("nan")
    return value


def _at(site: str) -> bool:
    check_failpoints()
    return _faults is not None and _faults.at(site)


@contextlib.contextmanager
def armed(specification: str = "", *, passed: Callable[[str], object] | None = None) -> Iterator[None]:
    """Arm faults for a while within this process, in place of those of the environment.

    Args:
        specification: As the environment variable's; empty: no faults.
        passed: Told of every site that is passed, before its faults.

    Raises:
        ConfigError: The specification names an unknown site or action.
    """
    global _faults
    before, _faults = _faults, _Faults(parsed(specification), passed)
    try:
        yield
    finally:
        _faults = before
