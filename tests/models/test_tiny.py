"""The built-in tiny model: a real Qwen2-VL that answers in form, needs its eyes, and passes over what is pale."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from vgpo_lite.config.schema import DataConfig
from vgpo_lite.data_types import Sample
from vgpo_lite.datasets.shapes import DIFFICULTIES, ShapesRows, counting_question, draw, random_scenes
from vgpo_lite.models.tiny import TINY_PATH
from vgpo_lite.prompts import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRIPTS = Path(__file__).parents[2] / "scripts"
BARE = DataConfig(prompt_template="{{ question }}")
FORM = re.compile(r"row 1: \d, row 2: \d, row 3: \d, row 4: \d, so \\boxed\{\d+\}<\|im_end\|>(<\|endoftext\|>)*")
MOST_BYTES = 6_000_000


@dataclass(frozen=True)
class Tiny:
    """The shipped model, read as anybody's."""

    model: Any
    processor: Any

    @torch.no_grad()
    def answers(self, samples: Sequence[Sample], *, temperature: float = 0.0) -> list[str]:
        """One completion for each sample, special tokens kept; greedy at temperature 0."""
        prompts = [encode_prompt(sample, self.processor, BARE) for sample in samples]
        ids = torch.stack([prompt.input_ids for prompt in prompts])
        vision = {name: torch.cat([prompt.vision[name] for prompt in prompts]) for name in prompts[0].vision}
        choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        completed = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self.model.config.image_token_id).long(),
            max_new_tokens=40,
            **vision,
            **choice,
        )
        return self.processor.tokenizer.batch_decode(completed[:, ids.shape[1] :])

    def accuracy(self, samples: Sequence[Sample]) -> float:
        """Share of greedy answers that are right, in [0, 1]."""
        return float(
            np.mean([right(text, sample) for text, sample in zip(self.answers(samples), samples, strict=True)])
        )


def right(text: str, sample: Sample) -> bool:
    boxed = re.findall(r"\\boxed\{(\d+)\}", text)
    return bool(boxed) and boxed[-1] == sample.answer


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    model = AutoModelForImageTextToText.from_pretrained(TINY_PATH)
    return Tiny(model.eval(), AutoProcessor.from_pretrained(TINY_PATH))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    rows = ShapesRows("eval")
    return [rows[index] for index in range(200)]


def test_it_loads_as_a_plain_qwen2_vl(tiny: Tiny) -> None:
    assert isinstance(tiny.model, Qwen2VLForConditionalGeneration)
    assert isinstance(tiny.processor, Qwen2VLProcessor)
    assert tiny.model.dtype == torch.float32
    assert 1_000_000 <= sum(weight.numel() for weight in tiny.model.parameters()) <= 2_000_000


def test_its_files_are_small_and_hold_no_code() -> None:
    files = [path for path in TINY_PATH.iterdir() if path.is_file() and path.suffix != ".py"]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".jinja"}
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_every_linear_of_the_language_model_fills_whole_nf4_blocks(tiny: Tiny) -> None:
    sizes = {
        size
        for module in tiny.model.model.language_model.modules()
        if isinstance(module, torch.nn.Linear)
        for size in module.weight.shape
    }
    assert sizes
    assert all(size % 64 == 0 for size in sizes)


def test_its_special_tokens_bear_qwens_names(tiny: Tiny) -> None:
    config, ids = tiny.model.config, tiny.processor.tokenizer.convert_tokens_to_ids
    assert ids("<|image_pad|>") == config.image_token_id
    assert ids("<|video_pad|>") == config.video_token_id
    assert (ids("<|vision_start|>"), ids("<|vision_end|>")) == (
        config.vision_start_token_id,
        config.vision_end_token_id,
    )
    assert set(tiny.model.generation_config.eos_token_id) == {ids("<|im_end|>"), ids("<|endoftext|>")}
    assert tiny.processor.tokenizer.eos_token == "<|im_end|>"


@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = TOKENIZER
    assert tokenizer.decode(tokenizer.encode(text, split_special_tokens=True)) == text


TOKENIZER = AutoProcessor.from_pretrained(TINY_PATH).tokenizer


def test_an_answer_is_a_few_tokens_and_its_box_is_spelled_exactly() -> None:
    answer = "row 1: 2, row 2: 0, row 3: 1, row 4: 2, so \\boxed{5}"
    ids = TOKENIZER.encode(answer)
    assert len(ids) == 17  # a row is its name, its count and a comma; then so, a space, the box, 5 and }
    assert TOKENIZER.decode(ids) == answer
    assert TOKENIZER.convert_ids_to_tokens(ids)[-3:] == ["\\boxed{", "5", "}"]


