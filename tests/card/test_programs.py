"""The program in a card asks a model of every family as it was asked in training: run as it stands, nothing replaced
but the picture."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.hub.models import SMALLEST_OF_EACH_FAMILY, write_model
from tests.hub.tiled import LLAVA_ONEVISION, TILE
from vgpo_lite.card.parts import snippet
from vgpo_lite.card.record import TrainingRecord, read_record, record_bytes
from vgpo_lite.config.schema import DataConfig, RunConfig
from vgpo_lite.data_types import Sample
from vgpo_lite.models import processor_alone
from vgpo_lite.prompts import encode_prompt, user_text
from vgpo_lite.prompts.showing import showing_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUESTION = "How many?"
BLANK = 'Image.new("RGB", (224, 224), "white")'


def direct(max_pixels: int) -> DataConfig:
    return DataConfig(prompt_style="direct", max_pixels=max_pixels)


@pytest.fixture
def asking(tmp_path: Path) -> Callable[[str], Callable[[Image.Image, DataConfig], tuple[Any, Any]]]:
    """Of a model by its name: the tensors that its card's program asks with, and those of training."""

    def of(name: str) -> Callable[[Image.Image, DataConfig], tuple[Any, Any]]:
        folder = write_model(tmp_path / "model", name)
        processor = processor_alone(RunConfig(model=str(folder)))

        def asked(picture: Image.Image, data: DataConfig) -> tuple[Any, Any]:
            (tmp_path / "training.json").write_bytes(record_bytes(record_of(processor, data)))
            program = snippet(read_record(tmp_path), kind="merged", source=str(folder))
            program = program.removeprefix("```python\n").removesuffix("```")
            assert program.count(BLANK) == 1
            names: dict[str, Any] = {"picture": picture}
            exec(compile(program.replace(BLANK, "picture"), "README.md", "exec"), names)  # the card's own words
            sample = Sample(sample_id="a", question=f"<image>{QUESTION}", answer=None, images=(picture,))
            return names["inputs"], encode_prompt(sample, processor, data)

        return asked

    return of


def record_of(processor: Any, data: DataConfig) -> TrainingRecord:
    showing = showing_of(processor)
    return TrainingRecord(
        model="owner/base",
        revision="c" * 40,
        dataset=None,
        title="base trained on rows",
        before=None,
        after=None,
        facts={},
        recipe="",
        example=user_text(QUESTION, data),
        max_new_tokens=2,
        image_options=dict(showing.options(processor, data)),
        canvas_pixels=showing.canvas_pixels(processor, data),
        quantization="nf4",
    )


def check(inputs: Any, prompt: Any) -> None:
    assert inputs["input_ids"][0].tolist() == prompt.input_ids.tolist()
    for name, expected in prompt.vision.items():
        torch.testing.assert_close(inputs[name].cpu(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_a_cards_program_asks_a_model_of_each_family_as_training_does(asking: Any, name: str) -> None:
    check(*asking(name)(Image.effect_noise((300, 500), 90).convert("RGB"), direct(20_000)))


@pytest.mark.parametrize("name", [name for name in SMALLEST_OF_EACH_FAMILY if name != LLAVA_ONEVISION])
def test_options_of_a_card_do_the_same_in_the_file_that_servers_read(name: str, tmp_path: Path) -> None:
    folder, data = write_model(tmp_path / "model", name), direct(20_000)
    processor = processor_alone(RunConfig(model=str(folder)))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(showing_of(processor).options(processor, data))))
    picture = Image.effect_noise((300, 500), 90).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": user_text(QUESTION, data)}]
    inputs = AutoProcessor.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    sample = Sample(sample_id="a", question=f"<image>{QUESTION}", answer=None, images=(picture,))
    check(inputs, encode_prompt(sample, processor, data))


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (60, 80), (700, 10), (57, 57), (112, 113), (400, 400)])
@pytest.mark.parametrize("tiles", [1, 3, 5, 40])
def test_a_cards_program_scales_an_image_of_any_size_as_training_does(asking: Any, size: Any, tiles: int) -> None:
    check(*asking(LLAVA_ONEVISION)(Image.effect_noise(size, 90).convert("RGB"), direct(tiles * TILE**2)))


def test_a_program_of_a_record_that_tells_of_no_canvas_scales_nothing(asking: Any, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LLAVA_ONEVISION)
    record = record_of(processor_alone(RunConfig(model=str(folder))), direct(20_000))
    assert record.canvas_pixels == 5 * TILE**2  # 20,000 pixels are six tiles of 56 x 56, one of them the whole image
    assert "resize" in snippet(record, kind="adapter", source=".")
    assert "resize" not in snippet(dataclasses.replace(record, canvas_pixels=None), kind="adapter", source=".")
    told = json.loads(record_bytes(record))
    del told["canvas_pixels"]  # as in records written before there was one
    (tmp_path / "training.json").write_text(json.dumps(told))
    older = read_record(tmp_path)
    assert older is not None
    assert older.canvas_pixels is None
