"""Everything a run works with, opened and checked in the order that fails cheapest first: rows, golds, model, prompts."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vgpo_lite.datasets import open_rows
from vgpo_lite.engine import make_engine
from vgpo_lite.errors import DataError
from vgpo_lite.memory import device_in_words
from vgpo_lite.models import load_policy
from vgpo_lite.prompts import encode_prompt, prompt_lengths
from vgpo_lite.rewards import Grader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Listener, Prompt, RunPlan
    from vgpo_lite.datasets import Rows
    from vgpo_lite.engine import Engine
    from vgpo_lite.models import Policy


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """The opened parts of a run.

    Attributes:
        config: The settings they were opened with.
        policy: The model with its adapters.
        engine: The policy at work: samples, looks, updates.
        grader: Rewards.
        train: Rows that train, unusable ones left out.
        held_out: Rows that measure.
        dropped: Rows left out, by reason.
        notes: What the user should read before the run starts.
    """

    config: RunConfig
    policy: Policy
    engine: Engine
    grader: Grader
    train: Rows
    held_out: Rows
    dropped: dict[str, int]
    notes: tuple[str, ...]

    def prompt(self, rows: Rows, index: int) -> Prompt:
        """Encode one row for the policy."""
        return encode_prompt(rows[index], self.policy.processor, self.config.data)
