"""Sums and counts of a step, turned into the means that metrics.jsonl records.

Means are taken at the very end, over the whole step, so that no split into groups or micro-batches shows in them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vgpo_lite.processes import Told, team

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.engine import PatientEngine
    from vgpo_lite.windows import ScoredGroup


class Tally:
    """Adds up (sum, count) pairs by metric name."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, pairs: Mapping[str, tuple[float, float]]) -> None:
        """Add one part's sums and counts."""
        for name, (total, count) in pairs.items():
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0.0) + count

    def over_processes(self) -> Tally:
        """The sums and counts of all processes of the run together, the same in each."""
        pairs = {name: (total, self._counts[name]) for name, total in self._sums.items()}
        whole = Tally()
        for told in team().gathered(lambda: Told(facts=pairs)):
            whole.add({name: (total, count) for name, (total, count) in told.facts.items()})
        return whole

    def means(self) -> dict[str, float]:
        """Every sum over its count; a metric that counted nothing is left out."""
        return {name: total / self._counts[name] for name, total in self._sums.items() if self._counts[name] > 0}


def focus_counts(
    focus: Float[Tensor, "group token"] | None, completion_mask: Bool[Tensor, "group token"]
) -> dict[str, tuple[float, float]]:
    """A group's focus: all of it, and that of the first and the second half of each completion."""
    if focus is None:
        return {}
    place = torch.arange(1, completion_mask.shape[-1] + 1, device=completion_mask.device)
    late = completion_mask & (2 * place > completion_mask.sum(-1, keepdim=True))
    parts = {"mean": completion_mask, "early": completion_mask & ~late, "late": late}
    return {f"focus/{name}": (float(focus[where].sum()), float(where.sum())) for name, where in parts.items()}


def rollout_metrics(sampled: Sequence[ScoredGroup], *, trained: int) -> dict[str, float]:
    """What was sampled and earned, over every group of a window, of which `trained` train."""
    rewards = [scored.rewards.rewards for scored in sampled]
    everything = torch.cat(rewards)
    lengths = torch.cat([scored.group.completion_mask.sum(-1).float() for scored in sampled])
    finished = torch.cat([scored.group.finished.float() for scored in sampled])
    metrics = {
        "reward/mean": float(everything.mean()),
        "reward/std": sum(float(values.std(correction=0)) for values in rewards) / len(rewards),
        "groups/useful_share": trained / len(sampled),
        "groups/sampled": float(len(sampled)),
        "groups/trained": float(trained),
        "completions/mean_length": float(lengths.mean()),
        "completions/truncated_share": float(1 - finished.mean()),
    }
    names = sampled[0].rewards.components
    for name in names:
        values = torch.cat([scored.rewards.components[name] for scored in sampled])
        mean = float(torch.nanmean(values))
        if math.isfinite(mean):
            metrics[f"reward/{name}"] = mean
    return metrics


def sizes_in_use(engine: PatientEngine, config: RunConfig) -> dict[str, float]:
    """What a step is cut into by now: settings under `memory/`, as numbers."""
    sizes = engine.sizes_in_use(config.num_generations, config.prompts_per_step)
    return {f"memory/{name.removeprefix('memory.')}": size for name, size in sizes.items()}
