"""Image grids without a processor are those of the processors."""

from __future__ import annotations

import random

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vgpo_lite.planning import resized


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
