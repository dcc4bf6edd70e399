"""Runs that cost tenths of a second: the built-in model, data and grader are opened once and lent to every run.

A run gets the adapters as they were born, a stop flag and an engine of its own; everything else of it is real.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import vgpo_lite.lifecycle as lifecycle
from vgpo_lite.config.load import load_config
from vgpo_lite.engine import make_engine
from vgpo_lite.interruption import StopFlag
from vgpo_lite.models.lora import adapter_state, load_adapter_state
from vgpo_lite.preparation import Workbench, open_workbench
from vgpo_lite.rewards import Grader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.engine import Backoff
    from vgpo_lite.listening import Listener

SMALL: dict[str, object] = {
    "max_steps": 3,
    "num_generations": 4,
    "prompts_per_step": 1,
    "max_completion_length": 8,
    "quantization": "none",
    "learning_rate": 1e-3,
    "checkpoint": {"every": 1},
    "eval": {"limit": 0},
    "data": {"limit": 40},
    "save_completions_every": 1,
}
REWARD = "def letters(completions, **columns):\n    return [sum(map(ord, c[0]['content'])) % 7 for c in completions]\n"
"""Tells almost any two completions apart, so that no step samples twice."""


def small_settings(folder: Path) -> dict[str, object]:
    """Settings of a run of three steps; their reward function is written into the folder."""
    rewards = folder / "rewards.py"
    folder.mkdir(parents=True, exist_ok=True)
    rewards.write_text(REWARD)
    return SMALL | {"reward": {"functions": {f"{rewards}:letters": 1.0}}}


def small_config(output: Path, **changes: object) -> RunConfig:
    """The same as a configuration; the reward function lies beside the run directory."""
    return load_config(**(small_settings(output.parent) | {"output": str(output)} | changes))


class Poll:
    """Polls whichever run's stop flag is in use."""

    def __init__(self) -> None:
        self.stop: StopFlag | None = None

    def __call__(self) -> None:
        if self.stop is not None:
            self.stop.poll()


@dataclass(frozen=True)
class Lent:
    """What is opened once.

    Attributes:
        bench: The opened parts.
        born: The adapters before any step.
        grader: Asks `poll` while it waits.
        poll: Whose stop flag counts.
    """

    bench: Workbench
    born: Mapping[str, torch.Tensor]
    grader: Grader
    poll: Poll

    @contextlib.contextmanager
    def reopened(
        self,
        config: RunConfig,
        *,
        purpose: str = "train",
        listener: Listener | None = None,
        on_backoff: Callable[[Backoff], None] | None = None,
    ) -> Iterator[Workbench]:
        """Stand in for `open_workbench`."""
        policy = self.bench.policy
        load_adapter_state(policy, self.born)
        for parameter in policy.adapters().values():
            parameter.grad = None
        with StopFlag() as stop:
            self.poll.stop = stop
            engine = make_engine(policy, config, on_backoff=on_backoff)
            yield replace(self.bench, config=config, stop=stop, engine=engine, grader=self.grader)


@contextlib.contextmanager
def small_disk(bytes_per_file: int = 20_000) -> Iterator[None]:
    """A disk that really refuses: no file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def lent(folder: Path) -> Iterator[Lent]:
    """Open model, data and grader once, and lend them to every run of this process."""
    config = small_config(folder)
    poll = Poll()
    with (
        open_workbench(config) as bench,
        Grader(config.reward, poll=poll) as grader,
        pytest.MonkeyPatch.context() as patch,
    ):
        born = {name: tensor.clone() for name, tensor in adapter_state(bench.policy).items()}
        shared = Lent(bench=bench, born=born, grader=grader, poll=poll)
        patch.setattr(lifecycle, "open_workbench", shared.reopened)
        patch.setattr("vgpo_lite.report.draw_report", lambda folder: None)  # would take longer than the run
        yield shared
