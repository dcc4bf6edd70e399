"""Sample -> Prompt: one encoding per prompt, with its images where their marks stand, and nothing ever cut.

The user's turn is encoded as plain text: no spelling of a special token in it becomes one. So `<think>` in an
instruction is read letter by letter even by a tokenizer that has an untrained token of that name, and `<|image_pad|>`
in a question never becomes an image token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vgpo_lite.data_types import Prompt
from vgpo_lite.errors import ConfigError, DataError, ModelError, PromptTooLongError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from PIL import Image

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.data_types import Outline, Sample

IMAGE_MARK = "<image>"
"""Stands in a question where an image belongs."""

INSTRUCTIONS = {
    "reasoning": "Reason step by step between <think> and </think>. Then give the final answer in \\boxed{}.",
    "direct": "Give only the final answer, in \\boxed{}.",
}
"""What each prompt style asks for, below the question."""

_SLOT = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no chat template writes them
_TEMPLATE_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)
_TEXT_OUTPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


class ImageProcessor(Protocol):
    """What turns pixels into patches."""

    merge_size: int

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Patches of an image of that size, resizing included."""
        ...


class Tokenizer(Protocol):
    """What turns text into token ids."""

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` at work."""
        ...


class Processor(Protocol):
    """What `prompts` needs of a model's processor; those of transformers have it."""

    image_token: str
    image_token_id: int
    image_processor: ImageProcessor
    tokenizer: Tokenizer

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Render a conversation."""
        ...

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Mapping[str, Any]:
        """Encode texts, with each image token expanded, and images."""
        ...


@dataclass(frozen=True)
class _Layout:
    """A user turn cut at its marks: the texts between them, and what stands where (`i` an image, `t` the next text)."""

    pattern: str
    texts: tuple[str, ...]


def user_text(question: str, data: DataConfig) -> str:
    """What the user's turn says: the question and the instruction of the prompt style, or the user's template rendered.

    Args:
        question: The question, with its `<image>` marks.
        data: `prompt_style` and `prompt_template` are read. A template sees `question`.

    Raises:
        ConfigError: The template is broken, fails, or loses or adds an image mark.
    """
    if data.prompt_template is None:
        return f"{question}\n\n{INSTRUCTIONS[data.prompt_style]}"
    template = _compiled(data.prompt_template)
    try:
        text = template.render(question=question)
    except _TEMPLATE_FAILURES as error:
        raise ConfigError(f"data.prompt_template fails: {error}; it may use `question`, and nothing else") from error
    wanted, found = question.count(IMAGE_MARK), text.count(IMAGE_MARK)
    if wanted != found:
        raise ConfigError(
            f"data.prompt_template turns {wanted} image marks into {found}; write {{{{ question }}}} exactly once, and "
            f"no {IMAGE_MARK} of its own"
        )
    return text


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ConfigError(f"data.prompt_template is no Jinja template: {error}") from error


def encode_prompt(sample: Sample, processor: Processor, data: DataConfig) -> Prompt:
    """Encode one sample for one model.

    Images are scaled into `data.min_pixels` .. `data.max_pixels`, to whole patches; only an image so long and thin that
    its short side would vanish keeps more, at most one token per 28 (32) pixels of its long side.

    Args:
        sample: The row.
        processor: The model's.
        data: Prompt style or template, pixel budget and the longest prompt.

    Raises:
        ConfigError: The user's prompt template cannot be used.
        DataError: Marks and images do not match, or image tokens and image features do not.
        PromptTooLongError: The prompt holds more than `data.max_prompt_length` tokens.
        ModelError: The model's chat template loses or repeats a part of the question.
    """
    layout = _layout(user_text(sample.question, data))
    if layout.pattern.count("i") != len(sample.images):
        raise DataError(f"{sample.sample_id}: {layout.pattern.count('i')} image marks for {len(sample.images)} images")
    segments = _segments(layout, processor)
    encoded = _encoded(segments, sample.images, processor, data)
    ids, in_image = _woven(encoded["input_ids"], layout, processor)
    _check_length(sample.sample_id, len(ids), data)
    vision = {name: value for name, value in encoded.items() if name not in _TEXT_OUTPUTS}
    _check_features(sample.sample_id, ids.count(processor.image_token_id), vision, processor)
    return Prompt(
        sample=sample,
        text="".join(piece for pair in zip(segments, (*layout.texts, ""), strict=True) for piece in pair),
        input_ids=torch.tensor(ids, dtype=torch.long),
        image_mask=torch.tensor(in_image, dtype=torch.bool),
        vision=vision,
    )


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
    lengths = []
    for outline in outlines:
        layout = _layout(user_text(outline.question, data))
        if layout.pattern not in frames:
            encoded = _encoded(_segments(layout, processor), (), processor, data)
            frames[layout.pattern] = sum(map(len, encoded["input_ids"])) - layout.pattern.count("i")
        text = sum(len(_plain_ids(text, processor)) for text in layout.texts)
        images = sum(image_tokens(size, processor, data) for size in outline.image_sizes)
        lengths.append(frames[layout.pattern] + text + images)
    return lengths


def image_tokens(size: tuple[int, int], processor: Processor, data: DataConfig) -> int:
    """Tokens that an image of that height and width takes under the pixel budget."""
    patches = processor.image_processor.get_number_of_image_patches(*size, _pixel_budget(data))
    return patches // processor.image_processor.merge_size**2


def _pixel_budget(data: DataConfig) -> dict[str, Any]:
    return {"min_pixels": data.min_pixels, "max_pixels": data.max_pixels}


def _layout(text: str) -> _Layout:
    pattern, texts = "", []
    for place, piece in enumerate(text.split(IMAGE_MARK)):
        pattern += "i" if place else ""
        if piece:
            pattern += "t"
            texts.append(piece)
    return _Layout(pattern, tuple(texts))


def _segments(layout: _Layout, processor: Processor) -> list[str]:
    """The model's own text around the user's: one string before, between and behind the texts of the layout."""
    slots = iter(range(len(layout.texts)))
    content = [
        {"type": "image"} if kind == "i" else {"type": "text", "text": f"\ue000{next(slots)}\ue001"}
        for kind in layout.pattern
    ]
    try:
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise ModelError(f"the model's chat template cannot be rendered: {error}") from error
    pieces = _SLOT.split(rendered)
    images = sum(segment.count(processor.image_token) for segment in pieces[::2])
    if pieces[1::2] != [str(slot) for slot in range(len(layout.texts))] or images != layout.pattern.count("i"):
        raise ModelError(
            f"the model's chat template makes {len(pieces[1::2])} texts and {images} images of a turn with "
            f"{len(layout.texts)} texts and {layout.pattern.count('i')} images; a vision model's own template is needed"
        )
    return pieces[::2]


def _encoded(
    segments: Sequence[str], images: Sequence[Image.Image], processor: Processor, data: DataConfig
) -> Mapping[str, Any]:
    """What the processor makes of the model's own text, a list of ids for each segment, and of the images.

    Images fill the image tokens of the segments in order.
    """
    text_options = {"add_special_tokens": False, "padding": False}
    if not images:
        return processor(text=list(segments), text_kwargs=text_options)
    return processor(
        images=list(images), text=list(segments), text_kwargs=text_options, images_kwargs=_pixel_budget(data)
    )


def _woven(segment_ids: Sequence[Sequence[int]], layout: _Layout, processor: Processor) -> tuple[list[int], list[bool]]:
    """The ids of the whole prompt, and which of them are image tokens: those of the model's own text alone."""
    ids: list[int] = []
    in_image: list[bool] = []
    for place, segment in enumerate(segment_ids):
        ids += segment
        in_image += [token == processor.image_token_id for token in segment]
        if place < len(layout.texts):
            plain = _plain_ids(layout.texts[place], processor)
            ids += plain
            in_image += [False] * len(plain)
    return ids, in_image


def _plain_ids(text: str, processor: Processor) -> list[int]:
    """Token ids of a text in which nothing is special: the tokenizer's steps without its table of added tokens."""
    backend = processor.tokenizer.backend_tokenizer
    normalizer, model = backend.normalizer, backend.model
    normal = text if normalizer is None else normalizer.normalize_str(text)
    pieces = [(normal, ())] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(normal)
    return [token.id for piece, _ in pieces for token in model.tokenize(piece)]


def _check_length(sample_id: str, length: int, data: DataConfig) -> None:
    if length > data.max_prompt_length:
        raise PromptTooLongError(
            f"{sample_id}: the prompt holds {length} tokens, data.max_prompt_length is {data.max_prompt_length}; "
            "nothing is cut: raise it, or lower data.max_pixels"
        )


def _check_features(sample_id: str, tokens: int, vision: Mapping[str, Any], processor: Processor) -> None:
    grids = vision.get("image_grid_thw")
    features = 0 if grids is None else int(grids.prod(-1).sum()) // processor.image_processor.merge_size**2
    if tokens != features:
        raise DataError(f"{sample_id}: {tokens} image tokens for {features} image features; the processor miscounts")