def test_a_prompt_is_the_bare_question_and_its_sixteen_image_tokens(tiny: Tiny, samples: list[Sample]) -> None:
    sample = samples[0]
    turn = {"role": "user", "content": [{"type": "text", "text": sample.question.removesuffix("<image>")}]}
    turn["content"].append({"type": "image"})
    text = tiny.processor.apply_chat_template([turn], add_generation_prompt=True)
    asked = sample.question.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    assert text == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    ordinary = tiny.processor(text=[text], images=list(sample.images), return_tensors="pt")
    prompt = encode_prompt(sample, tiny.processor, BARE)
    assert prompt.input_ids.tolist() == ordinary["input_ids"][0].tolist()
    assert int(prompt.image_mask.sum()) == 16
    assert torch.equal(prompt.vision["pixel_values"], ordinary["pixel_values"])


def test_the_template_renders_system_turns_plain_text_and_videos() -> None:
    turns = [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "How many?"}]},
    ]
    text = AutoProcessor.from_pretrained(TINY_PATH).apply_chat_template(turns, add_generation_prompt=False)
    assert text == (
        "<|im_start|>system\nCount.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>How many?<|im_end|>\n"
    )


def test_sampled_completions_have_the_form(tiny: Tiny, samples: list[Sample]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        texts = tiny.answers([*samples, *samples], temperature=1.0)
    assert np.mean([bool(FORM.fullmatch(text)) for text in texts]) >= 0.95


def test_it_is_sometimes_right_so_that_there_is_something_to_learn(tiny: Tiny, samples: list[Sample]) -> None:
    assert 0.35 <= tiny.accuracy(samples) <= 0.65


def test_many_groups_of_eight_are_partly_right(tiny: Tiny, samples: list[Sample]) -> None:
    asked = [sample for sample in samples[:40] for _ in range(8)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        texts = tiny.answers(asked, temperature=1.0)
    verdicts = np.array([right(text, sample) for text, sample in zip(texts, asked, strict=True)]).reshape(-1, 8)
    assert (verdicts.any(1) & ~verdicts.all(1)).mean() >= 0.3


def test_without_the_image_it_does_no_better_than_a_guess(tiny: Tiny, samples: list[Sample]) -> None:
    grey = Image.new("RGB", samples[0].images[0].size, (190, 190, 190))
    strangers = [*samples[1:], samples[0]]
    best_guess = 1 / (DIFFICULTIES["normal"].most + 1)
    spread = math.sqrt(best_guess * (1 - best_guess) / len(samples))
    for pictures in ([(grey,)] * len(samples), [stranger.images for stranger in strangers]):
        blind = [dataclasses.replace(sample, images=images) for sample, images in zip(samples, pictures, strict=True)]
        assert tiny.accuracy(blind) <= best_guess + 3 * spread


def test_it_counts_what_is_not_pale_so_that_it_is_not_left_unfinished(tiny: Tiny) -> None:
    clear = dataclasses.replace(DIFFICULTIES["normal"], pale=0.0)
    generator = np.random.default_rng(5)
    scenes = random_scenes(generator, 200, clear)
    pictures = draw(generator, scenes, clear)
    kinds = zip(scenes.asked_shape.tolist(), scenes.asked_colour.tolist(), strict=True)
    clearly = [
        Sample(
            sample_id=str(index),
            question=counting_question(*kind) + "<image>",
            images=(Image.fromarray(picture),),
            answer=str(count),
        )
        for index, (kind, picture, count) in enumerate(zip(kinds, pictures, scenes.row_counts().sum(-1), strict=True))
    ]
    assert tiny.accuracy(clearly) >= 0.95


def test_the_script_builds_the_shipped_processor_and_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    tiny_parts = importlib.import_module("tiny_parts")
    processor = tiny_parts.build_processor()
    processor.save_pretrained(tmp_path)
    tiny_parts.build_model(processor.tokenizer).config.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "config.json", "processor_config.json"):
        made, shipped = (json.loads((folder / name).read_text()) for folder in (tmp_path, TINY_PATH))
        for left_by_saving in ("transformers_version", "dtype", "architectures"):
            made.pop(left_by_saving, None)
            shipped.pop(left_by_saving, None)
        assert made == shipped
    assert (tmp_path / "chat_template.jinja").read_text() == (TINY_PATH / "chat_template.jinja").read_text()
