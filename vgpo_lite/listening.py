"""Who watches a run, and what it is told: the plan before, each step, the summary after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vgpo_lite.data_types import Accuracy, StepReport


@dataclass(frozen=True, kw_only=True)
class MemoryPhase:
    """What one phase of a run holds at its worst moment.

    Attributes:
        name: `vision`, `rollout`, `score`, `update`, `optimizer` or `measuring`.
        parts: Bytes of each part, such as weights or logits; no part is empty.
    """

    name: str
    parts: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Predicted memory of a run, for the largest group of its data with every completion at its limit.

    Attributes:
        phases: What each phase holds.
        reserve_bytes: Kept free beside tensors, for the device's context and gaps between tensors; 0 on a CPU.
        limit_bytes: What the run may use; None: nobody said.
        prompt_tokens: Tokens of the largest prompt.
        image_tokens: Those of its images.
        choices: What the planner chose for settings that are `auto`, and what it gave up, in words.
    """

    phases: tuple[MemoryPhase, ...]
    reserve_bytes: int
    limit_bytes: int | None
    prompt_tokens: int
    image_tokens: int
    choices: tuple[str, ...] = ()

    @property
    def worst(self) -> MemoryPhase:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: phase.total_bytes)

    @property
    def peak_bytes(self) -> int:
        """Most bytes of tensors at one time: what the device's allocator would tell as its peak."""
        return self.worst.total_bytes

    @property
    def needed_bytes(self) -> int:
        """The peak and the reserve."""
        return self.peak_bytes + self.reserve_bytes

    @property
    def fits(self) -> bool:
        """Whether that is within the limit, or there is none."""
        return self.limit_bytes is None or self.needed_bytes <= self.limit_bytes


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run is about to do, for the user to read before it starts.

    Attributes:
        rows_kept: Rows that will train.
        rows_dropped: Rows left out, by reason.
        rows_held_out: Rows that measure before and after.
        trainable_parameters: Adapter parameters that learn.
        total_parameters: All parameters, quantized ones counted as weights.
        model_bytes: Memory the loaded model takes.
        max_steps: Optimizer steps of the whole run.
        first_step: The step this process starts with: 1, or more after a resume.
        device: Where it runs, in words.
        memory: What it will hold.
        seconds_left: How long the rest should take, from the steps of the run it continues; None where no step has
            been timed yet.
        notes: Anything else worth a line, such as a warning about an evaluation data set.
    """

    rows_kept: int
    rows_dropped: Mapping[str, int]
    rows_held_out: int
    trainable_parameters: int
    total_parameters: int
    model_bytes: int
    max_steps: int
    first_step: int
    device: str
    memory: MemoryPlan
    seconds_left: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run ended.

    Attributes:
        output: The run directory.
        steps: Optimizer steps of the whole run so far.
        updated_steps: Steps that changed the adapter.
        before: Held-out accuracy before training; None where it was not measured.
        after: The same afterwards.
        seconds: Wall-clock time of this process's training.
        peak_bytes: Highest memory in use, as the device counts it.
        peak_is_of_process: Whether that is of the whole process, libraries and data included, as on a CPU, and not of
            tensors alone, as on a GPU.
        predicted_peak_bytes: Highest memory of tensors, as it was planned.
    """

    output: str
    steps: int
    updated_steps: int
    before: Accuracy | None
    after: Accuracy | None
    seconds: float
    peak_bytes: int
    peak_is_of_process: bool
    predicted_peak_bytes: int


class Listener(Protocol):
    """Who watches a run: the terminal, a notebook, a test."""

    def planned(self, plan: RunPlan) -> None:
        """The plan is made; nothing has been trained."""
        ...

    def progressed(self, phase: str, done: int, total: int) -> None:
        """A phase inside a step moved on; `done` and `total` are in the phase's own unit (rows, tokens, prompts)."""
        ...

    def stepped(self, report: StepReport, seconds_left: float) -> None:
        """An optimizer step is over."""
        ...

    def evaluated(self, name: str, accuracy: Accuracy) -> None:
        """An accuracy was measured; `name` is `before` or `after`."""
        ...

    def noted(self, message: str) -> None:
        """Something worth a line happened."""
        ...

    def finished(self, summary: RunSummary) -> None:
        """The run is over."""
        ...


class SilentListener:
    """Watches nothing."""

    def planned(self, plan: RunPlan) -> None:
        """Nothing."""

    def progressed(self, phase: str, done: int, total: int) -> None:
        """Nothing."""

    def stepped(self, report: StepReport, seconds_left: float) -> None:
        """Nothing."""

    def evaluated(self, name: str, accuracy: Accuracy) -> None:
        """Nothing."""

    def noted(self, message: str) -> None:
        """Nothing."""

    def finished(self, summary: RunSummary) -> None:
        """Nothing."""
