"""Some seconds of supervision for a small model, so that its samples have the right form and are sometimes right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.engine.work import KINDS_OF_TOKENS
from tests.hub.data import picture
from vgpo_lite.config.schema import DataConfig
from vgpo_lite.data_types import Sample
from vgpo_lite.prompts import encode_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

STEPS = 60
ROWS = 8
LARGEST = 4


def supervise(folder: Path) -> Path:
    """Teach the model in `folder` to answer a question about red squares by a boxed number from 1 to 4.

    The weights are replaced where they lie; every other file stays as it is. The answers are right as often as the
    model finds out in `STEPS` steps: enough that groups of samples differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(STEPS):
            optimizer.zero_grad()
            _loss(model, processor, first=step * ROWS).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    _overwrite(folder, model)
    return folder


def _loss(model: PreTrainedModel, processor, first: int) -> Tensor:
    data = DataConfig(max_pixels=401_408)
    prompts, answers = [], []
    for row in range(first, first + ROWS):
        count = 1 + row % LARGEST
        sample = Sample(
            sample_id=str(row),
            question="<image>How many red squares are there?",
            images=(picture(count, seed=10_000 + row),),
            answer=str(count),
        )
        prompts.append(encode_prompt(sample, processor, data))
        end = processor.tokenizer.eos_token_id
        answers.append([*processor.tokenizer.encode(f"\\boxed{{{count}}}", add_special_tokens=False), end])
    ids = torch.stack([torch.cat([p.input_ids, torch.tensor(a)]) for p, a in zip(prompts, answers, strict=True)])
    width = len(answers[0])
    vision = {name: torch.cat([prompt.vision[name] for prompt in prompts]) for name in prompts[0].vision}
    kinds = KINDS_OF_TOKENS.get(model.config.model_type)
    if kinds is not None:
        vision[kinds] = torch.stack([torch.cat([p.image_mask.int(), torch.zeros(width).int()]) for p in prompts])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision).logits[:, -width - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -width:].flatten())


def _overwrite(folder: Path, model: PreTrainedModel) -> None:
    """Put the model's weights into the shards that hold them, under the names and formats they have there."""
    model.save_pretrained(
        folder / "trained", max_shard_size="1GB"
    )  # the names of the folder, whatever the model calls them
    with safe_open(folder / "trained" / "model.safetensors", framework="pt") as trained:
        for shard in folder.glob("*.safetensors"):
            with safe_open(shard, framework="pt") as old:
                tensors = {name: trained.get_tensor(name).to(old.get_tensor(name).dtype) for name in old.keys()}  # noqa: SIM118
            save_file(tensors, shard, metadata={"format": "pt"})
    for file in (folder / "trained").iterdir():
        file.unlink()
    (folder / "trained").rmdir()
