"""Every deliberate error of the project, each with the exit code its command ends with.

A message states the thing, its value, what was expected and what to do. Anything else that escapes a command is a bug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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


class InterruptedRunError(VgpoLiteError):
    """A signal asked the run to save and leave."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
