"""A window: one batch of graded rollouts and the optimizer steps still to be taken on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vgpo_lite.data_types import GroupRewards, GroupSignals, RolloutGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.data_types import Prompt


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """One prompt's completions with what they earned.

    Attributes:
        group: The completions that may train.
        rewards: What each of them earned.
        advantages: The group-relative advantage of each, from the rewards of the whole group.
        place: The prompt's place in the order of draws, from 0.
    """

    group: RolloutGroup
    rewards: GroupRewards
    advantages: Float[Tensor, " group"]
    place: int

    @property
    def is_useful(self) -> bool:
        """Whether the group tells better completions from worse: else its advantages are all zero."""
        return bool(self.advantages.ne(0).any())

    def without_truncated(self) -> ScoredGroup:
        """The group without the completions that were cut at the limit; their rewards stay in the advantages."""
        rows = self.group.finished
        return ScoredGroup(
            group=replace(
                self.group,
                completion_ids=self.group.completion_ids[rows],
                completion_mask=self.group.completion_mask[rows],
                sampling_logprobs=self.group.sampling_logprobs[rows],
                decode_focus=None if self.group.decode_focus is None else self.group.decode_focus[rows],
                finished=self.group.finished[rows],
                texts=tuple(text for text, kept in zip(self.group.texts, rows.tolist(), strict=True) if kept),
            ),
            rewards=GroupRewards(
                rewards=self.rewards.rewards[rows],
                components={name: values[rows] for name, values in self.rewards.components.items()},
            ),
            advantages=self.advantages[rows],
            place=self.place,
        )


@dataclass(frozen=True, kw_only=True)
class LearnedGroup:
    """What a group's part of a step's gradient came from.

    Attributes:
        signals: What was seen of the group.
        advantages: Weighted advantage of each token.
        denominator: Of the whole optimizer step.
    """

    signals: GroupSignals
    advantages: Float[Tensor, "group token"]
    denominator: float


@dataclass(frozen=True, kw_only=True)
class Window:
    """Rollouts and how far they have been trained on.

    Attributes:
        sampled: Every group that was sampled, for the records of the first update; empty in a resumed window.
        useful: The groups that train.
        signals: What was seen of each useful group before the first of several updates; empty where there is one update
            per rollout, which looks while it updates.
        metrics: What was sampled and earned, over every sampled group.
        draws: Prompts drawn by the run up to and including this window.
        updates: Optimizer steps taken on it so far.
    """

    sampled: Sequence[ScoredGroup]
    useful: Sequence[ScoredGroup]
    signals: Sequence[GroupSignals]
    metrics: Mapping[str, float]
    draws: int
    updates: int = 0

    @property
    def shows_images(self) -> bool:
        """Whether any prompt that trains has an image."""
        return any(scored.group.prompt.has_image for scored in self.useful)

    @property
    def token_count(self) -> int:
        """Completion tokens that train."""
        return sum(scored.group.token_count for scored in self.useful)

    @property
    def completion_count(self) -> int:
        """Completions that train."""
        return sum(len(scored.group.texts) for scored in self.useful)


def window_tensors(window: Window) -> dict[str, Tensor]:
    """The useful groups of a window and its counters, as tensors a checkpoint keeps."""
    tensors: dict[str, Tensor] = {
        "draws": torch.tensor(window.draws),
        "updates": torch.tensor(window.updates),
        "places": torch.tensor([scored.place for scored in window.useful]),
        **{f"metric.{name}": torch.tensor(value, dtype=torch.float64) for name, value in window.metrics.items()},
    }
    for index, (scored, signals) in enumerate(zip(window.useful, window.signals, strict=True)):
        fields = group_tensors(scored) | signal_tensors(signals)
        tensors |= {f"{index}.{name}": tensor for name, tensor in fields.items()}
    return tensors


def group_tensors(scored: ScoredGroup) -> dict[str, Tensor]:
    """A group and what it earned, without its prompt and texts."""
    fields = {
        "completion_ids": scored.group.completion_ids,
        "completion_mask": scored.group.completion_mask,
        "sampling_logprobs": scored.group.sampling_logprobs,
        "decode_focus": scored.group.decode_focus,
        "finished": scored.group.finished,
        "rewards": scored.rewards.rewards,
        "advantages": scored.advantages,
        **{f"component.{name}": values for name, values in scored.rewards.components.items()},
    }
    return {name: tensor for name, tensor in fields.items() if tensor is not None}


def signal_tensors(signals: GroupSignals) -> dict[str, Tensor]:
    """What was seen of a group."""
    fields = {
        "focus": signals.focus,
        "old_logprobs": signals.old_logprobs,
        "ref_logprobs": signals.ref_logprobs,
    }
    return {name: tensor for name, tensor in fields.items() if tensor is not None}


def restored_group(tensors: Mapping[str, Tensor], *, prompt: Prompt, place: int, texts: Sequence[str]) -> ScoredGroup:
    """The group that `group_tensors` was given."""
    components = {n.removeprefix("component."): v for n, v in tensors.items() if n.startswith("component.")}
    return ScoredGroup(
        group=RolloutGroup(
            prompt=prompt,
            completion_ids=tensors["completion_ids"],
            completion_mask=tensors["completion_mask"],
            sampling_logprobs=tensors["sampling_logprobs"],
            decode_focus=tensors.get("decode_focus"),
            finished=tensors["finished"],
            texts=tuple(texts),
        ),
        rewards=GroupRewards(rewards=tensors["rewards"], components=components),
        advantages=tensors["advantages"],
        place=place,
    )


def restored_signals(tensors: Mapping[str, Tensor]) -> GroupSignals:
    """What `signal_tensors` was given."""
    return GroupSignals(
        focus=tensors.get("focus"), old_logprobs=tensors.get("old_logprobs"), ref_logprobs=tensors.get("ref_logprobs")
    )


def restored_window(
    tensors: Mapping[str, Tensor],
    *,
    prompt_at: Callable[[int], Prompt],
    text_of: Callable[[Float[Tensor, " token"]], str],
) -> Window:
    """The window that `window_tensors` wrote; prompts and texts are made again from their places and ids."""
    useful: list[ScoredGroup] = []
    signals: list[GroupSignals] = []
    for index, place in enumerate(tensors["places"].tolist()):
        prefix = f"{index}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        texts = [text_of(row[kept]) for row, kept in zip(own["completion_ids"], own["completion_mask"], strict=True)]
        useful.append(restored_group(own, prompt=prompt_at(place), place=place, texts=texts))
        signals.append(restored_signals(own))
    return Window(
        sampled=(),
        useful=useful,
        signals=signals,
        metrics={n.removeprefix("metric."): float(v) for n, v in tensors.items() if n.startswith("metric.")},
        draws=int(tensors["draws"]),
        updates=int(tensors["updates"]),
    )
