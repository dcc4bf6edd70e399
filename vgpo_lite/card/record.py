"""What a run leaves beside its adapter for every card that is written of it: `training.json`, without a local path."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vgpo_lite.config.writing import shareable, shared_recipe
from vgpo_lite.data_types import Accuracy
from vgpo_lite.errors import CheckpointError
from vgpo_lite.memory import hardware_in_words
from vgpo_lite.models.hub import TINY, local_fingerprint
from vgpo_lite.prompts import user_text
from vgpo_lite.prompts.showing import showing_of
from vgpo_lite.recording import recorded_values
from vgpo_lite.units import amount, duration, memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.listening import RunSummary
    from vgpo_lite.models import Policy
    from vgpo_lite.preparation import Workbench

RECORD = "training.json"
_EXAMPLE = "What does the picture show?"
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a card tells of a training.

    Attributes:
        model: The base model: hub id, `tiny`, or the name of a local folder.
        revision: Its commit on the hub; None for a model that comes from no hub.
        dataset: Hub id of the data set; None for one that comes from no hub.
        title: What was trained on what, by the names that the user gave.
        before: Held-out accuracy before training; None where it was not measured.
        after: The same afterwards.
        facts: Base, data, method, cost and versions in words, by what they are.
        recipe: The settings that differ from the defaults, as YAML that repeats the run.
        example: A question as the model was asked in training.
        max_new_tokens: The limit of a completion in training.
        image_options: What the processor was told of the size of images in training, by its own names.
        quantization: What the adapter was trained over: `nf4` or `none`.
        canvas_pixels: As in `prompts.showing.Showing.canvas_pixels`.
    """

    model: str
    revision: str | None
    dataset: str | None
    title: str
    before: Accuracy | None
    after: Accuracy | None
    facts: Mapping[str, str]
    recipe: str
    example: str
    max_new_tokens: int
    image_options: Mapping[str, Any]
    quantization: str
    canvas_pixels: int | None = None


def training_record(bench: Workbench, summary: RunSummary) -> TrainingRecord:
    """What is to be told of a run that has ended.

    Args:
        bench: What it worked with.
        summary: How it ended; of a run that was resumed, metrics.jsonl tells the steps of its earlier processes.
    """
    policy = bench.policy
    showing = showing_of(policy.processor)
    config = shareable(bench.config, revision=policy.revision, data_revision=bench.data_commit)
    return TrainingRecord(
        model=_base_name(policy),
        revision=policy.revision,
        dataset=(config.data.id or config.dataset) if bench.data_commit else None,
        title=f"{config.model} trained on {config.dataset}",
        before=summary.before,
        after=summary.after,
        facts=_facts(bench, config, summary),
        recipe=shared_recipe(config),
        example=user_text(_EXAMPLE, config.data),
        max_new_tokens=config.max_completion_length,
        image_options=dict(showing.options(policy.processor, config.data)),
        quantization=policy.quantization,
        canvas_pixels=showing.canvas_pixels(policy.processor, config.data),
    )


def read_record(folder: Path) -> TrainingRecord | None:
    """What an adapter's folder tells of its training; None where it tells nothing.

    Raises:
        CheckpointError: The file is damaged, or of another version.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_bytes())
        for name in ("before", "after"):
            told[name] = None if told[name] is None else Accuracy(**told[name])
        return TrainingRecord(**told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged, or another version of vgpo-lite wrote it: {error!r}. Remove it to go on without what "
            "it tells of the training."
        ) from error


def record_bytes(record: TrainingRecord) -> bytes:
    """The record as `read_record` reads it."""
    return (json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n").encode()


def _base_name(policy: Policy) -> str:
    return policy.model_id if policy.revision or policy.model_id == TINY else Path(policy.model_id).name


def _facts(bench: Workbench, config: RunConfig, summary: RunSummary) -> dict[str, str]:
    policy = bench.policy
    adapters = sum(parameter.numel() for parameter in policy.adapters().values())
    weights = {"nf4": "NF4 weights", "none": "unquantized weights"}[policy.quantization]
    over = f"{weights}, computed in {str(policy.dtype).removeprefix('torch.')}"
    towers = "language model and vision tower" if config.lora.vision else "language model"
    updates = f"{summary.updated_steps:,} updates in {summary.steps:,} steps"
    return {
        "base model": _base(policy),
        "data set": _data(bench, config),
        "method": _method(config),
        "rewards": ", ".join(f"{name} (weight {weight:g})" for name, weight in config.reward.functions.items()),
        "adapter": f"LoRA r {config.lora.r}, alpha {config.lora.alpha}, {amount(adapters)} parameters, in the {towers}",
        "trained over": over,
        "steps": f"{updates}, learning rate {config.learning_rate:g} ({config.lr_scheduler_type}), seed {config.seed}",
        "hardware": hardware_in_words(policy.device),
        "peak memory": _peak(summary),
        "time": _time(summary),
        "software": _software(policy.device),
    }


def _base(policy: Policy) -> str:
    if policy.revision:
        return f"`{policy.model_id}` at commit `{policy.revision}`"
    content = f"fingerprint `{local_fingerprint(policy.model_id)}`"
    if policy.model_id == TINY:
        return f"`tiny`, built into {_own_version()} ({content})"
    return f"`{_base_name(policy)}`, a local folder that is on no hub ({content})"


def _data(bench: Workbench, config: RunConfig) -> str:
    name, data = config.data.id or config.dataset, config.data
    where = f" at commit `{bench.data_commit}`" if bench.data_commit else ""
    subset = f", subset `{data.subset}`" if data.subset else ""
    rows = f"{len(bench.train):,} rows, fingerprint `{bench.train.fingerprint}`"
    return f"`{name}`{where}{subset}, split `{data.split}`: {rows}"


def _method(config: RunConfig) -> str:
    weights = {"vgpo": f"VGPO ({config.focus.signal} focus)", "grpo": "GRPO (weights of one)"}[config.advantage]
    groups = f"{config.prompts_per_step} prompts a step, {config.num_generations} completions each"
    return f"{weights}, {config.loss} objective, {groups}"


def _peak(summary: RunSummary) -> str:
    whose = "of the whole process" if summary.peak_is_of_process else "of tensors"
    return f"{memory(summary.peak_bytes)} {whose} measured, {memory(summary.predicted_peak_bytes)} of tensors predicted"


def _time(summary: RunSummary) -> str:
    steps = sum(recorded_values(Path(summary.output), "time/step_seconds"))
    return f"{duration(steps)} in steps; {duration(summary.seconds)} from the last start to the end, measuring included"


def _software(device: torch.device) -> str:
    cuda = [f"CUDA {torch.version.cuda}"] if device.type == "cuda" else []
    libraries = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    return ", ".join([_own_version(), f"Python {platform.python_version()}", *cuda, *libraries])


def _own_version() -> str:
    try:
        return f"vgpo-lite {metadata.version('vgpo-lite')}"
    except metadata.PackageNotFoundError:
        return "vgpo-lite from a checkout"
