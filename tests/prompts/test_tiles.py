"""Prompts of the families that show images as tiles: the processors' own ids, pixels and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaOnevisionProcessor
from transformers.image_processing_utils import select_best_resolution

from tests.hub.models import write_model
from tests.hub.tiled import LLAVA_ONEVISION, TILED
from tests.prompts.rows import DIRECT, outline_of, picture, sample
from vgpo_lite.config.schema import DataConfig, RunConfig
from vgpo_lite.data_types import Outline
from vgpo_lite.datasets.reports import DataReport
from vgpo_lite.errors import ImageOrderError
from vgpo_lite.models.families import family_of
from vgpo_lite.preparation import ordered_rows
from vgpo_lite.prompts import (
    encode_prompt,
    image_grids,
    largest_prompt,
    prompt_image_tokens,
    prompt_lengths,
    prompts_in_order,
)
from vgpo_lite.prompts.grids import NOWHERE
from vgpo_lite.prompts.showing import showing_of

if TYPE_CHECKING:
    from pathlib import Path

    from vgpo_lite.data_types import Prompt


TILED_QUESTIONS = {
    "no image": ("Find the angle x.", []),
    "image first": ("<image>How many red circles are there?", [(60, 80)]),
    "text first": ("How many are in <image>", [(300, 100)]),
    "two images": ("<image>Is it like <image>?", [(300, 200), (20, 220)]),
    "side by side": ("Are they <image><image>alike?", [(300, 200), (20, 220)]),
    "long and thin": ("<image>How long?", [(700, 10)]),
}


@pytest.fixture(scope="module", params=TILED)
def tiles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real processors of the families with tiles, over a small vocabulary and small tiles."""
    return AutoProcessor.from_pretrained(write_model(tmp_path_factory.mktemp("model"), request.param))


def test_what_stands_for_images_and_turns_is_text_when_a_question_spells_it(tiles: Any) -> None:
    plain = encode_prompt(sample("<image>Say it.", picture()), tiles, DIRECT)
    for token in set(tiles.tokenizer.get_added_vocab()) - {"<image>"}:  # that one is the mark itself
        row = sample(f"<image>Say {token} twice: {token}{token}", picture())
        prompt = encode_prompt(row, tiles, DIRECT)
        special = tiles.tokenizer.convert_tokens_to_ids(token)
        assert prompt.input_ids.tolist().count(special) == plain.input_ids.tolist().count(special)
        assert int(prompt.image_mask.sum()) == int(plain.image_mask.sum())
        assert prompt_lengths([outline_of(row)], tiles, DIRECT) == [len(prompt.input_ids)]


