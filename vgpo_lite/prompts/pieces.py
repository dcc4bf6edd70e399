"""What a prompt is woven from: the model's own text, the user's texts as plain ids, and images in whole tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from vgpo_lite.data_types import IMAGE_MARK
from vgpo_lite.errors import ModelError

if TYPE_CHECKING:
    from PIL import Image

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.prompts.processor import Processor

_SLOT = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no chat template writes them


@dataclass(frozen=True)
class Layout:
    """A user turn cut at its marks: the texts between them, and what stands where (`i` an image, `t` the next text)."""

    pattern: str
    texts: tuple[str, ...]


def layout_of(text: str) -> Layout:
    """Cut a user turn at its marks; empty texts are left out."""
    pattern, texts = "", []
    for place, piece in enumerate(text.split(IMAGE_MARK)):
        pattern += "i" if place else ""
        if piece:
            pattern += "t"
            texts.append(piece)
    return Layout(pattern, tuple(texts))


def frame_segments(layout: Layout, processor: Processor) -> list[str]:
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


def encoded_segments(
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


def plain_ids(text: str, processor: Processor) -> list[int]:
    """Token ids of a text in which nothing is special: the tokenizer's steps without its table of added tokens."""
    backend = processor.tokenizer.backend_tokenizer
    normal, model = normal_text(text, processor), backend.model
    pieces = [(normal, ())] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(normal)
    return [token.id for piece, _ in pieces for token in model.tokenize(piece)]


def normal_text(text: str, processor: Processor) -> str:
    """A text in the form of Unicode that the tokenizer reads."""
    normalizer = processor.tokenizer.backend_tokenizer.normalizer
    return text if normalizer is None else normalizer.normalize_str(text)


def image_tokens(size: tuple[int, int], processor: Processor, data: DataConfig) -> int:
    """Tokens that an image of that height and width, in pixels, takes under the pixel budget; never fewer than one."""
    patches = processor.image_processor.get_number_of_image_patches(*size, _pixel_budget(data))
    return patches // processor.image_processor.merge_size**2


def _pixel_budget(data: DataConfig) -> dict[str, Any]:
    return {"min_pixels": data.min_pixels, "max_pixels": data.pixel_budget}
