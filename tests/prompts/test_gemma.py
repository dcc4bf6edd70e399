"""Prompts of Gemma 3: its own mark and token for images, trimmed texts, line ends as tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoProcessor

from tests.hub.gemma import GEMMA3, LINE_ENDS, SEQUENCE
from tests.hub.models import QWEN2_VL, write_model
from tests.hub.tiled import LLAVA_ONEVISION, SMOLVLM2
from tests.prompts.rows import DIRECT, QUESTIONS, outline_of, picture, sample, turn_of
from vgpo_lite.errors import PromptTooLongError
from vgpo_lite.prompts import (
    encode_prompt,
    image_grids,
    images_scaled_down,
    prompt_lengths,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_only_what_the_budget_bounds_is_told_to_be_made_smaller(gemma: Any, processor: Any) -> None:
    short = DIRECT.model_copy(update={"max_prompt_length": 16})
    for one, told in ((gemma, False), (processor, True)):
        with pytest.raises(PromptTooLongError) as error:
            encode_prompt(sample("<image>How many red circles are there?", picture()), one, short)
        assert ("or lower data.max_pixels" in str(error.value)) == told


GEMMA_QUESTIONS = QUESTIONS | {
    "blanks between": ("<image> \n <image>\n\n\nCompare.\n\n\n\n", 2),
    "blanks inside": ("\tOne.\n\n\n\n\nTwo.  Three <image>", 1),
}


@pytest.mark.parametrize(("question", "images"), GEMMA_QUESTIONS.values(), ids=GEMMA_QUESTIONS.keys())
def test_gemma_reads_what_its_processor_writes(gemma: Any, question: str, images: int) -> None:
    row = sample(question, *[picture(60 + 40 * place, 50) for place in range(images)])
    prompt = encode_prompt(row, gemma, DIRECT)
    wanted = gemma.apply_chat_template(
        turn_of(row), add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    assert prompt.input_ids.tolist() == wanted["input_ids"][0].tolist()
    assert prompt.image_mask.tolist() == wanted["token_type_ids"][0].bool().tolist()
    assert int(prompt.image_mask.sum()) == images * SEQUENCE
    assert prompt.image_lengths == (SEQUENCE,) * images
    assert prompt.vision.keys() == ({"pixel_values"} if images else set())
    for name, tensor in prompt.vision.items():
        assert torch.equal(tensor, wanted[name])
    assert prompt_lengths([outline_of(row)], gemma, DIRECT) == [len(prompt.input_ids)]
    assert [len(grid.areas) for grid in image_grids([(50, 60)] * images, gemma, DIRECT)] == [SEQUENCE] * images


@pytest.mark.parametrize("token", ["<image_soft_token>", "<start_of_image>", "<end_of_turn>", "<bos>", "<0x0A>"])
def test_a_special_token_spelt_in_a_question_is_text_to_gemma(gemma: Any, token: str) -> None:
    plain = encode_prompt(sample("<image>Say it.", picture()), gemma, DIRECT)
    row = sample(f"<image>Say {token} twice: {token}{token}", picture())
    prompt = encode_prompt(row, gemma, DIRECT)
    special = gemma.tokenizer.convert_tokens_to_ids(token)
    assert prompt.input_ids.tolist().count(special) == plain.input_ids.tolist().count(special)
    assert prompt.image_mask.sum() == SEQUENCE
    assert prompt_lengths([outline_of(row)], gemma, DIRECT) == [len(prompt.input_ids)]


def test_a_special_token_that_is_blank_is_text_too(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(write_model(tmp_path / "model", GEMMA3))
    processor.tokenizer.add_tokens([AddedToken("\t\t", special=True, normalized=False)])
    special = processor.tokenizer.convert_tokens_to_ids("\t\t")
    assert special in processor.tokenizer("a\t\tb")["input_ids"]
    assert special not in encode_prompt(sample("a\t\tb"), processor, DIRECT).input_ids.tolist()


def test_runs_of_line_ends_are_the_tokens_that_gemma_was_trained_with(gemma: Any) -> None:
    ids = encode_prompt(sample("One\n\nTwo\n\n\nThree"), gemma, DIRECT).input_ids.tolist()
    two, three = gemma.tokenizer.convert_tokens_to_ids(list(LINE_ENDS[:2]))
    assert (ids.count(two), ids.count(three)) == (2, 1)  # one more in front of the instruction


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (QWEN2_VL, [0, 1, 2]),
        (SMOLVLM2, [0, 1, 2]),
        (LLAVA_ONEVISION, [1, 1, 0]),  # a canvas of four tiles for 60 x 60; several images are tiles as they are
        (GEMMA3, [0, 0, 0]),
    ],
)
def test_images_that_are_shown_smaller_are_counted_as_each_family_shows_them(
    tmp_path: Path, name: str, expected: list[int]
) -> None:
    processor = AutoProcessor.from_pretrained(write_model(tmp_path / "model", name))
    data = DIRECT.model_copy(update={"max_pixels": 10_000})
    rows = [[(60, 60)], [(300, 200)], [(300, 200), (400, 400)]]
    assert [images_scaled_down(sizes, processor, data) for sizes in rows] == expected