def test_rows_whose_images_would_be_moved_from_their_text_are_left_out_one_by_one(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(write_model(tmp_path / "model", LLAVA_ONEVISION))
    questions = ["<image>How many?", "<image>, <image> or <image>?", "<image><image>Compare.", "None."]
    outlines = [outline_of(sample(question, *[picture()] * question.count("<image>"))) for question in questions]
    assert prompts_in_order(outlines, processor, DIRECT) == [True, False, True, True]
    assert largest_prompt(outlines, processor, DIRECT).images == (14,)  # the second would show 15
    rows: Any = _Rows(outlines)
    kept, report = ordered_rows(rows, processor, RunConfig(), DataReport(kept=4))
    assert [outline.question for outline in kept.outlines()] == [questions[0], *questions[2:]]
    assert report.counts == {"text between images, which the model's chat template moves": 1}
    assert "'<image>, <image> or <image>?'" in str(report.examples)


class _Rows:
    def __init__(self, outlines: list[Outline]) -> None:
        self._outlines = outlines

    def outlines(self) -> list[Outline]:
        return self._outlines

    def keep(self, places: Any) -> _Rows:
        return _Rows([self._outlines[place] for place in places])


def test_the_largest_prompt_of_tiles_is_told_without_decoding(tiles: Any) -> None:
    rows = [
        sample("<image>?", picture(300, 200)),
        sample("Are these alike: <image><image><image>?", *[picture(300, 200)] * 3),
        sample("word " * 40),
    ]
    data = DIRECT.model_copy(update={"max_pixels": 60_000})
    prompts = [encode_prompt(row, tiles, data) for row in rows]
    largest = largest_prompt(map(outline_of, rows), tiles, data)
    assert largest.images == max((prompt.image_lengths for prompt in prompts), key=sum)
    assert largest.tokens == max(len(prompt.input_ids) for prompt in prompts)


def test_an_image_made_to_fit_the_budget_is_scaled_once_for_its_tiles(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(write_model(tmp_path / "model", LLAVA_ONEVISION))
    image = Image.effect_noise((300, 500), 90).convert("RGB")
    prompt = encode_prompt(sample("<image>?", image), processor, DIRECT.model_copy(update={"max_pixels": 5 * 56**2}))
    # Four tiles beside the whole image: 2 x 2 keep 112 x 67 pixels of it, a column of 4 no more than 93 x 56.
    assert prompt.vision["image_sizes"].tolist() == [[112, 68]]
    assert prompt.vision["pixel_values"].shape == (1, 5, 3, 56, 56)
    canvas = {"image_grid_pinpoints": [[112, 112]]}
    own = processor(images=[[image]], text=["<image>"], return_tensors="pt", images_kwargs=canvas)["pixel_values"][0]
    pixels = prompt.vision["pixel_values"][0]
    torch.testing.assert_close(pixels[1:], own[1:], rtol=0, atol=1.5 / 127.5)  # one of 255 steps, by rounding
    blurred = (pixels[0] - own[0]).abs().mean()
    assert float(blurred) < 0.05  # the whole image was scaled twice
    small = encode_prompt(sample("<image>?", picture(100, 50)), processor, DIRECT)
    assert small.vision["image_sizes"].tolist() == [[50, 100]]
    several = sample("<image><image>?", image, image)
    several = encode_prompt(several, processor, DIRECT.model_copy(update={"max_pixels": 5 * 56**2}))
    assert several.vision["image_sizes"].tolist() == [[500, 300]] * 2  # each is one tile, whatever the budget


def test_the_model_takes_the_prompts_of_its_own_processor_alone_and_several(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LLAVA_ONEVISION)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    family = family_of(model.config)
    for sizes in ([(300, 40)], [(20, 150)], [(400, 400)], [(50, 60), (300, 100)]):
        for pixels in (3136, 20_000, 401_408):
            row = sample("<image>" * len(sizes) + "?", *[picture(*size) for size in sizes])
            prompt = encode_prompt(row, processor, DIRECT.model_copy(update={"max_pixels": pixels}))
            features = family.encode_images(model, prompt)  # checked: one for each token
            with torch.no_grad():
                expected = model(input_ids=prompt.input_ids[None], **prompt.vision).logits
                inputs = family.prompt_inputs(model, prompt, features)
                states = family.language_model(model)(inputs_embeds=inputs.inputs_embeds).last_hidden_state
                torch.testing.assert_close(family.lm_head(model)(states), expected)


def shows_images_first(processor: Any) -> bool:
    return isinstance(processor, LlavaOnevisionProcessor)


def row_ends(prompt: Prompt, processor: Any) -> list[int]:
    """Tokens of each image that only end a row, by what is left of them without: whole tiles, cut to a map."""
    if not shows_images_first(processor):
        return [0] * len(prompt.image_lengths)
    if len(prompt.image_lengths) != 1:
        return [1] * len(prompt.image_lengths)
    sizes = prompt.vision["image_sizes"].tolist()
    return [processor._get_unpadded_features(*size, 2, 2, *_tiles(size, processor))[1] for size in sizes]


def _tiles(size: list[int], processor: Any) -> tuple[int, int]:
    height, width = select_best_resolution(size, processor.image_processor.image_grid_pinpoints)
    return height // 56, width // 56


@pytest.mark.parametrize(("question", "sizes"), TILED_QUESTIONS.values(), ids=TILED_QUESTIONS.keys())
@pytest.mark.parametrize("pixels", [3136, 20_000, 401_408])
def test_tiles_have_the_ids_and_pixels_of_the_processors_own_way(
    tiles: Any, question: str, sizes: list[tuple[int, int]], pixels: int
) -> None:
    data = DataConfig(prompt_style="direct", max_pixels=pixels)
    row = sample(question, *[Image.effect_noise((width, height), 90).convert("RGB") for height, width in sizes])
    if question == TILED_QUESTIONS["two images"][0] and shows_images_first(tiles):
        with pytest.raises(ImageOrderError, match="set/train/7: there is text between its 2 images"):
            encode_prompt(row, tiles, data)
        return
    prompt = encode_prompt(row, tiles, data)
    text = prompt.text
    given = [
        image.resize((width, height))
        for image, (height, width) in zip(row.images, showing_of(tiles).given(sizes, tiles, data), strict=True)
    ]
    wanted = tiles(
        images=[given] if sizes else None, text=[text], return_tensors="pt", add_special_tokens=False,
        images_kwargs=dict(showing_of(tiles).options(tiles, data)),
    )  # fmt: skip
    assert prompt.input_ids.tolist() == wanted["input_ids"][0].tolist()
    assert prompt.vision.keys() == wanted.keys() - {"input_ids", "attention_mask", "token_type_ids"}
    for name, tensor in prompt.vision.items():
        assert torch.equal(tensor, wanted[name])
    counts = list(prompt_image_tokens(sizes, tiles, data))
    assert int(prompt.image_mask.sum()) == sum(counts)
    assert prompt_lengths([outline_of(row)], tiles, data) == [len(prompt.input_ids)]
    shown = [count - ends for count, ends in zip(counts, row_ends(prompt, tiles), strict=True)]
    least = 2 if len(sizes) == 1 and shows_images_first(tiles) else 1  # LLaVA-OneVision: the whole image and a canvas
    assert all(count * 28**2 <= max(pixels, least * 56**2) for count in shown)
    grids = image_grids(sizes, tiles, data)
    assert [len(grid.areas) for grid in grids] == counts
    areas = [[area for area in grid.areas if area != NOWHERE] for grid in grids]
    for grid, own in zip(grids, areas, strict=True):
        assert all(0 <= top < bottom <= grid.rows for top, bottom, _, _ in own)
        assert all(0 <= left < right <= grid.columns for _, _, left, right in own)
        seen = {
            (row, column)
            for top, bottom, left, right in own
            for row in range(top, bottom)
            for column in range(left, right)
        }
        assert len(seen) == grid.rows * grid.columns
    assert all(NOWHERE not in grid.areas for grid in grids) or shows_images_first(tiles)
