"""Sample -> Prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vgpo_lite.data_types import Prompt
from vgpo_lite.errors import DataError, ImageOrderError, PromptTooLongError
from vgpo_lite.prompts.pieces import encoded_images, frame_of, image_parts, images_bounded, layout_of, shown_images
from vgpo_lite.prompts.showing import showing_of
from vgpo_lite.prompts.weaving import plain_ids, stretches
from vgpo_lite.prompts.wording import user_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.data_types import Sample
    from vgpo_lite.prompts.processor import Processor
    from vgpo_lite.prompts.showing import Shown
    from vgpo_lite.prompts.weaving import Part


def encode_prompt(sample: Sample, processor: Processor, data: DataConfig) -> Prompt:
    """Encode one sample for one model.

    Qwen's images are scaled into `data.min_pixels` .. `data.max_pixels`, to whole patches; only an image so long and
    thin that its short side would vanish keeps more, at most one token per 28 (32) pixels of its long side. Families
    that cut images into tiles show as many tiles as the budget holds, but never fewer than one. Gemma 3 has one size.

    Args:
        sample: The row.
        processor: The model's.
        data: Prompt style or template, pixel budget and the longest prompt.

    Raises:
        ConfigError: The user's prompt template cannot be used.
        DataError: Marks and images do not match, the chat template moves images away from the text between them, or
            the processor shows images otherwise than expected.
        PromptTooLongError: The prompt holds more than `data.max_prompt_length` tokens.
        ModelError: The model's chat template loses or repeats a part of the question.
    """
    layout = layout_of(user_text(sample.question, data))
    if layout.pattern.count("i") != len(sample.images):
        raise DataError(f"{sample.sample_id}: {layout.pattern.count('i')} image marks for {len(sample.images)} images")
    shown = shown_images([(image.height, image.width) for image in sample.images], processor, data)
    try:
        frame = frame_of(layout, processor)
    except ImageOrderError as error:
        raise ImageOrderError(f"{sample.sample_id}: {error}") from error
    ids, in_image = _woven(frame.parts(layout, shown, processor), processor)
    _check_length(sample.sample_id, len(ids), data, bounded=images_bounded(len(shown), processor))
    token, _ = showing_of(processor).token(processor)
    return Prompt(
        sample=sample,
        text="".join(piece for pair in zip(frame.segments, (*frame.texts(layout), ""), strict=True) for piece in pair),
        input_ids=torch.tensor(ids, dtype=torch.long),
        image_mask=torch.tensor(in_image, dtype=torch.bool),
        vision=_vision(sample, shown, processor, data) if sample.images else {},
        image_lengths=tuple(image.features(token) for image in shown),
    )


def _woven(parts: Sequence[Part], processor: Processor) -> tuple[list[int], list[bool]]:
    """The ids of a text, and which of them are image tokens: those of the model's own text alone."""
    ids: list[int] = []
    in_image: list[bool] = []
    _, image_token_id = showing_of(processor).token(processor)
    for stretch in stretches(parts, processor):
        read = [stretch] if isinstance(stretch, int) else plain_ids(stretch, processor)
        ids += read
        in_image += [stretch == image_token_id] * len(read)
    return ids, in_image


def _vision(
    sample: Sample, shown: Sequence[Shown], processor: Processor, data: DataConfig
) -> Mapping[str, torch.Tensor]:
    """The processor's tensors, if it puts the same ids in the images' place."""
    ids, vision = encoded_images(sample.images, processor, data)
    own, in_image = _woven(image_parts(shown, processor), processor)
    if ids != own:
        tokens = ids.count(showing_of(processor).token(processor)[1])
        raise DataError(
            f"{sample.sample_id}: the processor writes {len(ids)} tokens for the images, {tokens} of them image "
            f"tokens, where {len(own)} and {sum(in_image)} are expected; it is not this model's own, or of an unknown "
            "release of transformers"
        )
    return vision


def _check_length(sample_id: str, length: int, data: DataConfig, *, bounded: bool) -> None:
    if length > data.max_prompt_length:
        raise PromptTooLongError(
            f"{sample_id}: the prompt holds {length} tokens, data.max_prompt_length is {data.max_prompt_length}; "
            f"nothing is cut: raise it{', or lower data.max_pixels' if bounded else ''}"
        )
