"""Image grids without a processor are those of the processors."""

from __future__ import annotations

import random

from PIL import Image
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from vgpo_lite.planning import cropped_tiles, preset_architectures, resized, split_tiles, tiles_per_side


def test_grids_are_those_of_the_familys_processor():
    generator = random.Random(0)
    for side in (28, 32):
        processor = Qwen2VLImageProcessorPil(patch_size=side // 2, merge_size=2)
        for _ in range(300):
            size = generator.randint(30, 3000), generator.randint(30, 3000)
            budget = {"min_pixels": 3136, "max_pixels": generator.choice([50_000, 401_408, 1_000_000])}
            height, width = resized(size, side=side, **budget)
            patches = processor.get_number_of_image_patches(*size, budget)
            assert height * width // (side // 2) ** 2 == patches, size


def test_tiles_are_those_that_smolvlm_splits_an_image_into():
    generator, processor = random.Random(0), SmolVLMImageProcessorPil(max_image_size={"longest_edge": 16})
    for _ in range(100):
        size = generator.randint(2, 300), generator.randint(2, 300)
        edge = 16 * generator.randint(1, 4)
        image = Image.new("RGB", (size[1], size[0]), "red")
        made = processor(image, size={"longest_edge": edge}, return_row_col_info=True)
        assert split_tiles(size, tile=16, longest_edge=edge) == (made["rows"][0][0], made["cols"][0][0]), (size, edge)


def test_tiles_and_the_whole_image_beside_them_stay_within_the_budget():
    for pixels in range(100, 40_000, 50):
        side = tiles_per_side(16, max_pixels=pixels)
        assert (side**2 + (side > 1)) * 256 <= pixels or side == 1
        assert ((side + 1) ** 2 + 1) * 256 > pixels


def test_an_image_of_gemma_is_one_square_whatever_the_budget():
    vision = preset_architectures()["gemma3-4b"].vision
    assert [vision.tokens_within(pixels) for pixels in (784, 401_408, 5_000_000)] == [256, 256, 256]
    assert vision.patches_of(256, pixels=401_408) == 64 * 64


def test_tiles_are_those_that_internvl_crops_an_image_into():
    generator = random.Random(0)
    for _ in range(500):
        size, most = (generator.randint(2, 900), generator.randint(2, 900)), generator.randint(1, 12)
        columns, rows = get_optimal_tiled_canvas(size, (448, 448), 1, most)
        assert cropped_tiles(size, tile=448, most=most) == ((0, 0) if rows == columns == 1 else (rows, columns)), size
