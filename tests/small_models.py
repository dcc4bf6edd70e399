"""Small models of the real architectures with random weights, and prompts made by hand: no files, no processor.

The adapters' B is not zero: with B at zero an adapter does nothing, and A's gradient is zero whatever the engine does.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from vgpo_lite.data_types import Prompt, RolloutGroup, Sample
from vgpo_lite.models.families import family_of
from vgpo_lite.models.policy import Policy
from vgpo_lite.planning import best_canvas, joined_map

if TYPE_CHECKING:
    from collections.abc import Sequence

QWEN_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MODEL_TYPES = (
    *QWEN_TYPES,
    "smolvlm",
    "internvl",
    "llava_onevision",
    "gemma3",
)
WINDOW = 5
"""Tokens that Gemma's first and last layers see: fewer than a prompt or a longer completion has."""
VOCABULARY = 160
VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD = 150, 151, 152, 153, 154
EOS, PAD = 149, 148
FIRST_SPECIAL = PAD
PATCH, MERGE = 4, 2
TILE = PATCH * MERGE
CANVASES = [(TILE * rows, TILE * columns) for rows in range(1, 5) for columns in range(1, 5)]
MAP_TILES = 4
"""Tiles of a LLaVA-OneVision map before it is shrunk, so that small images have shrunk ones too."""

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
IDS = {
    "image_token_id": IMAGE_PAD,
    "video_token_id": VIDEO_PAD,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
PLAIN_TEXT = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
VISION = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2}


def small_model(
    model_type: str, *, layers: int = 3, tied: bool = True, seed: int = 0, vocabulary: int = VOCABULARY
) -> PreTrainedModel:
    """A bare model, float32, eval mode; weights large enough that attention is not flat."""
    torch.manual_seed(seed)
    text = TEXT | {"num_hidden_layers": layers, "vocab_size": vocabulary}
    if model_type not in QWEN_TYPES:
        model = _tiled_model(
            model_type, PLAIN_TEXT | {"num_hidden_layers": layers, "vocab_size": vocabulary}, tied=tied
        )
    elif model_type == "qwen2_vl":
        vision = VISION | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)
        model = Qwen2VLForConditionalGeneration(config)
    elif model_type == "qwen2_5_vl":
        vision = VISION | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
        vision |= {"window_size": 2 * PATCH * MERGE, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)
        model = Qwen2_5_VLForConditionalGeneration(config)
    else:
        text |= {"head_dim": 16, "rope_parameters": TEXT["rope_parameters"] | {"mrope_section": [4, 2, 2]}}
        vision = VISION | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)
        model = Qwen3VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, 1.5 / fan_in**0.5, generator=generator)
        if model_type == "gemma3":  # its embeddings are scaled up, and would drown what the layers say
            model.get_input_embeddings().weight.div_(TEXT["hidden_size"] ** 0.5)
    model.requires_grad_(False)
    return model.eval()


