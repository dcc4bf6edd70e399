"""The parts of the tiny model before it has learnt anything: tokenizer, processor and a Qwen2-VL of random weights."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from vgpo_lite.datasets.shapes import COLOURS, IMAGE_SIDE, SHAPES, plural

END = "<|im_end|>"
PADDING = "<|endoftext|>"
IMAGE = "<|image_pad|>"
SPECIAL = (PADDING, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", IMAGE, "<|video_pad|>")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part['type'] == 'video' -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
SPLIT = r" ?row \d:|\\boxed\{| ?[A-Za-z]+| ?\d|\n|[^\sA-Za-z\d]|\s+"
"""Where text is cut before it meets the vocabulary: `row 2:` and `\\boxed{` are one token each, for short answers."""
QUESTION_WORDS = (
    "How",
    "many",
    "are",
    "there",
    "What",
    "is",
    "in",
    "row",
    "column",
    "Describe",
    "the",
    "image",
    "Is",
    "a",
)
PLAIN_WORDS = (*QUESTION_WORDS, "Where", "cells", "empty", "nothing", "so", "shapes", "yes", "no")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the lessons as whole tokens, and single bytes for everything else: any text comes back as it went in."""
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for word in _words():
        spelled = "".join(piece for piece, _ in in_bytes.pre_tokenize_str(word))
        vocabulary.setdefault(spelled, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PADDING,
        additional_special_tokens=list(SPECIAL),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def _words() -> list[str]:
    kinds = [*COLOURS, *SHAPES, *map(plural, SHAPES)]
    digits = [form.format(digit) for digit in range(10) for form in (" {}", "row {}:", " row {}:")]
    spaced = [form.format(word) for word in (*PLAIN_WORDS, *kinds) for form in ("{}", " {}")]
    return ["user", "assistant", "system", "\\boxed{", *spaced, *digits]


def build_processor() -> Qwen2VLProcessor:
    """Qwen2-VL's own image processor, at most one picture of the shapes set large, with the small tokenizer."""
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=IMAGE_SIDE * IMAGE_SIDE),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL of 1.5 million random parameters; every linear size is a multiple of 64, NF4's block."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        # Quick angles for pictures of 4 x 4 tokens: with theta 10,000, neighbouring columns differ by a turn of 0.003
        "rope_parameters": {"rope_type": "default", "rope_theta": 3.0, "mrope_section": [2, 7, 7]},
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": ids[END],
        "pad_token_id": ids[PADDING],
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "embed_dim": 128,
        "hidden_size": 128,
        "mlp_ratio": 2,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.05,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[IMAGE],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=[ids[END], ids[PADDING]], pad_token_id=ids[PADDING])
    return model
