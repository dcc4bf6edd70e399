"""What the engine's benchmarks run on: a true architecture with random weights, and one question on one image."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

import vgpo_lite.models.tiny
from vgpo_lite.config.schema import DataConfig
from vgpo_lite.data_types import Sample
from vgpo_lite.prompts import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = Path(next(iter(vgpo_lite.models.tiny.__path__)))
PIXELS_PER_TOKEN_SIDE = 28
DATA = DataConfig(max_pixels=10_000_000, max_prompt_length=100_000)
WORDS = "how many red circles are there in this image of shapes ? "


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2-VL. The tower works four patches per image token, as the real ones do."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_hidden: int
    vision_depth: int
    vision_heads: int


SHAPES = {
    # 51.7 million parameters in the proportions of Qwen2-VL-2B: for each token, the head costs 18 % of what the
    # decoder's layers cost; for each image token, the tower's layers cost 1.9 times as much as the decoder's.
    "52m": Shape(512, 2688, 6, 8, 2, 10_240, 384, 8, 6),
    "3m": Shape(128, 320, 4, 4, 2, 4_000, 96, 2, 4),
}


@dataclass(frozen=True)
class Work:
    """One optimizer step's worth: one prompt, one group, no early end.

    Attributes:
        image_tokens: A square number.
        text_tokens: Of the question, about.
        completion: Tokens of each completion.
        generations: Completions.
    """

    image_tokens: int
    text_tokens: int
    completion: int
    generations: int = 8


def write_model(folder: Path, shape: Shape) -> None:
    """Write a loadable model with random weights and the built-in model's processor."""
    ids = json.loads((TINY / "config.json").read_text())
    section = shape.hidden // shape.heads // 2
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": 32_768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [section - 2 * (section * 3 // 8), section * 3 // 8, section * 3 // 8],
            },
            "bos_token_id": None,
            "eos_token_id": ids["text_config"]["eos_token_id"],
            "pad_token_id": ids["text_config"]["pad_token_id"],
        },
        vision_config={
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_hidden,
            "hidden_size": shape.hidden,
            "num_heads": shape.vision_heads,
            "mlp_ratio": 4,
            "patch_size": 14,
        },
        tie_word_embeddings=True,
        **{name: ids[name] for name in ids if name.endswith("_token_id")},
    )
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    processor = json.loads((TINY / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"shortest_edge": 784, "longest_edge": DATA.max_pixels}
    (folder / "processor_config.json").write_text(json.dumps(processor))


def question(work: Work, processor: Any) -> Sample:
    """A grey image of the wanted size and a question of the wanted length."""
    side = round(work.image_tokens**0.5) * PIXELS_PER_TOKEN_SIDE
    image = Image.effect_noise((side, side), 60).convert("RGB")
    words = WORDS
    while True:
        sample = Sample(sample_id="benchmark", question=f"<image>{words}", images=(image,), answer="1")
        if encode_prompt(sample, processor, DATA).input_ids.shape[0] >= work.image_tokens + work.text_tokens:
            return sample
        words += WORDS


def operation_counter() -> FlopCounterMode:
    """Counts floating-point operations of products; torch's own forgets the fused attention of a CPU."""
    kernels = torch.ops.aten

    def forward(query, key, value, *_others, out_shape=None, **_more):
        return sdpa_flop_count(query, key, value)

    def backward(gradient, query, key, value, *_others, out_shape=None, **_more):
        return sdpa_backward_flop_count(gradient, query, key, value)

    forms = {
        kernels._scaled_dot_product_flash_attention_for_cpu: forward,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=forms)


def peak_allocation(function: Callable[[], object]) -> int:
    """The most bytes of tensors that a function holds at one time on the CPU, above what is held at its start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    return peak_of(record)


def peak_of(record: profile) -> int:
    """The same of a recording."""
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
