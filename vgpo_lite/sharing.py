"""The work of a step, shared out to the processes of a run by whole groups; alone, a process does all of it.

What comes out is the same in every process: every group of the step, whoever worked on it, in one order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.processes import Told, team
from vgpo_lite.windows import (
    LearnedGroup,
    group_tensors,
    restored_group,
    restored_signals,
    signal_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from vgpo_lite.data_types import GroupSignals, Prompt
    from vgpo_lite.windows import ScoredGroup


def shared_rollouts(
    places: Sequence[int],
    prompts: Sequence[Prompt],
    sampled: Callable[[Sequence[int], Sequence[Prompt]], Sequence[ScoredGroup]],
) -> Sequence[ScoredGroup]:
    """One graded group per prompt, in their order.

    Args:
        places: Each prompt's place in the run.
        prompts: The prompts.
        sampled: Samples and grades groups for some of them.
    """
    if team().count == 1:
        return sampled(places, prompts)
    shares = _shares(prompt.input_ids.shape[0] for prompt in prompts)
    own = shares[team().rank]

    def work() -> Told:
        if not own:
            return Told(facts={"texts": []})
        groups = sampled([places[index] for index in own], [prompts[index] for index in own])
        return Told(
            facts={"texts": [scored.group.texts for scored in groups]},
            tensors=_numbered([group_tensors(scored) for scored in groups]),
        )

    told, groups = team().gathered(work), {}
    for share, part in zip(shares, told, strict=True):
        for number, (index, texts) in enumerate(zip(share, part.facts["texts"], strict=True)):
            tensors = _of(number, part.tensors)
            groups[index] = restored_group(tensors, prompt=prompts[index], place=places[index], texts=texts)
    return [groups[index] for index in range(len(prompts))]


def shared_looks(useful: Sequence[ScoredGroup], look: Callable[[ScoredGroup], GroupSignals]) -> Sequence[GroupSignals]:
    """What is seen of each group, in their order; `look` looks at one."""
    if team().count == 1:
        return [look(scored) for scored in useful]
    shares = _shares_of(useful)
    own = shares[team().rank]
    told = team().gathered(lambda: Told(tensors=_numbered([signal_tensors(look(useful[index])) for index in own])))
    signals = {
        index: restored_signals(_of(number, part.tensors))
        for share, part in zip(shares, told, strict=True)
        for number, index in enumerate(share)
    }
    return [signals[index] for index in range(len(useful))]


def shared_updates(
    useful: Sequence[ScoredGroup], learn: Callable[[int], LearnedGroup], *, parameters: Iterable[Parameter]
) -> Sequence[LearnedGroup]:
    """What was made of each group, in their order; the gradients of all are in `parameters` then, everywhere.

    Args:
        useful: The groups of the step.
        learn: Adds the gradient of the group at a place.
        parameters: The adapters.
    """
    if team().count == 1:
        return [learn(index) for index in range(len(useful))]
    shares = _shares_of(useful)

    def work() -> Told:
        groups = [learn(index) for index in shares[team().rank]]
        tensors = [signal_tensors(group.signals) | {"advantages": group.advantages} for group in groups]
        return Told(facts={"denominators": [group.denominator for group in groups]}, tensors=_numbered(tensors))

    told, learned = team().gathered(work), {}
    team().add_up(parameters)
    for share, part in zip(shares, told, strict=True):
        for number, (index, denominator) in enumerate(zip(share, part.facts["denominators"], strict=True)):
            tensors = _of(number, part.tensors)
            learned[index] = LearnedGroup(
                signals=restored_signals(tensors), advantages=tensors["advantages"], denominator=denominator
            )
    return [learned[index] for index in range(len(useful))]


def dealt(costs: Sequence[float], count: int) -> list[list[int]]:
    """Places of things, whole, dealt to so many processes: the dearest first, each to who has least so far.

    >>> dealt([3, 9, 4, 4], 2)
    [[1], [0, 2, 3]]
    >>> dealt([5, 5, 5, 5], 2)
    [[0, 2], [1, 3]]
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        least = loads.index(min(loads))
        shares[least].append(place)
        loads[least] += costs[place]
    return [sorted(share) for share in shares]


def _shares_of(groups: Sequence[ScoredGroup]) -> list[list[int]]:
    """By the tokens that go through the model: each prompt once, and every completion."""
    return _shares(scored.group.prompt.input_ids.shape[0] + scored.group.token_count for scored in groups)


def _shares(costs: Iterable[int]) -> list[list[int]]:
    return dealt([float(cost) for cost in costs], team().count)


def _numbered(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{number}.{name}": tensor for number, part in enumerate(parts) for name, tensor in part.items()}


def _of(number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{number}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
