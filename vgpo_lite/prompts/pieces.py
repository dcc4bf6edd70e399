"""What a prompt is woven from: the model's own text, the user's texts as plain ids, and images in whole tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError
from PIL import Image

from vgpo_lite.data_types import IMAGE_MARK
from vgpo_lite.errors import ImageOrderError, ModelError
from vgpo_lite.prompts.showing import showing_of
from vgpo_lite.prompts.weaving import Part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.prompts.grids import Grid
    from vgpo_lite.prompts.processor import Processor
    from vgpo_lite.prompts.showing import Shown, Size

_EDGE = "\u2003"  # a blank that a template which trims texts would take away, and that none writes itself
_SLOT = re.compile(f"({_EDGE}?)\ue000([0-9]+)\ue001({_EDGE}?)")  # private-use characters: no chat template writes them
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
        trims: Whether the template takes blanks away, in front of each text and behind it.
    """

    segments: tuple[str, ...]
    trims: tuple[tuple[bool, bool], ...]

    def texts(self, layout: Layout) -> list[str]:
        """The user's texts as they stand in the prompt."""
        texts = []
        for text, (left, right) in zip(layout.texts, self.trims, strict=True):
            from_left = text.lstrip() if left else text
            texts.append(from_left.rstrip() if right else from_left)
        return texts

    def parts(self, layout: Layout, shown: Sequence[Shown], processor: Processor) -> list[Part]:
        """The whole prompt, whose images fill the marks of the model's own text in order."""
        images = iter(shown)
        parts = [Part(_filled(self.segments[0], images, processor), is_own=True)]
        for text, segment in zip(self.texts(layout), self.segments[1:], strict=True):
            parts += [Part(text, is_own=False), Part(_filled(segment, images, processor), is_own=True)]
        return parts


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
        ImageOrderError: The chat template moves images away from a text between them.
        ModelError: It cannot be rendered, or loses or repeats a part of the turn.
    """
    slots = iter(range(len(layout.texts)))
    content = [
        {"type": "image"} if kind == "i" else {"type": "text", "text": f"{_EDGE}\ue000{next(slots)}\ue001{_EDGE}"}
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
    pieces, mark = _SLOT.split(rendered), showing_of(processor).mark(processor)
    segments, slots = pieces[::4], pieces[2::4]
    images = sum(segment.count(mark) for segment in segments)
    if slots != [str(slot) for slot in range(len(layout.texts))] or images != layout.pattern.count("i"):
        raise ModelError(
            f"the model's chat template makes {len(slots)} texts and {images} images of a turn with "
            f"{len(layout.texts)} texts and {layout.pattern.count('i')} images; a vision model's own template is needed"
        )
    order = "t".join("i" * segment.count(mark) for segment in segments)
    if order != layout.pattern and "t" in layout.pattern.strip("t"):
        raise ImageOrderError(
            f"there is text between its {images} images, and the model's chat template moves them away from it: no "
            "text could tell which of them it speaks of. Write the marks side by side, or use a model whose template "
            "leaves images in place."
        )
    trims = tuple((not left, not right) for left, right in zip(pieces[1::4], pieces[3::4], strict=True))
    return Frame(tuple(segments), trims)


def image_parts(shown: Sequence[Shown], processor: Processor) -> list[Part]:
    """What stands for images, side by side and alone."""
    mark = showing_of(processor).mark(processor)
    return [Part(_filled(mark * len(shown), iter(shown), processor), is_own=True)]


def _filled(segment: str, images: Iterator[Shown], processor: Processor) -> str:
    """A segment with the next images in place of its marks."""
    showing = showing_of(processor)
    mark, (token, _) = re.escape(showing.mark(processor)), showing.token(processor)
    return re.sub(mark, lambda _: next(images).text(token), segment)


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
        text=[showing.mark(processor) * len(images)],
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


def prompt_image_tokens(sizes: Sequence[Size], processor: Processor, data: DataConfig) -> tuple[int, ...]:
    """Tokens of each image of one prompt, of height and width in pixels, under the pixel budget; at least one each.

    Some processors show several images otherwise than a lone one. Marks that the model writes around and between an
    image's tokens are text, and not counted.
    """
    token, _ = showing_of(processor).token(processor)
    return tuple(shown.features(token) for shown in shown_images(sizes, processor, data))


def images_bounded(images: int, processor: Processor) -> bool:
    """Whether the pixel budget has a say in how prompts with so many images show them."""
    return showing_of(processor).bounds(images)


def images_scaled_down(sizes: Sequence[Size], processor: Processor, data: DataConfig) -> int:
    """How many images of one prompt, of height and width in pixels, do not fit the pixel budget as they are."""
    return showing_of(processor).scaled_down(sizes, processor, data)


def image_grids(sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
    """Which part of each image of a prompt its image tokens show, under the pixel budget."""
    return showing_of(processor).grids(sizes, processor, data)
