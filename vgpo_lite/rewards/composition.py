"""What a completion earns: built-in rewards and the user's own, each with its weight.

A user's function is a guest. It comes from a file of the user's, is called as TRL calls it, and whatever it does wrong
stops the run before the optimizer step, with its name and what it was asked to judge.
"""

from __future__ import annotations

import inspect
import math
import reprlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vgpo_lite.errors import RewardError
from vgpo_lite.rewards.form import format_reward
from vgpo_lite.rewards.guests import BUILT_IN, GUEST_FAULTS, load_guest

if TYPE_CHECKING:
    from types import ModuleType

    from vgpo_lite.data_types import RolloutGroup

_SHOWN_CHARACTERS = 200  # enough of a completion to recognise it in a one-line message


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """A reward and its weight.

    Attributes:
        name: What it is called in metrics, unique among the run's rewards.
        source: How the configuration names it.
        weight: Factor in the weighted sum.
        call: The function, with TRL's signature.
    """

    name: str
    source: str
    weight: float
    call: Callable[..., object]


def load_rewards(weights: Mapping[str, float], accuracy: Callable[..., object]) -> list[RewardFunction]:
    """Return the rewards that a configuration names, the user's files loaded.

    Args:
        weights: Weight by name: `accuracy`, `format` or `file.py:function`.
        accuracy: What grades answers.

    Raises:
        ConfigError: A name is unknown, a file or function is missing, a file does not load, or a
            function is asynchronous. The message has the nearest name.
    """
    modules: dict[Path, ModuleType] = {}
    rewards: list[RewardFunction] = []
    for source, weight in weights.items():
        if source in BUILT_IN:
            name, call = source, accuracy if source == "accuracy" else format_reward
        else:
            name, call = load_guest(source, modules)
        taken = {*BUILT_IN, *(reward.name for reward in rewards)} if source not in BUILT_IN else set()
        name = next(choice for choice in (name, f"{Path(source).stem}.{name}", source) if choice not in taken)
        rewards.append(RewardFunction(name=name, source=source, weight=weight, call=call))
    return rewards


def judged(reward: RewardFunction, group: RolloutGroup) -> list[float | None]:
    """Call a reward on the completions of one prompt, as TRL calls it, and check what it returns.

    It is given those of the following that it accepts: `prompts` and `completions` as conversations (lists of
    `{"role", "content"}`), `completion_ids` without padding, the gold as `solution` and `answer`, the `images`, and the
    row's other columns, each a list with one entry per completion.

    Returns:
        One finite reward per completion; None where the function abstained.

    Raises:
        RewardError: It raised, or returned anything but a list of one finite number or None per completion.
    """
    arguments = _accepted(reward.call, _columns(group))
    try:
        values = reward.call(**arguments)
    except GUEST_FAULTS as error:
        if reward.source in BUILT_IN:
            raise
        raise _complaint(reward, group, f"raised {_described(error)}") from error
    count = len(group.texts)
    if inspect.iscoroutine(values):
        values.close()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise _complaint(reward, group, f"returned {type(values).__name__}; expected a list of {count} numbers or None")
    if len(values) != count:
        raise _complaint(reward, group, f"returned {len(values)} values; expected {count}, one per completion")
    return [_checked(reward, group, row, value) for row, value in enumerate(values)]


def _checked(reward: RewardFunction, group: RolloutGroup, row: int, value: object) -> float | None:
    """Return one value as a float, or None where the function abstained."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)  # pyright: ignore[reportArgumentType]
    except GUEST_FAULTS:
        number = math.nan
    if not math.isfinite(number):
        fault = f"returned {reprlib.repr(value)} for completion {row}; expected a finite number or None"
        raise _complaint(reward, group, fault, row=row)
    return number


def _columns(group: RolloutGroup) -> dict[str, list[object]]:
    """Return what TRL would pass for a group."""
    sample, count = group.prompt.sample, len(group.texts)
    ids = [row[kept].tolist() for row, kept in zip(group.completion_ids, group.completion_mask, strict=True)]
    row = {"images": list(sample.images), **sample.columns, "answer": sample.answer, "solution": sample.answer}
    repeated: dict[str, list[object]] = {name: [value] * count for name, value in row.items()}
    return repeated | {
        "prompts": [[{"role": "user", "content": sample.question}] for _ in range(count)],
        "completions": [[{"role": "assistant", "content": text}] for text in group.texts],
        "completion_ids": ids,
    }


def _accepted(call: Callable[..., object], arguments: dict[str, list[object]]) -> dict[str, list[object]]:
    """Return the arguments that a function takes: all where it has `**kwargs` or hides its signature."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return arguments
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    return {parameter.name: arguments[parameter.name] for parameter in parameters if parameter.name in arguments}


def _described(error: BaseException) -> str:
    """Return an error in words, with the place where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return f"{words} ({Path(place.filename).name}, line {place.lineno})"


def _complaint(reward: RewardFunction, group: RolloutGroup, fault: str, *, row: int = 0) -> RewardError:
    """Return the error that names the function, the fault, the sample and the beginning of a completion."""
    sample = group.prompt.sample
    return RewardError(
        f"reward function {reward.source} {fault}. Sample {sample.sample_id}, completion {row} begins: "
        f"{group.texts[row][:_SHOWN_CHARACTERS]!r}. (The text of a completion is completion[0]['content'].)",
        evidence={
            "function": reward.source,
            "fault": fault,
            "sample_id": sample.sample_id,
            "question": sample.question,
            "answer": sample.answer,
            "completion": row,
            "completions": list(group.texts),
        },
    )
