"""The small models of the families that cut images into tiles, under the real names; the rest is in `models`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import GPT2Tokenizer, Qwen2Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SMOLVLM2 = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
INTERNVL3 = "OpenGVLab/InternVL3-1B-hf"
LLAVA_ONEVISION = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
TILED = (
    SMOLVLM2,
    INTERNVL3,
    LLAVA_ONEVISION,
)

TILE, PATCH, MERGE = 56, 14, 2  # 2 x 2 image tokens of 28 x 28 pixels in a tile
SEQUENCE = (TILE // PATCH // MERGE) ** 2

_SMOLVLM_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)  # fmt: skip
_INTERNVL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<box>", "</box>",
)  # fmt: skip
_LLAVA_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
TOKENS = {
    SMOLVLM2: _SMOLVLM_TOKENS,
    INTERNVL3: _INTERNVL_TOKENS,
    LLAVA_ONEVISION: _LLAVA_TOKENS,
}
ENDS = {
    SMOLVLM2: ("<end_of_utterance>", "<|im_end|>"),
    INTERNVL3: ("<|im_end|>", "<|endoftext|>"),
    LLAVA_ONEVISION: ("<|im_end|>", "<|endoftext|>"),
}
"""The end of a turn, and the padding."""
_IMAGE = {
    SMOLVLM2: "<image>",
    INTERNVL3: "<IMG_CONTEXT>",
    LLAVA_ONEVISION: "<image>",
}
WORDS = {
    "<|im_start|>",
    "<|im_end|>",
    "<end_of_utterance>",
    "<|endoftext|>",
    "<box>",
    "</box>",
}  # special, and nothing to do with images
MODEL_TYPES = {
    SMOLVLM2: "smolvlm",
    INTERNVL3: "internvl",
    LLAVA_ONEVISION: "llava_onevision",
}
CANVASES = [[TILE * rows, TILE * columns] for rows in range(1, 7) for columns in range(1, 7)]
_PIECES = 400  # as in `models`

_SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{# Render all images first #}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEMPLATES = {
    SMOLVLM2: _SMOLVLM_TEMPLATE,
    INTERNVL3: _INTERNVL_TEMPLATE,
    LLAVA_ONEVISION: _LLAVA_TEMPLATE,
}


def token_id(token: str, name: str) -> int:
    """The id of one of the special tokens in the small tokenizer of that model."""
    return _PIECES + TOKENS[name].index(token)


def config(name: str, text: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json, nested as in the real ones."""
    end, padding = (token_id(token, name) for token in ENDS[name])
    text = {**text, "bos_token_id": None, "eos_token_id": end, "pad_token_id": padding}
    tower = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": TILE, "patch_size": PATCH, "initializer_range": 0.08,
    }  # fmt: skip
    common = {"image_token_id": token_id(_IMAGE[name], name), "tie_word_embeddings": False, "dtype": "bfloat16"}
    if name == INTERNVL3:
        return common | {
            "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl", "downsample_ratio": 0.5,
            "image_seq_length": SEQUENCE, "text_config": text | {"model_type": "qwen2", "rope_theta": 1000000.0},
            "vision_config": tower | {
                "model_type": "internvl_vision", "attention_bias": True, "image_size": [TILE, TILE],
                "patch_size": [PATCH, PATCH],
            },
        }  # fmt: skip
    if name == LLAVA_ONEVISION:
        # Patches of two tokens' side, as nothing is merged; and tied, as the real one, by the text's part alone.
        common["image_token_index"] = common.pop("image_token_id")
        return common | {
            "architectures": ["LlavaOnevisionForConditionalGeneration"], "model_type": "llava_onevision",
            "video_token_index": token_id("<video>", name), "image_grid_pinpoints": CANVASES,
            "vision_aspect_ratio": "anyres_max_9", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
            "use_image_newline_parameter": True, "projector_hidden_act": "gelu",
            "text_config": text | {"model_type": "qwen2", "rope_theta": 1000000.0, "tie_word_embeddings": True},
            "vision_config": tower | {
                "model_type": "siglip_vision_model", "patch_size": MERGE * PATCH, "vision_use_head": False,
            },
        }  # fmt: skip
    return common | {
        "architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm", "scale_factor": MERGE,
        "pad_token_id": padding, "text_config": text | {"model_type": "llama", "rope_theta": 100000},
        "vision_config": tower | {"model_type": "smolvlm_vision", "max_image_size": {"longest_edge": TILE}},
    }  # fmt: skip


def write_processor(folder: Path, name: str, vocabulary: Mapping[str, int], merges: Sequence[Any]) -> None:
    """Tokenizer, image processor, chat template and generation configuration, in the files of the real repositories."""
    specials = {token: token_id(token, name) for token in TOKENS[name]}
    end, padding = ENDS[name]
    ends = {"eos_token": end, "pad_token": padding}
    pieces: dict[str, Any] = {"vocab": {**vocabulary, **specials}, "merges": list(merges)}
    if name == INTERNVL3:
        named = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
        tokenizer = Qwen2Tokenizer(**pieces, **ends, extra_special_tokens=named)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<box>", "</box>"]})
    elif name == LLAVA_ONEVISION:
        tokenizer = Qwen2Tokenizer(**pieces, **ends)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>", "<video>"]})
    else:
        tokenizer = GPT2Tokenizer(
            **pieces, **ends, extra_special_tokens=list(TOKENS[name]), bos_token="<|im_start|>", unk_token=padding
        )
    tokenizer.save_pretrained(folder)
    files = _processor_files(name) | {
        "chat_template.json": {"chat_template": _TEMPLATES[name]},
        "generation_config.json": {
            "eos_token_id": token_id(end, name), "pad_token_id": token_id(padding, name), "do_sample": True,
            "temperature": 0.2, "repetition_penalty": 1.1,
        },
    }  # fmt: skip
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")


def _processor_files(name: str) -> dict[str, dict[str, Any]]:
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if name == INTERNVL3:
        return {
            "preprocessor_config.json": colours | {
                "image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": False, "min_patches": 1,
                "max_patches": 6, "size": {"height": TILE, "width": TILE}, "processor_class": "InternVLProcessor",
            },
            "video_preprocessor_config.json": {"video_processor_type": "InternVLVideoProcessor"},
            "processor_config.json": {"image_seq_length": SEQUENCE, "processor_class": "InternVLProcessor"},
        }  # fmt: skip
    if name == LLAVA_ONEVISION:
        return {
            "preprocessor_config.json": colours | {
                "image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True, "resample": 3,
                "size": {"height": TILE, "width": TILE}, "image_grid_pinpoints": CANVASES,
                "processor_class": "LlavaOnevisionProcessor",
            },
            "video_preprocessor_config.json": {
                "video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": TILE, "width": TILE},
            },
            "processor_config.json": {
                "num_image_tokens": SEQUENCE, "vision_feature_select_strategy": "full", "image_token": "<image>",
                "video_token": "<video>", "vision_aspect_ratio": "anyres_max_9",
                "processor_class": "LlavaOnevisionProcessor",
            },
        }  # fmt: skip
    return {
        "preprocessor_config.json": colours | {
            "image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": True, "do_pad": True,
            "max_image_size": {"longest_edge": TILE}, "size": {"longest_edge": 4 * TILE},
            "processor_class": "SmolVLMProcessor",
        },
        "video_preprocessor_config.json": {"video_processor_type": "SmolVLMVideoProcessor"},
        "processor_config.json": {"image_seq_len": SEQUENCE, "processor_class": "SmolVLMProcessor"},
    }  # fmt: skip
