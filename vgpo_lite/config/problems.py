"""What is wrong with a configuration, in words: the key, its value, its place, what was expected, what is near."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from vgpo_lite.config.settings import sections, settings
from vgpo_lite.errors import ConfigError

KNOWN_ELSEWHERE = {
    "beta": "focus.beta (compensation) or kl_coefficient (KL)",
    "epsilon": "clip_low",
    "epsilon_high": "clip_high",
    "loss_type": "loss",
    "lr": "learning_rate",
    "steps": "max_steps",
    "group_size": "num_generations",
    "max_new_tokens": "max_completion_length",
    "per_device_train_batch_size": "prompts_per_step",
    "batch_size": "prompts_per_step",
    "gradient_accumulation_steps": "prompts_per_step",
    "max_train_steps": "max_steps",
    "num_train_epochs": "max_steps",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "output_dir": "output",
    "model_name_or_path": "model",
    "dataset_name": "dataset",
    "load_in_4bit": "quantization",
    "bf16": "dtype",
    "fp16": "dtype",
    "reward_funcs": "reward.functions",
    "reward_weights": "reward.functions",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "lora_alpha": "lora.alpha",
}
"""Names of TRL, peft, transformers and Unsloth for what a setting here does."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        text: What it is, value included, without a full stop.
        source: Where it stands, such as `my.yaml, line 3` or `--set focus.beta=x`; empty where there is no such place.
        expected: The values that would do; empty where the text says it.
        near: What was most likely meant; None where nothing is near.
    """

    text: str
    source: str = ""
    expected: str = ""
    near: str | None = None

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.text}{place}{expected}" + (f"; did you mean {self.near}?" if self.near else ".")


def raise_if_any(problems: Sequence[Problem]) -> None:
    """Stop with all problems in one message.

    Raises:
        ConfigError: There is at least one.
    """
    if len(problems) == 1:
        raise ConfigError(str(problems[0]))
    if problems:
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        raise ConfigError(f"{len(problems)} things in the configuration need a change:\n{lines}")


def unknown_key(key: str, source: str) -> Problem:
    """A key that no setting has, with the nearest that one has."""
    return Problem(text=f"{key} is not a setting", source=source, near=nearest_key(key))


def nearest_key(key: str) -> str | None:
    """The setting someone who wrote `key` most likely meant: in another section, by another library, misspelt.

    >>> nearest_key("max_pixels")
    'data.max_pixels'
    >>> nearest_key("epsilon_high")
    'clip_high'
    >>> nearest_key("focus.betta")
    'focus.beta'
    >>> nearest_key("wings") is None
    True
    """
    last = key.rpartition(".")[2].lower()
    elsewhere = [name for name in settings() if name.rpartition(".")[2] == last]
    if last in KNOWN_ELSEWHERE and "." not in key:
        return KNOWN_ELSEWHERE[last]
    if len(elsewhere) == 1:
        return elsewhere[0]
    by_full_name = nearest(key, [*settings(), *sections()])
    if by_full_name is not None:
        return by_full_name
    by_last_name = nearest(last, [name.rpartition(".")[2] for name in settings()])
    return next((name for name in settings() if name.rpartition(".")[2] == by_last_name), None)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is spelt most like `word`, whatever the case; None where none is near."""
    by_lowered = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lowered, n=1, cutoff=0.6)
    return by_lowered[found[0]] if found else None


def wrong_value(key: str, value: object, source: str) -> Problem:
    """A setting with a value outside its type or range, with what was expected."""
    setting = settings()[key]
    rather = nearest(value, setting.choices) if isinstance(value, str) else None
    return Problem(text=f"{key} is {shown(value)}", source=source, expected=setting.expected, near=rather)


def shown(value: object) -> str:
    """A value as the user would write it, cut where it is long.

    >>> shown(None), shown(True), shown("fast"), shown(3)
    ('null', 'true', "'fast'", '3')
    """
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)


def from_validation(error: ValidationError, values: Mapping[str, object], sources: Mapping[str, str]) -> list[Problem]:
    """The schema's complaints about merged values, one for each setting, in plain words.

    Args:
        error: What pydantic raised.
        values: The merged values by full key.
        sources: Where each came from.
    """
    problems: dict[str, Problem] = {}
    for complaint in error.errors():
        key = _key_of(complaint["loc"])
        rule = complaint.get("ctx", {}).get("error")
        if isinstance(rule, ValueError):  # one of the schema's own rules: its sentence says it all
            problems.setdefault(str(rule), Problem(text=str(rule), source=sources.get(key, "")))
        elif key in values:
            problems.setdefault(key, wrong_value(key, values[key], sources[key]))
        else:
            problems.setdefault(key, Problem(text=f"{key}: {complaint['msg']}"))
    return list(problems.values())


def _key_of(location: tuple[int | str, ...]) -> str:
    """The setting a location of pydantic's lies in: what follows it names alternatives and entries of tables."""
    parts = [str(part) for part in location]
    candidates = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((key for key in candidates if key in settings()), ".".join(parts))
