"""One training step of vgpo-lite, phase by phase, as the trainer makes it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from workload import DATA, question

from vgpo_lite.algorithm.advantages import group_advantages
from vgpo_lite.algorithm.objective import step_denominator
from vgpo_lite.algorithm.weigh import weigh
from vgpo_lite.config.load import load_config
from vgpo_lite.engine import make_engine
from vgpo_lite.engine.optimizer import apply_gradients, make_optimizer
from vgpo_lite.models import load_policy
from vgpo_lite.prompts import encode_prompt
from vgpo_lite.terms import objective_of, weighting_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from workload import Work

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Prompt, RolloutGroup
    from vgpo_lite.engine import Backoff

NEVER: tuple[int, ...] = ()


def cpu_step(folder: str | Path, work: Work, **settings: Any) -> RunConfig:
    """The settings of one group a step in float32 on a CPU, with these besides."""
    return load_config(
        model=str(folder),
        quantization="none",
        dtype="float32",
        device="cpu",
        num_generations=work.generations,
        max_completion_length=work.completion,
        prompts_per_step=1,
        optim="adamw",
        data={"max_pixels": DATA.max_pixels, "max_prompt_length": DATA.max_prompt_length},
        **settings,
    )


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of a step's phases; scoring holds the passes that update nothing."""

    rollout: float
    score: float
    update: float

    @property
    def step(self) -> float:
        """The whole step."""
        return self.rollout + self.score + self.update


class Steps:
    """Training steps on the same question, timed.

    Attributes:
        policy: The model at work.
        peak: Asked at the end of each phase for the memory it took; None: nobody is asked.
        peaks: What it said of the last step's phases, in bytes.
        backoffs: Sizes that shrank, and what else was given up.
    """

    def __init__(self, config: RunConfig, work: Work, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._config, self._clock = config, clock
        policy = load_policy(config)
        self.policy = type(policy)(**{**vars(policy), "eos_ids": NEVER})  # no completion ends early
        self.backoffs: list[Backoff] = []
        self._engine = make_engine(self.policy, config, on_backoff=self.backoffs.append)
        self._optimizer = make_optimizer(list(self.policy.adapters().values()), config)
        self._sample = question(work, policy.processor)
        self._number = 0
        self.peak: Callable[[], int] | None = None
        self.peaks: dict[str, int] = {}

    def prompts(self) -> list[Prompt]:
        """The step's prompts, encoded anew: a step does not find features of the step before."""
        config = self._config
        return [encode_prompt(self._sample, self.policy.processor, config.data) for _ in range(config.prompts_per_step)]

    def step(self) -> Seconds:
        """Sample, reward, look, weigh, update, and move the adapters."""
        config, clock, prompts = self._config, self._clock, self.prompts()
        self._number += 1
        started = clock()
        groups = self._engine.sample(prompts, config.sampling, places=range(len(prompts)))
        rolled = clock()
        self._note_peak("rollout")
        denominator = step_denominator(
            objective_of(config),
            token_count=sum(group.token_count for group in groups),
            completion_count=sum(len(group.texts) for group in groups),
        )
        looks = []
        if config.num_iterations > 1:
            looks = [self._engine.look(group, keep_graph=False, reference=False) for group in groups]
        scored = clock()
        self._note_peak("score")
        for index, group in enumerate(groups):
            look = looks[index] if looks else self._engine.look(group, keep_graph=True, reference=False)
            advantages = group_advantages(alternating(group), scale=config.scale_rewards)
            weighted = weigh(advantages, look.signals.focus, group.completion_mask, weighting=weighting_of(config))
            self._engine.update(look, weighted, objective_of(config), denominator)
        apply_gradients(self._optimizer, step=self._number, config=config)
        self._engine.forget()
        self._note_peak("update")
        return Seconds(rolled - started, scored - rolled, clock() - scored)

    def _note_peak(self, phase: str) -> None:
        if self.peak is not None:
            self.peaks[phase] = self.peak()


def alternating(group: RolloutGroup) -> torch.Tensor:
    """Rewards 0, 1, 0, 1: every group trains."""
    return torch.arange(len(group.texts)).remainder(2).float()


def medians(steps: Sequence[Seconds]) -> dict[str, float]:
    """The median of each phase, in seconds."""
    phases = {"rollout": "rollout", "score": "score", "update": "update", "step": "step"}
    ordered = {name: sorted(vars(step).get(name, step.step) for step in steps) for name in phases}
    return {f"{name}_seconds": values[len(values) // 2] for name, values in ordered.items()}
