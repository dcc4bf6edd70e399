"""How long prompts are, told without decoding an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from vgpo_lite.errors import ImageOrderError
from vgpo_lite.planning import PromptSize
from vgpo_lite.prompts.pieces import frame_of, layout_of, prompt_image_tokens, shown_images
from vgpo_lite.prompts.showing import showing_of
from vgpo_lite.prompts.weaving import normal_text, plain_ids, stretches
from vgpo_lite.prompts.wording import user_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.data_types import Outline
    from vgpo_lite.prompts.pieces import Frame, Layout
    from vgpo_lite.prompts.processor import Processor
    from vgpo_lite.prompts.showing import Shown


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
    lengths = _Lengths(processor, data)
    return [lengths.exact(outline) for outline in outlines]


def prompts_in_order(outlines: Iterable[Outline], processor: Processor, data: DataConfig) -> list[bool]:
    """Whether the model's chat template leaves each row's images where its text speaks of them.

    Args:
        outlines: The rows.
        processor: The model's.
        data: Prompt style or template.

    Raises:
        ConfigError: The user's prompt template cannot be used.
        ModelError: The model's chat template loses or repeats a part of the question.
    """
    lengths = _Lengths(processor, data)
    return [lengths.keeps_order(outline) for outline in outlines]


def largest_prompt(outlines: Iterable[Outline], processor: Processor, data: DataConfig) -> PromptSize:
    """The most that a prompt of these rows holds: the tokens of the longest, the images of the one that shows most.

    Rows are tokenized from the longest text on, until no other can hold more; where texts are about equally long, that
    is most of them. Rows whose prompt is longer than `data.max_prompt_length`, or whose images the chat template moves
    away from their text, are not looked at.

    Args:
        outlines: The rows.
        processor: The model's.
        data: Prompt style or template, pixel budget and the longest prompt.

    Raises:
        ConfigError: The user's prompt template cannot be used.
        ModelError: The model's chat template loses or repeats a part of the question.
    """
    lengths = _Lengths(processor, data)
    showable = [outline for outline in outlines if lengths.keeps_order(outline)]
    known = [(lengths.most(outline), place, outline) for place, outline in enumerate(showable)]
    longest, images = 2, ()
    for most, _, outline in sorted(known, reverse=True):
        if most <= longest:
            break
        length = lengths.exact(outline)
        longest = length if longest < length <= data.max_prompt_length else longest
    for _, _, outline in known:
        shown = prompt_image_tokens(outline.image_sizes, processor, data)
        images = max(images, shown, key=sum) if sum(shown) < data.max_prompt_length else images
    return PromptSize(text_tokens=max(longest - sum(images), 0), images=images)


def longest_prompts(outlines: Iterable[Outline], processor: Processor, data: DataConfig, *, count: int) -> list[int]:
    """The places of the longest prompts, the longest first; rows are tokenized until no other can be among them.

    Args:
        outlines: The rows.
        processor: The model's.
        data: Prompt style or template and pixel budget.
        count: How many are asked for.

    Raises:
        ConfigError: The user's prompt template cannot be used.
        ModelError: The model's chat template loses or repeats a part of the question.
    """
    lengths = _Lengths(processor, data)
    known = [(lengths.most(outline), place, outline) for place, outline in enumerate(outlines)]
    longest: list[tuple[int, int]] = []
    for most, place, outline in sorted(known, key=lambda row: row[0], reverse=True):
        if len(longest) == count and most <= longest[-1][0]:
            break
        longest = sorted([*longest, (lengths.exact(outline), place)], reverse=True)[:count]
    return [place for _, place in longest]


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
    lengths, limit = _Lengths(processor, data), data.max_prompt_length
    return [lengths.most(outline) <= limit or lengths.exact(outline) <= limit for outline in outlines]


class _Counted(NamedTuple):
    """What was counted for a processor, and for which settings and vocabulary that holds."""

    data: DataConfig
    vocabulary: int
    frames: dict[str, Frame]
    tokens: dict[tuple[object, ...], int]


_counted: WeakKeyDictionary[Processor, _Counted] = WeakKeyDictionary()
"""Of each processor in use, the last of it: a run asks for its rows' lengths several times before it starts."""


class _Lengths:
    """Tokens of prompts. Questions that come again with images of the same sizes are counted once."""

    def __init__(self, processor: Processor, data: DataConfig) -> None:
        self._processor = processor
        self._data = data
        self._token, _ = showing_of(processor).token(processor)
        vocabulary, before = processor.tokenizer.backend_tokenizer.get_vocab_size(), _counted.get(processor)
        if before is None or (before.data, before.vocabulary) != (data, vocabulary):
            before = _counted[processor] = _Counted(data, vocabulary, {}, {})
        self._frames, self._known = before.frames, before.tokens

    def exact(self, outline: Outline) -> int:
        """As many as the encoded prompt has."""
        return self._of(outline, _tokens)

    def most(self, outline: Outline) -> int:
        """No fewer than it has, without tokenizing."""
        return self._of(outline, _most_tokens)

    def keeps_order(self, outline: Outline) -> bool:
        """Whether there is such a prompt at all."""
        try:
            self._frame(layout_of(user_text(outline.question, self._data)))
        except ImageOrderError:
            return False
        return True

    def _of(self, outline: Outline, count: Callable[[str, Processor], int]) -> int:
        key = (count, outline.question, outline.image_sizes)
        if key not in self._known:
            layout = layout_of(user_text(outline.question, self._data))
            shown = shown_images(outline.image_sizes, self._processor, self._data)
            once = [image._replace(run=1) for image in shown]  # the rest is added: tokens in thousands need no cutting
            parts = self._frame(layout).parts(layout, once, self._processor)
            pieces = stretches(parts, self._processor)
            tokens = sum(1 if isinstance(piece, int) else count(piece, self._processor) for piece in pieces)
            self._known[key] = tokens + sum(map(self._features, shown)) - sum(map(self._features, once))
        return self._known[key]

    def _features(self, shown: Shown) -> int:
        return shown.features(self._token)

    def _frame(self, layout: Layout) -> Frame:
        """The model's own text around one arrangement of texts and images."""
        if layout.pattern not in self._frames:
            self._frames[layout.pattern] = frame_of(layout, self._processor)
        return self._frames[layout.pattern]


def _tokens(text: str, processor: Processor) -> int:
    return len(plain_ids(text, processor))


def _most_tokens(text: str, processor: Processor) -> int:
    """No token stands for less than a byte of the normalized text; a tokenizer may put one mark of its own in front."""
    return len(normal_text(text, processor).encode()) + 1
