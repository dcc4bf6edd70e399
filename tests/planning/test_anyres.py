"""Canvases, maps and token counts of LLaVA-OneVision are those of transformers, and stay within the pixel budget."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import LlavaOnevisionConfig, LlavaOnevisionProcessor
from transformers.image_processing_utils import select_best_resolution

from tests.small_models import make_prompt, seen_alone, small_model
from vgpo_lite.commands import planned
from vgpo_lite.config.load import load_config
from vgpo_lite.data_types import Outline
from vgpo_lite.planning import Job, PromptSize, best_canvas, canvas_fit, joined_map, joined_tokens, preset_architectures
from vgpo_lite.planning.anyres import most_joined_tokens
from vgpo_lite.planning.images import most_tiles
from vgpo_lite.planning.phases import vision_parts

RELEASED = [tuple(canvas) for canvas in LlavaOnevisionConfig().image_grid_pinpoints]
CANVASES = st.lists(
    st.tuples(st.integers(1, 7), st.integers(1, 7)).map(lambda tiles: (tiles[0] * 384, tiles[1] * 384)),
    min_size=1,
    max_size=12,
)
SIZES = st.tuples(st.integers(1, 6000), st.integers(1, 6000))
BUDGETS = st.integers(1, 60 * 384**2)


@settings(max_examples=300, deadline=None)
@given(SIZES, st.one_of(st.just(RELEASED), CANVASES))
@example((1, 5000), RELEASED)
def test_the_canvas_is_the_one_that_transformers_selects(
    size: tuple[int, int], canvases: list[tuple[int, int]]
) -> None:
    assert best_canvas(size, canvases) == select_best_resolution(size, canvases)


@settings(max_examples=500, deadline=None)
@given(SIZES, st.one_of(st.just(RELEASED), CANVASES), BUDGETS)
@example((1, 5000), RELEASED, 1)
@example((6000, 1), RELEASED, 60 * 384**2)
def test_an_image_made_to_fit_is_given_a_canvas_within_the_budget(
    size: tuple[int, int], canvases: list[tuple[int, int]], pixels: int
) -> None:
    height, width = canvas_fit(size, canvases=canvases, tile=384, max_pixels=pixels)
    chosen = select_best_resolution((height, width), canvases)
    tiles, smallest = math.prod(chosen) // 384**2, min(map(math.prod, canvases)) // 384**2
    assert (tiles + 1) * 384**2 <= pixels or tiles <= max(smallest, 1)
    assert 1 <= height <= size[0]
    assert 1 <= width <= size[1]
    own = select_best_resolution(size, canvases)
    if math.prod(own) <= math.prod(chosen):
        assert (height, width) == size  # nothing is taken from an image that is within the budget by itself
    elif (height, width) != size:
        scale = min(height / size[0], width / size[1])
        assert abs(height - scale * size[0]) <= 1  # its form is kept to the pixel
        assert abs(width - scale * size[1]) <= 1


@settings(max_examples=300, deadline=None)
@given(SIZES.filter(lambda size: max(size) <= 100 * min(size)), BUDGETS)
def test_no_allowed_canvas_would_have_kept_more_of_the_image(size: tuple[int, int], pixels: int) -> None:
    height, width = canvas_fit(size, canvases=RELEASED, tile=384, max_pixels=pixels)
    allowed = [canvas for canvas in RELEASED if math.prod(canvas) <= most_tiles(384, max_pixels=pixels) * 384**2]
    best = max(min(canvas[0] / size[0], canvas[1] / size[1], 1.0) for canvas in allowed)
    assert height >= math.floor(best * size[0] * (1 - 1e-9))
    assert width >= math.floor(best * size[1] * (1 - 1e-9))


def counted_by_transformers(size: tuple[int, int], *, side: int = 27, most: int = 9) -> int:
    """Tokens of an image, by as much of transformers' processor as counts them."""
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens, processor.vision_aspect_ratio = side**2, f"anyres_max_{most}"
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=RELEASED)
    return processor._get_number_of_features(*size, 384, 384)


