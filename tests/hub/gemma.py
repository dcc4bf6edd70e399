"""A small Gemma 3 under its real name: its tokenizer, its processor, windows in five of six layers; the rest is in
`models`."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import GemmaTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GEMMA3 = "google/gemma-3-4b-it"
SIDE, PATCH, TOKENS_PER_SIDE = 112, 14, 4  # 8 x 8 patches, pooled to 4 x 4 tokens
SEQUENCE = TOKENS_PER_SIDE**2
WINDOW = 24
LINE_ENDS = ("\n\n", "\n\n\n", "\n\n\n\n")  # tokens of their own, none of them special

_FIRST = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *LINE_ENDS, *(f"<0x{byte:02X}>" for byte in range(256)))
_LAST = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
WORDS = {"<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<mask>"}  # special, and nothing to do with images

_TEMPLATE = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


@lru_cache(maxsize=1)
def _pieces(corpus: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: characters with bytes to fall back on, blanks written as a low line's cousin."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=len(_FIRST) + 200, special_tokens=list(_FIRST), show_progress=False, min_frequency=1,
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["▁", "\n"],
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return trained["vocab"], [tuple(merge) for merge in trained["merges"]]


def token_id(token: str, corpus: Sequence[str]) -> int:
    """The id of one of the special tokens in the small tokenizer."""
    vocabulary, _ = _pieces(tuple(corpus))
    return vocabulary[token] if token in vocabulary else len(vocabulary) + _LAST.index(token)


def config(text: Mapping[str, Any], corpus: Sequence[str]) -> dict[str, Any]:
    """The content of config.json, which leaves out what is the architecture's default, as the real one does."""
    kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "initializer_range")
    return {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": SEQUENCE,
        "boi_token_index": token_id("<start_of_image>", corpus), "eoi_token_index": token_id("<end_of_image>", corpus),
        "image_token_index": token_id("<image_soft_token>", corpus), "initializer_range": 0.02,
        "eos_token_id": [token_id("<eos>", corpus), token_id("<end_of_turn>", corpus)], "torch_dtype": "bfloat16",
        "text_config": {name: text[name] for name in kept} | {
            "model_type": "gemma3_text", "num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 16,
            "sliding_window": WINDOW, "sliding_window_pattern": 2, "vocab_size": 640,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False,
        },
    }  # fmt: skip


def write_processor(folder: Path, corpus: Sequence[str]) -> None:
    """Tokenizer, image processor, chat template and generation configuration, in the files of the real repository."""
    vocabulary, merges = _pieces(tuple(corpus))
    specials = {token: token_id(token, corpus) for token in _LAST}
    tokenizer = GemmaTokenizer(
        vocab={**vocabulary, **specials},
        merges=merges,
        extra_special_tokens={
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        },
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.add_tokens(list(LINE_ENDS))
    tokenizer.save_pretrained(folder)
    ends = [token_id("<eos>", corpus), token_id("<end_of_turn>", corpus)]
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor", "do_resize": True,
            "do_pan_and_scan": None, "size": {"height": SIDE, "width": SIDE}, "image_seq_length": SEQUENCE,
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
        },
        "processor_config.json": {"image_seq_length": SEQUENCE, "processor_class": "Gemma3Processor"},
        "chat_template.json": {"chat_template": _TEMPLATE},
        "generation_config.json": {
            "bos_token_id": token_id("<bos>", corpus), "eos_token_id": ends, "pad_token_id": 0, "do_sample": True,
            "top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid",
        },
    }  # fmt: skip
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")
