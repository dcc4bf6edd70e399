"""What the tiny model can do on held-out pictures of the shapes set, with and without its eyes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from tiny_batches import prompt_text
from tiny_parts import END

from vgpo_lite.datasets.shapes import ShapesRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import ndarray
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    from vgpo_lite.data_types import Sample

FORM = re.compile(r"(?:row \d: \d, ){3}row 4: \d, so \\boxed\{\d+\}")
LONGEST_ANSWER = 40
GROUP = 8
BLIND = 190
"""Grey of the picture that the blind trial shows: the middle of the backgrounds."""


@torch.no_grad()
def answers(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    samples: Sequence[Sample],
    *,
    sampled: bool = False,
    blind: bool = False,
) -> list[str]:
    """One completion for each sample, its end token included: greedy, or sampled at temperature 1."""
    pictures = np.stack([np.asarray(sample.images[0]) for sample in samples])
    if blind:
        pictures = np.full_like(pictures, BLIND)
    vision = processor.image_processor(images=torch.from_numpy(pictures).permute(0, 3, 1, 2), return_tensors="pt")
    texts = [prompt_text(sample.question.removesuffix("<image>"), processor) for sample in samples]
    prompts = processor.tokenizer(texts, return_tensors="pt")
    choice = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    completed = model.generate(
        **prompts,
        **vision,
        mm_token_type_ids=(prompts["input_ids"] == model.config.image_token_id).long(),
        max_new_tokens=LONGEST_ANSWER,
        **choice,
    )
    return processor.tokenizer.batch_decode(completed[:, prompts["input_ids"].shape[1] :])


def right(text: str, answer: str) -> bool:
    """Whether the last boxed number is the answer."""
    boxed = re.findall(r"\\boxed\{([^}]*)\}", text)
    return bool(boxed) and boxed[-1] == answer


def in_form(text: str) -> bool:
    """Whether a completion says all four rows, boxes a number and ends by itself."""
    said, end, _ = text.partition(END)
    return bool(end) and FORM.fullmatch(said) is not None


def report(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, *, greedy: int = 1000, groups: int = 100
) -> dict[str, float]:
    """Shares of held-out questions, in [0, 1].

    Args:
        model: The model, in evaluation mode.
        processor: Its processor.
        greedy: Held-out questions answered greedily.
        groups: Held-out questions answered GROUP times each at temperature 1.
    """
    samples = _samples("normal", greedy)
    several = [sample for sample in samples[:groups] for _ in range(GROUP)]
    greedy_texts = answers(model, processor, samples)
    sampled_texts = answers(model, processor, several, sampled=True)
    sampled = _verdicts(sampled_texts, several).reshape(-1, GROUP)
    harder = _samples("harder", greedy)
    golds = [sample.answer for sample in samples]
    return {
        "greedy accuracy": float(_verdicts(greedy_texts, samples).mean()),
        "greedy accuracy per row": _row_accuracy(greedy_texts, samples),
        "sampled accuracy": float(sampled.mean()),
        "form, sampled": float(np.mean([in_form(text) for text in sampled_texts])),
        "groups of 8 that are partly right": float((sampled.any(1) & ~sampled.all(1)).mean()),
        "greedy accuracy without the image": float(
            _verdicts(answers(model, processor, samples, blind=True), samples).mean()
        ),
        "best constant guess": max(golds.count(gold) for gold in set(golds)) / len(golds),
        "greedy accuracy, harder": float(_verdicts(answers(model, processor, harder), harder).mean()),
    }


def _samples(difficulty: str, count: int) -> list[Sample]:
    rows = ShapesRows("eval", difficulty=difficulty)
    return [rows[index] for index in range(count)]


def _verdicts(texts: Sequence[str], samples: Sequence[Sample]) -> ndarray:
    return np.array([right(text, str(sample.answer)) for text, sample in zip(texts, samples, strict=True)])


def _row_accuracy(texts: Sequence[str], samples: Sequence[Sample]) -> float:
    said = [dict(re.findall(r"row (\d): (\d)", text)) for text in texts]
    counted = [
        rows.get(str(number)) == str(count)
        for rows, sample in zip(said, samples, strict=True)
        for number, count in enumerate(sample.columns["row_counts"], start=1)  # pyright: ignore[reportArgumentType]
    ]
    return float(np.mean(counted))
