"""A page: one recorded step as the tensors and facts of one safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load as load_tensors

from vgpo_lite.checkpoint import state_bytes
from vgpo_lite.windows import window_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from vgpo_lite.data_types import Prompt, StepReport
    from vgpo_lite.journal.index import Entry
    from vgpo_lite.windows import LearnedGroup, Window

_GENERATOR = "generator."
_RECORDED = "recorded."


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a step began with.

    Attributes:
        adapter: The adapters' weights as a safetensors file.
        generators: States of the process-wide random generators.
    """

    adapter: bytes
    generators: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Page:
    """One recorded step, as it is read back.

    Attributes:
        entry: Its line in the index.
        about: The model, its commit and the settings of the run when it took the step.
        sample_ids: The row each group's prompt was made from.
        images: sha256 of the images of each of them.
        prompt_ids: Token ids of each prompt.
        window: The rollouts with what was seen of them, as `window_tensors` writes them.
        advantages: Weighted advantage of each token, by group.
        generators: States of the process-wide random generators when the update began.
        loss: The loss; nan where there was none.
        grad_norm: The gradient's norm before clipping.
        denominator: What the step's loss was divided by.
        loss_scale: What the loss was multiplied by for the backward pass.
    """

    entry: Entry
    about: Mapping[str, Any]
    sample_ids: Sequence[str]
    images: Sequence[str]
    prompt_ids: Sequence[Tensor]
    window: Mapping[str, Tensor]
    advantages: Sequence[Tensor]
    generators: Mapping[str, Tensor]
    loss: float
    grad_norm: float
    denominator: float
    loss_scale: float


def page_bytes(
    before: Before,
    report: StepReport,
    window: Window,
    learned: Sequence[LearnedGroup],
    *,
    about: Mapping[str, object],
) -> bytes:
    """A step as the file of its page: ids in 32 bits, which no vocabulary exceeds.

    Args:
        before: What the step began with.
        report: The step and its metrics.
        window: The rollouts as the step found them.
        learned: What was seen of each useful group and what was made of it.
        about: What else is known of it, ready for JSON: model, commit, settings, loss scale.
    """
    seen = replace(window, signals=[group.signals for group in learned])
    numbers = {
        "loss": report.metrics.get("policy/loss", math.nan),
        "grad_norm": report.metrics["policy/grad_norm"],
        "denominator": learned[0].denominator if learned else 0.0,
    }
    tensors = window_tensors(seen)
    for index, (scored, group) in enumerate(zip(window.useful, learned, strict=True)):
        tensors[f"{index}.prompt_ids"] = scored.group.prompt.input_ids
        tensors[f"{index}.weighted_advantages"] = group.advantages
    tensors = {name: value.to(torch.int32) if name.endswith("_ids") else value for name, value in tensors.items()}
    tensors |= {f"{_GENERATOR}{name}": state for name, state in before.generators.items()}
    tensors |= {f"{_RECORDED}{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    facts = {
        **about,
        "sample_ids": [scored.group.prompt.sample.sample_id for scored in window.useful],
        "images": [image_hash(scored.group.prompt) for scored in window.useful],
    }
    return state_bytes(tensors, metadata={"about": json.dumps(facts)})


def page_of(path: Path, data: bytes, entry: Entry) -> Page:
    """The page in a file that holds `data`, which the index names in `entry`."""
    tensors = load_tensors(data)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    own = {name: value.long() if name.endswith("_ids") else value for name, value in tensors.items()}
    return Page(
        entry=entry,
        about=about,
        sample_ids=about["sample_ids"],
        images=about["images"],
        prompt_ids=[own[f"{index}.prompt_ids"] for index in range(entry.groups)],
        window=own,
        advantages=[own[f"{index}.weighted_advantages"] for index in range(entry.groups)],
        generators={n.removeprefix(_GENERATOR): value for n, value in own.items() if n.startswith(_GENERATOR)},
        loss=float(own[f"{_RECORDED}loss"]),
        grad_norm=float(own[f"{_RECORDED}grad_norm"]),
        denominator=float(own[f"{_RECORDED}denominator"]),
        loss_scale=about["loss_scale"],
    )


def image_hash(prompt: Prompt) -> str:
    """sha256 of a prompt's images, decoded: their sizes and their pixels."""
    digest = hashlib.sha256()
    for image in prompt.sample.images:
        digest.update(f"{image.width}x{image.height}".encode() + image.tobytes())
    return digest.hexdigest()
