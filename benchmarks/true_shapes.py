"""Models of the true shapes with random weights: enough for memory and speed, and no network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText
from workload import DATA, TINY

import vgpo_lite.planning

CONFIGS = Path(vgpo_lite.planning.__file__).parent / "configs"
SHARD_BYTES = 2_000_000_000
TOKENIZER_FILES = ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def true_settings(name: str, **text: int) -> dict[str, Any]:
    """The config.json of a preset, with the built-in tokenizer's ids; `text` changes values of the decoder."""
    settings = json.loads((CONFIGS / f"{name}.json").read_text())
    ids = json.loads((TINY / "config.json").read_text())
    settings |= {key: value for key, value in ids.items() if key.endswith("_token_id")}
    decoder = settings.get("text_config", settings)  # the older models' files name the decoder's sizes at the top
    decoder |= (
        {key: ids["text_config"][key] for key in ("eos_token_id", "pad_token_id")} | {"bos_token_id": None} | text
    )
    return settings


def write_true_model(folder: Path, settings: dict[str, Any], *, device: str) -> None:
    """Write bfloat16 shards, config, tokenizer and processor; weights come from a seed, one tensor at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    generator = torch.Generator(device).manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in tied:
            continue
        weight = torch.ones(parameter.shape, dtype=torch.bfloat16)
        if parameter.dim() > 1:
            drawn = torch.empty(parameter.shape, device=device, dtype=torch.bfloat16)
            weight = drawn.normal_(0, parameter[0].numel() ** -0.5, generator=generator).cpu()
        elif name.endswith("bias"):
            weight.zero_()
        if size + weight.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = weight
        size += weight.nbytes
    names = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": sum(w.nbytes for s in shards for w in s.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(TINY / name, folder / name)
    processor = json.loads((TINY / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"shortest_edge": 784, "longest_edge": DATA.max_pixels}
    (folder / "processor_config.json").write_text(json.dumps(processor))
