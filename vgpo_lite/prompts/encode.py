"""Sample -> Prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vgpo_lite.data_types import Prompt
from vgpo_lite.errors import DataError, PromptTooLongError
from vgpo_lite.prompts.pieces import encoded_segments, frame_segments, layout_of, plain_ids
from vgpo_lite.prompts.wording import user_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.data_types import Sample
    from vgpo_lite.prompts.pieces import Layout
    from vgpo_lite.prompts.processor import Processor

_TEXT_OUTPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


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
    layout = layout_of(user_text(sample.question, data))
    if layout.pattern.count("i") != len(sample.images):
        raise DataError(f"{sample.sample_id}: {layout.pattern.count('i')} image marks for {len(sample.images)} images")
    segments = frame_segments(layout, processor)
    encoded = encoded_segments(segments, sample.images, processor, data)
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


def _woven(segment_ids: Sequence[Sequence[int]], layout: Layout, processor: Processor) -> tuple[list[int], list[bool]]:
    """The ids of the whole prompt, and which of them are image tokens: those of the model's own text alone."""
    ids: list[int] = []
    in_image: list[bool] = []
    for place, segment in enumerate(segment_ids):
        ids += segment
        in_image += [token == processor.image_token_id for token in segment]
        if place < len(layout.texts):
            plain = plain_ids(layout.texts[place], processor)
            ids += plain
            in_image += [False] * len(plain)
    return ids, in_image


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
