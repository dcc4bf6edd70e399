"""Lessons as tensors, and the loss of a model on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tiny_parts import END, IMAGE
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int, UInt8
    from numpy import ndarray
    from tiny_lessons import Lesson
    from torch import Tensor
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

IMAGE_TOKENS = 16
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Lessons about some pictures, the same number about each, in the order of the pictures.

    Attributes:
        pixel_values: What the processor makes of the pictures.
        image_grid_thw: Patches along time, height and width of each picture.
        input_ids: Prompts with their answers, padded on the right.
        labels: The answers' ids, and `IGNORED` elsewhere.
        position_ids: Rotary positions along time, height and width.
    """

    pixel_values: Float[Tensor, "patch dim"]
    image_grid_thw: Int[Tensor, "image 3"]
    input_ids: Int[Tensor, "lesson token"]
    labels: Int[Tensor, "lesson token"]
    position_ids: Int[Tensor, "3 lesson token"]


def prompt_text(question: str, processor: Qwen2VLProcessor) -> str:
    """A question before its image, as the prompt of a chat, up to where the answer begins."""
    turn = {"role": "user", "content": [{"type": "text", "text": question}, {"type": "image"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    return text.replace(IMAGE, IMAGE * IMAGE_TOKENS)


def batch_of(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    pictures: UInt8[ndarray, "image height width 3"],
    lessons: Sequence[Lesson],
) -> Batch:
    """Encode lessons about pictures; `len(lessons)` is a multiple of `len(pictures)`."""
    vision = processor.image_processor(images=torch.from_numpy(pictures).permute(0, 3, 1, 2), return_tensors="pt")
    prompts = [prompt_text(question, processor) for question, _ in lessons]
    texts = [prompt + answer + END for prompt, (_, answer) in zip(prompts, lessons, strict=True)]
    encoded = processor.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    lengths = torch.tensor([len(prompt) for prompt in processor.tokenizer(prompts)["input_ids"]])
    in_answer = (torch.arange(ids.shape[1]) >= lengths[:, None]) & (mask == 1)
    positions, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        image_grid_thw=vision["image_grid_thw"].repeat_interleave(len(lessons) // len(pictures), 0),
        attention_mask=mask,
    )
    return Batch(
        pixel_values=vision["pixel_values"],
        image_grid_thw=vision["image_grid_thw"],
        input_ids=ids,
        labels=torch.where(in_answer, ids, IGNORED),
        position_ids=positions,
    )


def lesson_loss(model: Qwen2VLForConditionalGeneration, batch: Batch) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answers' tokens. The tower runs once per picture, and without a graph: it is frozen."""
    with torch.no_grad():
        seen = model.model.visual(batch.pixel_values, batch.image_grid_thw).pooler_output
    each = len(batch.input_ids) // len(batch.image_grid_thw)
    features = seen.reshape(-1, IMAGE_TOKENS, seen.shape[-1]).repeat_interleave(each, 0)
    embeddings = model.get_input_embeddings()(batch.input_ids)
    is_image = (batch.input_ids == model.config.image_token_id)[..., None]
    embeddings = embeddings.masked_scatter(is_image, features.to(embeddings.dtype))
    # Padding lies behind everything that a causal model reads for a label: no mask is needed
    hidden = model.model.language_model(
        inputs_embeds=embeddings, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    answered = batch.labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][answered])
    return cross_entropy(logits.float(), batch.labels[:, 1:][answered])