def _tiled_model(model_type: str, text: dict[str, object], *, tied: bool) -> PreTrainedModel:
    """A tile is `TILE` pixels wide: 2 x 2 patches, one image token."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": TILE, "patch_size": PATCH}
    settings = {"image_token_id": IMAGE_PAD, "tie_word_embeddings": tied}
    if model_type == "gemma3":
        kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(text["num_hidden_layers"])]
        text = text | {"rope_parameters": None, "layer_types": kinds, "sliding_window": WINDOW, "head_dim": 16}
        text |= {"query_pre_attn_scalar": 16, "tie_word_embeddings": tied}
        tower |= {"image_size": 2 * TILE, "vision_use_head": False}
        ids = {"image_token_index": IMAGE_PAD, "boi_token_index": VISION_START, "eoi_token_index": VISION_END}
        config = Gemma3Config(
            text_config=text, vision_config=tower, mm_tokens_per_image=MERGE**2, tie_word_embeddings=tied, **ids
        )
        return Gemma3ForConditionalGeneration(config)
    if model_type == "internvl":
        tower |= {"attention_bias": True, "layer_scale_init_value": 0.5}
        settings |= {"image_seq_length": 1, "downsample_ratio": 1 / MERGE}
        config = InternVLConfig(text_config=text | {"model_type": "qwen2"}, vision_config=tower, **settings)
        return InternVLForConditionalGeneration(config)
    if model_type == "llava_onevision":
        settings |= {"image_token_index": settings.pop("image_token_id"), "video_token_index": VIDEO_PAD}
        config = LlavaOnevisionConfig(
            text_config=text | {"model_type": "qwen2", "tie_word_embeddings": tied},
            vision_config=tower | {"model_type": "siglip_vision_model", "vision_use_head": False},
            image_grid_pinpoints=[list(canvas) for canvas in CANVASES],
            vision_aspect_ratio=f"anyres_max_{MAP_TILES}",
            **settings,
        )
        return LlavaOnevisionForConditionalGeneration(config)
    config = SmolVLMConfig(
        text_config=text | {"model_type": "llama"},
        vision_config=tower,
        scale_factor=MERGE,
        pad_token_id=PAD,
        **settings,
    )
    return SmolVLMForConditionalGeneration(config)


def with_adapters(model: PreTrainedModel, *, vision: bool = False, seed: int = 1) -> PeftModel:
    """LoRA on every projection the family names, A and B random."""
    torch.manual_seed(seed)
    targets = family_of(model.config).lora_targets(vision=vision)
    settings = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.0, target_modules=targets, init_lora_weights=False)
    wrapped = get_peft_model(model, settings)
    assert isinstance(wrapped, PeftModel)
    return wrapped.eval()


def in_four_bits(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with the language model's projections in NF4, as bitsandbytes runs them on a CPU."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and family_of(model.config).decoder + ".layers" in name:
            settings = {"compute_dtype": torch.float32, "quant_type": "nf4", "compress_statistics": True}
            quantized = Linear4bit(module.in_features, module.out_features, bias=module.bias is not None, **settings)
            quantized.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            quantized.bias = module.bias
            model.set_submodule(name, quantized.to("cpu"))
    model.is_loaded_in_4bit = True
    return model


def small_policy(
    model_type: str, *, vision: bool = False, quantized: bool = False, tied: bool = True, layers: int = 3, seed: int = 0
) -> Policy:
    """A policy around a small model with adapters, float32 on the CPU, in training mode as a loaded one."""
    model = small_model(model_type, tied=tied, layers=layers, seed=seed)
    wrapped = with_adapters(in_four_bits(model) if quantized else model, vision=vision)
    return Policy(
        model=wrapped.train(),
        family=family_of(model.config),
        processor=None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        quantization="nf4" if quantized else "none",
        eos_ids=(EOS,),
        pad_id=PAD,
        suppressed_ids=(VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD),
        model_id=model_type,
        revision=None,
    )


def small_policy_model(model_type: str, *, vision: bool = False, tied: bool = True, seed: int = 0) -> PeftModel:
    """A small model with adapters, float32, eval mode."""
    return with_adapters(small_model(model_type, tied=tied, seed=seed), vision=vision)


def make_prompt(
    grids: Sequence[tuple[int, int]] = ((2, 3),), *, text: Sequence[int] = (4, 5, 6, 7), seed: int = 0
) -> Prompt:
    """A prompt with one image per grid.

    Args:
        grids: Height and width of each image, in image tokens.
        text: Text tokens before, between and behind the images; the first `len(grids) + 1` are used.
        seed: Of pixels and text.
    """
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for place in range(len(grids) + 1):
        ids += torch.randint(0, FIRST_SPECIAL, (text[place],), generator=generator).tolist()
        if place < len(grids):
            height, width = grids[place]
            ids += [VISION_START, *[IMAGE_PAD] * (height * width), VISION_END]
    input_ids = torch.tensor(ids)
    vision = {}
    if grids:
        patches = sum(height * width * MERGE**2 for height, width in grids)
        vision = {
            "pixel_values": torch.randn(patches, 3 * 2 * PATCH**2, generator=generator),
            "image_grid_thw": torch.tensor([[1, height * MERGE, width * MERGE] for height, width in grids]),
        }
    sample = Sample(sample_id=f"hand/{seed}", question="?", images=(), answer=None)
    return Prompt(sample=sample, text="", input_ids=input_ids, image_mask=input_ids == IMAGE_PAD, vision=vision)


def seen_by(model_type: str, prompt: Prompt) -> Prompt:
    """The same prompt as another family shows it: as many images in the same places, of its own pixels and tokens."""
    if model_type in QWEN_TYPES or not prompt.has_image:
        return prompt
    return _with_images(prompt, *_tiles(model_type, [length for image, length in _runs(prompt) if image]))


def seen_alone(prompt: Prompt, size: tuple[int, int]) -> Prompt:
    """The same prompt with its one image, of that height and width in pixels, as LLaVA-OneVision shows it."""
    return _with_images(prompt, *_joined_tiles([size], torch.Generator().manual_seed(0)))


def _runs(prompt: Prompt) -> list[tuple[bool, int]]:
    """Tokens that stand together: whether they are an image's, and how many."""
    return [(bool(image), len(list(run))) for image, run in groupby(prompt.image_mask.tolist())]


