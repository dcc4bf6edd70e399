"""Where a run stands at the end of a step, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vgpo_lite.data_types import Accuracy

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands at the end of a step.

    Attributes:
        step: Optimizer steps done, skipped ones counted.
        draws: Prompts drawn.
        updated_steps: Steps that moved the adapter.
        useful_groups: Groups trained on so far.
        bad_steps: Steps in a row whose gradient was not finite.
        before: Held-out accuracy before the first step.
    """

    step: int = 0
    draws: int = 0
    updated_steps: int = 0
    useful_groups: int = 0
    bad_steps: int = 0
    before: Accuracy | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the step, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "step"}

    @classmethod
    def restored(cls, step: int, kept: Mapping[str, Any]) -> Progress:
        """Where the run stood that `state` was written of; what else was kept with it is ignored."""
        numbers = {name: kept[name] for name in ("draws", "updated_steps", "useful_groups", "bad_steps")}
        before = kept["before"]
        return cls(step=step, before=None if before is None else Accuracy(**before), **numbers)