@settings(max_examples=500, deadline=None)
@given(SIZES, st.sampled_from([2, 3, 27]), st.sampled_from([1, 4, 9]))
@example((6000, 60), 27, 9)
@example((2300, 2300), 27, 9)
def test_maps_hold_the_tokens_that_the_processor_counts(size: tuple[int, int], side: int, most: int) -> None:
    rows, columns = joined_map(size, best_canvas(size, RELEASED), tile=384, side=side, most=most)
    assert side**2 + rows * (columns + 1) == counted_by_transformers(size, side=side, most=most)


@settings(max_examples=500, deadline=None)
@given(SIZES, BUDGETS)
@example((2000, 100), 7 * 384**2)
def test_a_plan_without_a_processor_counts_the_same_and_bounds_it(size: tuple[int, int], pixels: int) -> None:
    given_size = canvas_fit(size, canvases=RELEASED, tile=384, max_pixels=pixels)
    counted = counted_by_transformers(given_size)
    assert joined_tokens(size, tile=384, tile_tokens=729, max_pixels=pixels) == counted
    vision = preset_architectures()["llava-onevision-7b"].vision
    assert counted <= vision.tokens_within(pixels)
    canvas = select_best_resolution(given_size, RELEASED)
    assert vision.patches_of(counted, pixels=pixels) >= 729 * (1 + math.prod(canvas) // 384**2)


@pytest.mark.parametrize("tiles", [1, 2, 6])
def test_a_column_of_tiles_has_the_most_tokens(tiles: int) -> None:
    # A column of n tiles: 27 x 27 n tokens in 27 n rows, one more behind each row, and the whole image's 27 x 27.
    assert most_joined_tokens(729, tiles) == 729 + 27 * 27 * tiles + 27 * tiles
    assert joined_tokens((384 * tiles, 384), tile=384, tile_tokens=729, max_pixels=10**7) == most_joined_tokens(
        729, tiles
    )


def test_each_of_several_images_is_one_tile_for_the_tower() -> None:
    vision = preset_architectures()["llava-onevision-0.5b"].vision
    sizes = PromptSize(text_tokens=10, images=(730, 730)).images
    assert [vision.patches_of(tokens, pixels=10**7) for tokens in sizes] == [729, 729]
    assert vision.patches_of(1485, pixels=401_408) == 2 * 729


def test_data_without_a_processor_counts_several_images_as_a_tile_each() -> None:
    config, model = load_config(model="llava-onevision-0.5b"), preset_architectures()["llava-onevision-0.5b"]
    alone = Outline(sample_id="a", question="<image>?", image_sizes=((480, 640),), answer=None)
    several = replace(alone, image_sizes=((480, 640), (2000, 20), (384, 384)))
    # The default budget holds a canvas of one tile: 27 columns, and 20 of its 27 rows show 3/4 as high an image; one
    # more for odd padding. With the whole image that is 729 + 21 x 28.
    assert planned._image_tokens(alone, config, model) == (729 + 21 * 28,)
    assert planned._image_tokens(several, config, model) == (730, 730, 730)


def test_the_model_holds_what_goes_on_between_all_blocks_and_the_plan_counts_it() -> None:
    prompt = seen_alone(make_prompt([(3, 3)]), (16, 45))
    output = small_model("llava_onevision").get_image_features(**prompt.vision)
    assert [tuple(states.shape) for states in output.hidden_states] == [(9, 4, 32)] * (2 + 1)  # two blocks
    config, model = load_config(model="llava-onevision-0.5b"), preset_architectures()["llava-onevision-0.5b"]
    largest = PromptSize(text_tokens=10, images=(1485,))
    held = vision_parts(Job(model=model, config=config, largest=largest))["vision tower"]
    forgets = replace(model, vision=replace(model.vision, keeps_states=False))
    # 27 states of 1,152 numbers of 2 bytes, of 2 x 729 patches.
    assert (
        held - vision_parts(Job(model=forgets, config=config, largest=largest))["vision tower"] == 27 * 1152 * 2 * 1458
    )
