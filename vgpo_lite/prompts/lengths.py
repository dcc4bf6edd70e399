"""How long prompts are, told without decoding an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.planning import PromptSize
from vgpo_lite.prompts.pieces import encoded_segments, frame_segments, image_tokens, layout_of, normal_text, plain_ids
from vgpo_lite.prompts.wording import user_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.data_types import Outline
    from vgpo_lite.prompts.processor import Processor


def prompt_lengths(outlines: Iterable[Outline], processor: Processor, data: DataConfig) -> list[int]:
    """Tokens of each row's prompt, image tokens included, without decoding an image: what `encode_prompt` would make.

    Args:
        outlines: The rows.
        processor: The model's.
        data: Prompt style or template and pixel budget.

    Raises:
        ConfigError: The user's prompt template cannot be used.
        ModelError: The model's chat template loses or repeats a part of the question.
    """
    frames: dict[str, int] = {}
    return [_length(outline, frames, processor, data) for outline in outlines]


def largest_prompt(outlines: Iterable[Outline], processor: Processor, data: DataConfig) -> PromptSize:
    """The most that a prompt of these rows holds: the tokens of the longest, the images of the one that shows most.

    As quick as `prompts_fit`: only rows that may be the longest are tokenized. Rows whose prompt is longer than
    `data.max_prompt_length` are not looked at.

    Args:
        outlines: The rows.
        processor: The model's.
        data: Prompt style or template, pixel budget and the longest prompt.

    Raises:
        ConfigError: The user's prompt template cannot be used.
        ModelError: The model's chat template loses or repeats a part of the question.
    """
    frames: dict[str, int] = {}
    known = [
        (_length(outline, frames, processor, data, text_length=_most_tokens), place, outline)
        for place, outline in enumerate(outlines)
    ]
    longest, images = 2, ()
    for most, _, outline in sorted(known, reverse=True):
        if most <= longest:
            break
        length = _length(outline, frames, processor, data)
        longest = length if longest < length <= data.max_prompt_length else longest
    for _, _, outline in known:
        shown = tuple(image_tokens(size, processor, data) for size in outline.image_sizes)
        images = max(images, shown, key=sum) if sum(shown) < data.max_prompt_length else images
    return PromptSize(text_tokens=max(longest - sum(images), 0), images=images)


def prompts_fit(outlines: Iterable[Outline], processor: Processor, data: DataConfig) -> list[bool]:
    """Whether each row's prompt holds at most `data.max_prompt_length` tokens; as `prompt_lengths`, and far quicker.

    A text has no more tokens than bytes, so that only rows near the limit are tokenized.

    Args:
        outlines: The rows.
        processor: The model's.
        data: Prompt style or template, pixel budget and the longest prompt.

    Raises:
        ConfigError: The user's prompt template cannot be used.
        ModelError: The model's chat template loses or repeats a part of the question.
    """
    frames: dict[str, int] = {}
    limit = data.max_prompt_length
    return [
        _length(outline, frames, processor, data, text_length=_most_tokens) <= limit
        or _length(outline, frames, processor, data) <= limit
        for outline in outlines
    ]


def _length(
    outline: Outline,
    frames: dict[str, int],
    processor: Processor,
    data: DataConfig,
    *,
    text_length: Callable[[str, Processor], int] | None = None,
) -> int:
    """Tokens of one prompt; `frames` remembers those of the model's own text around each arrangement of images."""
    layout = layout_of(user_text(outline.question, data))
    if layout.pattern not in frames:
        encoded = encoded_segments(frame_segments(layout, processor), (), processor, data)
        frames[layout.pattern] = sum(map(len, encoded["input_ids"])) - layout.pattern.count("i")
    count = text_length or _tokens
    text = sum(count(piece, processor) for piece in layout.texts)
    return frames[layout.pattern] + text + sum(image_tokens(size, processor, data) for size in outline.image_sizes)


def _tokens(text: str, processor: Processor) -> int:
    return len(plain_ids(text, processor))


def _most_tokens(text: str, processor: Processor) -> int:
    """No token stands for less than a byte of the normalized text; a tokenizer may put one mark of its own in front."""
    return len(normal_text(text, processor).encode()) + 1
