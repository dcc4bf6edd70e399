"""Whether two models say the same: logits over the same tokens, on a few prompts with and without an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw
from transformers import GenerationConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor, nn

IMAGE_SIZE = 112  # pixels: 16 image tokens of 28 x 28
CONTINUATION = 16  # tokens compared behind each prompt
_QUESTIONS = (
    ("What is 12 + 30? Give only the final answer, in \\boxed{}.", None),
    ("How many circles are in the picture? Give only the final answer, in \\boxed{}.", (40, 80)),
    ("Which shapes do you see? Think first.", (28, 56, 84)),
)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A prompt with a continuation, ready for a forward pass.

    Attributes:
        inputs: What the model takes.
        compared: Last positions whose logits count: those that predict the continuation, and one more.
    """

    inputs: Mapping[str, Tensor]
    compared: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a merged model is from the adapter it was made of, over all compared positions.

    Attributes:
        merged_gap: Largest difference of a logit between merged and adapter.
        adapter_gap: Largest difference of a logit between adapter and base: what training changed.
        greedy: Share of positions where merged and adapter have the same most likely token, in [0, 1].
        positions: How many were compared.
    """

    merged_gap: float
    adapter_gap: float
    greedy: float
    positions: int


def probes(model: nn.Module, processor: Any, suppressed_ids: Sequence[int], *, device: torch.device) -> list[Probe]:
    """The built-in prompts, continued greedily by `model`, which must be in evaluation mode."""
    made = []
    for question, circles in _QUESTIONS:
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if circles is not None:
            content.insert(0, {"type": "image", "image": _picture(circles)})
        encoded = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device)
        made.append(_continued(model, encoded, suppressed_ids))
    return made


def _picture(circles: Sequence[int]) -> Image.Image:
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    draw = ImageDraw.Draw(image)
    for place in circles:
        draw.ellipse((place - 12, place - 12, place + 12, place + 12), fill=(220, 2 * place, 40))
    return image


def _continued(model: Any, encoded: Mapping[str, Tensor], suppressed_ids: Sequence[int]) -> Probe:
    greedy = GenerationConfig(do_sample=False, max_new_tokens=CONTINUATION, suppress_tokens=list(suppressed_ids))
    with torch.no_grad():
        ids = model.generate(**encoded, generation_config=greedy)
    added = ids.shape[1] - encoded["input_ids"].shape[1]
    inputs = dict(encoded) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in encoded:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(encoded["mm_token_type_ids"], (0, added))
    return Probe(inputs=inputs, compared=added + 1)


def probe_logits(model: Any, made: Sequence[Probe]) -> Float[Tensor, "position vocabulary"]:
    """Logits of the compared positions of all probes, one after the other, float32 on the CPU."""
    with torch.no_grad():
        rows = [model(**probe.inputs, logits_to_keep=probe.compared).logits[0].float().cpu() for probe in made]
    return torch.cat(rows)


def agreement(
    merged: Float[Tensor, "position vocabulary"],
    adapter: Float[Tensor, "position vocabulary"],
    base: Float[Tensor, "position vocabulary"],
) -> Agreement:
    """Compare the logits of three models over the same positions; a logit that is not finite makes the gap infinite.

    >>> base = torch.tensor([[0.0, 1.0]])
    >>> agreement(base + 0.5, base + 0.4, base)
    Agreement(merged_gap=0.1..., adapter_gap=0.4..., greedy=1.0, positions=1)
    """
    return Agreement(
        merged_gap=_largest_gap(merged, adapter),
        adapter_gap=_largest_gap(adapter, base),
        greedy=float((merged.argmax(-1) == adapter.argmax(-1)).float().mean()),
        positions=merged.shape[0],
    )


def _largest_gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().nan_to_num(nan=float("inf"), posinf=float("inf")).max())
