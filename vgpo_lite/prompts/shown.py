"""A prompt as a person can read it."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgpo_lite.data_types import Prompt
    from vgpo_lite.prompts.processor import Processor


def shown_prompt(prompt: Prompt, processor: Processor) -> str:
    """What the model reads, decoded from the very ids it gets, each image as the number of its tokens.

    Args:
        prompt: The prompt.
        processor: The model's.
    """
    ids, parts = iter(prompt.input_ids.tolist()), []
    for is_image, run in groupby(prompt.image_mask.tolist()):
        piece = [token for _, token in zip(run, ids, strict=False)]
        parts.append(f"[{len(piece)} image tokens]" if is_image else _decoded(piece, processor))
    return "".join(parts)


def _decoded(ids: list[int], processor: Processor) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
