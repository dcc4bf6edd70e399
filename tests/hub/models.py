"""Small models of the real architectures, in folders laid out as the hub has them, under the real names.

What the real repositories have, these have: the flat configurations of the Qwen2 generation and the nested one of
Qwen3-VL, weights in several shards with an index, tied or untied output layers as in the size they stand for, a
generation configuration that samples nearly greedily and names two ends of sequence, a byte-level tokenizer with Qwen's
special tokens, and a chat template of the family's form. Only the widths and depths are small.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2Tokenizer

from tests.hub import gemma, tiled
from tests.hub.gemma import GEMMA3
from tests.hub.tiled import TILED

if TYPE_CHECKING:
    from pathlib import Path

QWEN2_VL = "Qwen/Qwen2-VL-2B-Instruct"
QWEN2_5_VL = "Qwen/Qwen2.5-VL-3B-Instruct"
QWEN3_VL = "Qwen/Qwen3-VL-2B-Instruct"
QWENS = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)
SMALLEST_OF_EACH_FAMILY = (*QWENS, *TILED, GEMMA3)
UNTIED = ("Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PIECES = 400  # byte-level pieces of the small vocabulary, the 256 bytes included
VOCABULARY = 448  # rows of the embedding: as in the real models, more than there are tokens

_CORPUS = (
    "system\nYou are a helpful assistant.\nuser\nassistant\n",
    "Answer the question about the image. How many red circles are there in the picture? Find the angle x.",
    "First think about the question inside <think> </think> tags, then put the final answer in \\boxed{}.",
    "<think> I count the shapes row by row. </think> The answer is \\boxed{12}. <answer> 3 </answer>",
    "Put only the final answer inside \\boxed{}.",
)

_VISION_SLOT = (
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}"
)
_TURN = (
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    + _VISION_SLOT
    + "{% endif %}<|im_end|>\n"
)
_QWEN2_TEMPLATE = (
    "{%- for message in messages -%}{%- if loop.first and message['role'] != 'system' -%}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif -%}"
    + _TURN
    + "{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
_QWEN3_TEMPLATE = (
    "{%- for message in messages -%}"
    + _TURN
    + "{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)


@lru_cache(maxsize=1)
def _pieces() -> tuple[dict[str, int], Any]:
    """The vocabulary and merges of a small byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in trained["merges"]]
    return trained["vocab"], merges


def token_id(token: str) -> int:
    """The id of one of the special tokens in the small tokenizers."""
    return len(_pieces()[0]) + SPECIAL_TOKENS.index(token)


def _text_config(name: str) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.08,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": name not in UNTIED,
        "use_cache": True,
        "attention_dropout": 0.0,
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
    }


def _vision_ids() -> dict[str, int]:
    return {
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
    }


def _qwen2_vl_config(name: str) -> dict[str, Any]:
    vision = {
        "depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3, "hidden_size": 64,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
        "initializer_range": 0.08,
    }  # fmt: skip
    return _text_config(name) | _vision_ids() | {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
        "vision_token_id": token_id("<|vision_pad|>"), "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "use_sliding_window": False,
        "sliding_window": 32768, "max_window_layers": 3, "vision_config": vision,
    }  # fmt: skip


def _qwen2_5_vl_config(name: str) -> dict[str, Any]:
    vision = {
        "depth": 2, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "in_chans": 3,
        "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 56,
        "fullatt_block_indexes": [1], "tokens_per_second": 2, "temporal_patch_size": 2, "initializer_range": 0.08,
    }  # fmt: skip
    return _text_config(name) | _vision_ids() | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "vision_token_id": token_id("<|vision_pad|>"), "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "use_sliding_window": False,
        "sliding_window": 32768, "max_window_layers": 3, "vision_config": vision,
    }  # fmt: skip


def _qwen3_vl_config(name: str) -> dict[str, Any]:
    text = _text_config(name) | {
        "model_type": "qwen3_vl_text", "head_dim": 16, "attention_bias": False, "dtype": "bfloat16",
        "rope_theta": 5000000, "rope_scaling": {
            "mrope_interleaved": True, "mrope_section": [2, 3, 3], "rope_type": "default",
        },
    }  # fmt: skip
    vision = {
        "model_type": "qwen3_vl", "depth": 3, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 32, "in_channels": 3,
        "intermediate_size": 64, "num_heads": 2, "num_position_embeddings": 64, "out_hidden_size": 64, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.08,
    }  # fmt: skip
    return _vision_ids() | {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "tie_word_embeddings": name not in UNTIED, "text_config": text, "vision_config": vision,
    }  # fmt: skip


_FAMILIES = {"Qwen2-VL": _qwen2_vl_config, "Qwen2.5-VL": _qwen2_5_vl_config, "Qwen3-VL": _qwen3_vl_config}


def _config(name: str) -> dict[str, Any]:
    if name == GEMMA3:
        return gemma.config(_text_config(name), _CORPUS)
    return tiled.config(name, _text_config(name)) if name in TILED else _FAMILIES[_family(name)](name)


def _generation_config(name: str) -> dict[str, Any]:
    """Near-greedy settings like those the real repositories ship: a trainer must not inherit them."""
    if "Qwen3-VL" in name:
        sampling = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0}
    elif "Qwen2.5-VL" in name:
        sampling = {"temperature": 1e-06, "repetition_penalty": 1.05}
    else:
        sampling = {"temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.0}
    ends = [token_id("<|im_end|>"), token_id("<|endoftext|>")]
    return {"bos_token_id": ends[1], "pad_token_id": ends[1], "do_sample": True, "eos_token_id": ends} | sampling


def _write_processor(folder: Path, name: str) -> None:
    vocabulary, merges = _pieces()
    specials = {token: token_id(token) for token in SPECIAL_TOKENS}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary | specials,
        merges=merges,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.save_pretrained(folder)
    qwen3 = "Qwen3-VL" in name
    patch = 16 if qwen3 else 14
    image = {
        "size": {"shortest_edge": (2 * patch) ** 2 * 4, "longest_edge": 12845056}, "patch_size": patch,
        "temporal_patch_size": 2, "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": [0.5] * 3 if qwen3 else [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.5] * 3 if qwen3 else [0.26862954, 0.26130258, 0.27577711],
        "processor_class": {"Qwen2-VL": "Qwen2VLProcessor", "Qwen2.5-VL": "Qwen2_5_VLProcessor",
                            "Qwen3-VL": "Qwen3VLProcessor"}[_family(name)],
    }  # fmt: skip
    if not qwen3:
        image |= {"min_pixels": 3136, "max_pixels": 12845056}
    _write_json(folder / "preprocessor_config.json", image)
    _write_json(folder / "chat_template.json", {"chat_template": _QWEN3_TEMPLATE if qwen3 else _QWEN2_TEMPLATE})


def _family(name: str) -> str:
    return next(family for family in _FAMILIES if f"/{family}-" in name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_model(folder: Path, name: str, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a small model that stands for the real one of that name; the same seed writes the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    content = _config(name)
    _write_json(folder / "config.json", content)
    config = AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms of one and biases of zero would hide a mix-up of them
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
                elif not parameter.any():  # Gemma's projector begins blind
                    parameter.normal_(0.0, 0.08)
    model.save_pretrained(folder, max_shard_size="200KB")
    _write_json(folder / "config.json", content)
    if name == GEMMA3:
        gemma.write_processor(folder, _CORPUS)
    elif name in TILED:
        tiled.write_processor(folder, name, *_pieces())
    else:
        _write_json(folder / "generation_config.json", _generation_config(name))
        _write_processor(folder, name)
    return folder