def _with_images(prompt: Prompt, counts: list[int], vision: dict[str, torch.Tensor]) -> Prompt:
    lengths, ids, place = tuple(counts), [], 0
    for image, length in _runs(prompt):
        ids += [IMAGE_PAD] * counts.pop(0) if image else prompt.input_ids[place : place + length].tolist()
        place += length
    input_ids = torch.tensor(ids)
    return replace(prompt, input_ids=input_ids, image_mask=input_ids == IMAGE_PAD, vision=vision, image_lengths=lengths)


def _tiles(model_type: str, lengths: Sequence[int]) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Tokens and pixels of images that are asked to have about that many tokens."""
    generator = torch.Generator().manual_seed(len(lengths))
    if model_type == "gemma3":  # one size for all
        pixels = torch.randn(len(lengths), 3, 2 * TILE, 2 * TILE, generator=generator)
        return [MERGE**2] * len(lengths), {"pixel_values": pixels}
    if model_type == "llava_onevision":
        alone = len(lengths) == 1  # of many forms, so that maps are cut and shrunk
        return _joined_tiles([(2 * TILE, 5 * length) if alone else (TILE, length) for length in lengths], generator)
    pixels = torch.randn(sum(lengths), 3, TILE, TILE, generator=generator)
    if model_type == "internvl":
        return list(lengths), {"pixel_values": pixels}
    mask = torch.ones(1, sum(lengths), TILE, TILE, dtype=torch.long)
    return list(lengths), {"pixel_values": pixels[None], "pixel_attention_mask": mask}


def _joined_tiles(
    sizes: Sequence[tuple[int, int]], generator: torch.Generator
) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Each of several images is a tile of `MERGE` x `MERGE` tokens and one token more; a lone one has a canvas too."""
    tiles, counts = [1], [MERGE**2 + 1] * len(sizes)
    if len(sizes) == 1:
        canvas = best_canvas(sizes[0], CANVASES)
        rows, columns = joined_map(sizes[0], canvas, tile=TILE, side=MERGE, most=MAP_TILES)
        tiles, counts = [1 + canvas[0] * canvas[1] // TILE**2], [MERGE**2 + rows * (columns + 1)]
    return counts, {
        "pixel_values": torch.randn(len(sizes), *tiles, 3, TILE, TILE, generator=generator),
        "image_sizes": torch.tensor(sizes),
        "batch_num_images": torch.tensor([len(sizes)]),
    }


def make_group(prompt: Prompt, lengths: Sequence[int], *, seed: int = 0) -> RolloutGroup:
    """A group of random completions; what lies under the padding is a valid id that nobody sampled."""
    generator = torch.Generator().manual_seed(1000 + seed)
    longest = max(lengths)
    ids = torch.randint(0, FIRST_SPECIAL, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest)[None] < torch.tensor(list(lengths))[:, None]
    return RolloutGroup(
        prompt=prompt,
        completion_ids=ids,
        completion_mask=mask,
        sampling_logprobs=torch.zeros(len(lengths), longest),
        decode_focus=None,
        finished=torch.ones(len(lengths), dtype=torch.bool),
        texts=("",) * len(lengths),
    )
