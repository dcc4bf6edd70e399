"""Every deliberate error of the project, each with the exit code its command ends with; and what others come to.

A message states the thing, its value, what was expected and what to do. What the system refuses, memory or disk, ends
like the deliberate error it stands for. Anything else that escapes a command is a bug.
"""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping


class VgpoLiteError(Exception):
    """A deliberate stop: the message is for the user, `exit_code` for the shell."""

    exit_code = 1


class ConfigError(VgpoLiteError):
    """A setting, a recipe or a command line that cannot be used as written."""

    exit_code = 2


class DataError(VgpoLiteError):
    """A data set, a row, a gold answer or an image that cannot be used."""

    exit_code = 3


class PromptTooLongError(DataError):
    """A prompt that holds more tokens than `data.max_prompt_length` allows; nothing of it is cut."""


class ImageOrderError(DataError):
    """A question with text between its images, away from which the model's chat template would move them."""


class RewardError(DataError):
    """A reward function of the user's raised, or returned something that is no reward.

    `evidence` holds what it was asked to judge, ready for JSON: function, sample_id, question, answer, completions.
    """

    def __init__(self, message: str, evidence: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.evidence = dict(evidence or {})


class CheckpointError(VgpoLiteError):
    """A checkpoint, adapter or run directory that is damaged, foreign or missing."""

    exit_code = 3


class NothingLearnedError(VgpoLiteError):
    """A run in which no group of completions ever told right from wrong."""

    exit_code = 3


class MergeError(VgpoLiteError):
    """A merge that would not keep the policy that was trained."""

    exit_code = 3


class PushError(VgpoLiteError):
    """An adapter or model that cannot be uploaded: not ready for others, or refused by the hub."""

    exit_code = 3


class ModelError(VgpoLiteError):
    """A model that cannot be found, fetched or used as a policy."""

    exit_code = 3


class HardwareError(VgpoLiteError):
    """The machine lacks what the settings ask for: memory, a device, a number format."""

    exit_code = 4


class NonFiniteError(VgpoLiteError):
    """Losses or gradients were not finite for longer than a run may trust them."""

    exit_code = 5


class InvariantError(VgpoLiteError):
    """A check of the first step failed: what was sampled is not what would be trained."""

    exit_code = 5


class StorageError(VgpoLiteError):
    """The disk is full, read-only or gone."""

    exit_code = 6


class PeerError(VgpoLiteError):
    """Another process of the same run failed; the message is that one's, and so is the exit code."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InterruptedRunError(VgpoLiteError):
    """A signal asked the run to save and leave."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


STORAGE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
    | {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
)
"""What the system says when a disk is full, over quota, read-only or broken, or a path is none that it can write."""

UNFORESEEN_EXIT_CODE = 1
SIGPIPE_EXIT_CODE = 128 + signal.SIGPIPE
"""128 plus the signal's number, as shells count."""

_SHOWN_CHARACTERS = 2000  # of an error nobody foresaw, whose text may hold anything
# What allocators say that raise a plain RuntimeError: torch's on the CPU, CUDA's own, cuBLAS's.
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What an error comes to, for a run's status.json and for the shell.

    Attributes:
        state: `interrupted` by the user or the system, `failed` for a reason that is told, `crashed` by a bug.
        exit_code: The exit code of the command.
        reason: What happened, in words; for a bug the error's own.
    """

    state: Literal["interrupted", "failed", "crashed"]
    exit_code: int
    reason: str


def ending(error: BaseException) -> Ending:
    """What an error comes to: the one place that maps errors to exit codes.

    >>> ending(ConfigError("max_steps is 0.")).exit_code, ending(MemoryError()).exit_code, ending(KeyError("x")).reason
    (2, 4, "KeyError: 'x'")
    """
    if isinstance(error, InterruptedRunError):
        return Ending(state="interrupted", exit_code=error.exit_code, reason=str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(state="interrupted", exit_code=128 + signal.SIGINT, reason="stopped")
    if isinstance(error, VgpoLiteError):
        return Ending(state="failed", exit_code=error.exit_code, reason=str(error))
    if isinstance(error, BrokenPipeError):
        return Ending(state="failed", exit_code=SIGPIPE_EXIT_CODE, reason="whoever read the output has left")
    if is_out_of_memory(error):
        reason = _out_of_memory("machine" if isinstance(error, MemoryError) else "device")
        return Ending(state="failed", exit_code=HardwareError.exit_code, reason=reason)
    if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
        place = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"{error.strerror}{place}. {'Free space, or choose' if full else 'Choose'} another place."
        return Ending(state="failed", exit_code=StorageError.exit_code, reason=reason)
    if isinstance(error, ValueError) and "embedded null" in str(error):  # what Python makes of such a path
        reason = "a path holds a null byte, which no path may. Choose another."
        return Ending(state="failed", exit_code=ConfigError.exit_code, reason=reason)
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else UNFORESEEN_EXIT_CODE
    return Ending(state="crashed", exit_code=code, reason=f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: Python's, torch's on any device, or CUDA's. Loads no torch to tell."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _NO_MEMORY)


def _out_of_memory(what: str) -> str:
    return (
        f"the {what} is out of memory. Any of these needs less: --set data.max_pixels=200704, "
        "--set max_completion_length=512, --set num_generations=4, --set memory.rows_per_micro_batch=1."
    )
