"""What a prompt is woven from: the model's own text, the user's texts as plain ids, and images in whole tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError
from PIL import Image

from vgpo_lite.data_types import IMAGE_MARK
from vgpo_lite.errors import ModelError
from vgpo_lite.prompts.showing import showing_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.prompts.grids import Grid
    from vgpo_lite.prompts.processor import Processor
    from vgpo_lite.prompts.showing import Shown, Size

_SLOT = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no chat template writes them
_IMAGE = "\ue0000\ue001"
_TEXT_OUTPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


@dataclass(frozen=True)
class Layout:
    """A user turn cut at its marks: the texts between them, and what stands where (`i` an image, `t` the next text)."""

    pattern: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Frame:
    """The model's own text around the user's.

    Attributes:
        segments: One string before, between and behind the texts of the layout.
        leads: What goes in front of each text: a space that the template writes there, which the tokenizer reads with
            the word behind it, or all white space between an image and the text, which it may read with more of it.
    """

    segments: tuple[str, ...]
    leads: tuple[str, ...]


def layout_of(text: str) -> Layout:
    """Cut a user turn at its marks; empty texts are left out."""
    pattern, texts = "", []
    for place, piece in enumerate(text.split(IMAGE_MARK)):
        pattern += "i" if place else ""
        if piece:
            pattern += "t"
            texts.append(piece)
    return Layout(pattern, tuple(texts))


def frame_of(layout: Layout, processor: Processor) -> Frame:
    """The model's own text for an arrangement of texts and images.

    A template may show images elsewhere than where their marks stand, such as in front of all text, as long as no text
    stands between them.

    Raises:
        ModelError: The chat template cannot be rendered, loses or repeats a part of the turn, or moves images away from
            a text between them.
    """
    slots = iter(range(len(layout.texts)))
    content = [
        {"type": "image"} if kind == "i" else {"type": "text", "text": f"\ue000{next(slots)}\ue001"}
        for kind in layout.pattern
    ]
    try:
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
            processor_kwargs={"padding": False},  # SmolVLM's would otherwise warn of defaults of its own, each time
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
    segments = pieces[::2]
    order = "t".join("i" * segment.count(processor.image_token) for segment in segments)
    if order != layout.pattern and "t" in layout.pattern.strip("t"):
        raise ModelError(
            f"a question has text between its {images} images, and the model's chat template moves them away from it: "
            "no text could tell which of them it speaks of. Write the marks side by side, or use a model whose "
            "template leaves images in place."
        )
    leads = tuple(_lead(segment, processor.image_token) for segment in segments[:-1])
    bare = (segment.removesuffix(lead) for segment, lead in zip(segments, leads, strict=False))
    return Frame((*bare, segments[-1]), leads)


def _lead(segment: str, image_token: str) -> str:
    """What of the model's own text is read with the user's behind it; a special token in front parts it from the rest.

    >>> _lead("user <image>\\n", "<image>"), _lead("User: ", "<image>"), _lead("user\\n", "<image>")
    ('\\n', ' ', '')
    """
    before = segment.rstrip()
    if before.endswith(image_token):
        return segment[len(before) :]
    return " " if segment.endswith(" ") else ""


def segment_ids(segments: Sequence[str], shown: Sequence[Shown], processor: Processor) -> list[list[int]]:
    """Ids of the model's own text, a list for each segment; images fill the image tokens in order."""
    images, token = iter(shown), processor.image_token
    texts = [_SLOT.sub(lambda _: next(images).text(token), segment.replace(token, _IMAGE)) for segment in segments]
    return processor.tokenizer(texts, add_special_tokens=False)["input_ids"]


def shown_images(sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
    """What stands in a prompt for its images, of height and width in pixels, under the pixel budget."""
    return showing_of(processor).shown(sizes, processor, data)


def encoded_images(
    images: Sequence[Image.Image], processor: Processor, data: DataConfig
) -> tuple[list[int], Mapping[str, Tensor]]:
    """What the processor makes of the images of one prompt: the ids that it puts in their place, and its tensors."""
    showing, sizes = showing_of(processor), [(image.height, image.width) for image in images]
    given = showing.given(sizes, processor, data)
    encoded = processor(
        images=[[_resized(image, size) for image, size in zip(images, given, strict=True)]],
        text=[processor.image_token * len(images)],
        return_tensors="pt",
        text_kwargs={"add_special_tokens": False, "padding": False},
        images_kwargs=dict(showing.options(processor, data)),
    )
    ids = encoded["input_ids"][0].tolist()
    return ids, {name: values for name, values in encoded.items() if name not in _TEXT_OUTPUTS}


def _resized(image: Image.Image, size: Size) -> Image.Image:
    """An image of that height and width, by the filter that the processors use."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


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
    """Tokens that a prompt's only image takes, of height and width in pixels, under the pixel budget; at least one.

    Marks that the model writes around and between them are text, and not counted.
    """
    [tokens] = prompt_image_tokens([size], processor, data)
    return tokens


def prompt_image_tokens(sizes: Sequence[Size], processor: Processor, data: DataConfig) -> tuple[int, ...]:
    """Tokens of each image of one prompt: some processors show several images otherwise than a lone one."""
    return tuple(shown.features(processor.image_token) for shown in shown_images(sizes, processor, data))


def image_grids(sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
    """Which part of each image of a prompt its image tokens show, under the pixel budget."""
    return showing_of(processor).grids(sizes, processor, data)
