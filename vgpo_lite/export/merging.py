"""The merge from its source to the finished folder: read, add, write, load again, compare, rename."""

from __future__ import annotations

import gc
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from vgpo_lite.card import read_record
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.errors import ConfigError, MergeError
from vgpo_lite.export.card import Base, MergeReport, model_card
from vgpo_lite.export.sources import adapter_folder, read_json, workplace
from vgpo_lite.failpoints import failpoint
from vgpo_lite.models.agreement import Agreement, agreement, probe_logits, probes
from vgpo_lite.models.hub import model_files
from vgpo_lite.models.loading import (
    DTYPES,
    chosen_device,
    chosen_dtype,
    load_base,
    load_processor,
    model_settings,
    plain_generation,
)
from vgpo_lite.models.lora import TRAINED_WITH
from vgpo_lite.models.merging import (
    attached,
    check_consumed,
    detach,
    merge_into,
    parameter_count,
    read_adapter,
    reload,
    save_model,
    without_quantization,
)
from vgpo_lite.models.quantization import stored_quantization
from vgpo_lite.planning import is_beyond
from vgpo_lite.storage import storage_errors, sync_folder

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformers import PreTrainedModel

    from vgpo_lite.models.agreement import Probe
    from vgpo_lite.models.families import Family
    from vgpo_lite.models.hub import ModelFiles
    from vgpo_lite.models.merging import AdapterWeights

StoredAs = Literal["auto", "bfloat16", "float16", "float32"]

TOLERATED = 0.1
"""A merge may be this far from the adapter, as a share of what the adapter changed."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    adapter: AdapterWeights
    files: ModelFiles
    base: Base
    settings: RunConfig
    loaded: torch.dtype
    own: torch.dtype
    device: torch.device
    working: torch.dtype
    verify: bool


@dataclass(frozen=True, kw_only=True)
class _Before:
    made: list[Probe]
    adapter: Float[Tensor, "position vocabulary"]
    base: Float[Tensor, "position vocabulary"]


def merge(
    source: str | Path,
    output: str | Path,
    *,
    base: Base = "dequantized",
    verify: bool = True,
    dtype: StoredAs = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> MergeReport:
    """Merge the adapter of a run into its model, and write a folder that needs neither PEFT nor bitsandbytes.

    Args:
        source: A run directory or an adapter folder.
        output: The folder to write; it must not exist or be empty. It appears complete or not at all.
        base: `dequantized` adds the adapter to the weights it was trained on; `original` to the 16-bit weights those
            were quantized from, which is not what was trained.
        verify: Compare base, adapter and merged model on built-in prompts; a merge that lost its way is not written.
        dtype: The format to store. `auto`: the base model's own, unless rounding to it loses too much of the update;
            then float32. Never float16 for a model whose numbers it cannot hold.
        device: Where to compute.

    Raises:
        ConfigError: `output` holds something already, or the model cannot be computed with in `dtype`.
        CheckpointError: There is no adapter in `source`, or it is damaged.
        MergeError: The adapter learned nothing, does not fit its model, or the merged model does not say the same.
        HardwareError: The model does not fit into memory.
        StorageError: The disk refuses.
    """
    source, output = Path(source), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not empty. Choose another --output.")
    adapter = adapter_folder(source)
    job, record = _job(read_adapter(adapter), base=base, verify=verify, device=device), read_record(adapter)
    wanted = _formats(job, dtype)
    temporary = output.absolute().with_name(f".{output.name}.{os.getpid()}.tmp")
    with storage_errors(str(output)):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        for leftover in temporary.parent.glob(f".{output.name}.*.tmp"):
            shutil.rmtree(leftover)
    notes: list[str] = []
    try:
        for stored in wanted:
            shutil.rmtree(temporary, ignore_errors=True)
            rounding_error, compared = _attempt(job, temporary, stored)
            problem = _problem(rounding_error, compared)
            if problem is None:
                report = MergeReport(
                    output=str(output),
                    model_id=job.files.model_id,
                    revision=job.files.revision,
                    base=base,
                    dtype=_name(stored),
                    layers=len(job.adapter.layers),
                    rounding_error=rounding_error,
                    agreement=compared,
                    notes=tuple(notes),
                )
                _finish(model_card(report, record), temporary, output)
                return report
            notes.append(f"{_name(stored)} was given up: {problem}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    raise MergeError(f"the merge is not written, it would not keep the policy. {'; '.join(notes)}")


def _job(adapter: AdapterWeights, *, base: Base, verify: bool, device: Literal["auto", "cpu", "cuda"]) -> _Job:
    files = model_files(adapter.base, revision=adapter.revision)
    settings = model_settings(files)
    named = (settings.dtype, settings.get_text_config().dtype, torch.bfloat16)
    own = next(dtype for dtype in named if isinstance(dtype, torch.dtype) and not _is_too_narrow(dtype, files))
    trained = read_json(adapter.folder / TRAINED_WITH)
    is_stored = stored_quantization(files.config, files.model_id) is not None
    if base == "original" and is_stored:
        raise MergeError(
            f"{files.model_id} is stored in NF4, so there is no original to merge into. Use --base dequantized."
        )
    place, working = workplace(parameter_count(settings), chosen_device(device), narrow=own)
    if base == "original":
        quantization, loaded = "none", own
    else:
        quantization = "nf4" if is_stored or trained.get("quantization", "nf4") == "nf4" else "none"
        loaded = DTYPES.get(str(trained.get("dtype")), chosen_dtype("auto", place))
    return _Job(
        adapter=adapter,
        files=files,
        base=base,
        settings=RunConfig(model=files.model_id, quantization=quantization),
        loaded=loaded,
        own=own,
        device=place,
        working=working,
        verify=verify,
    )


def _formats(job: _Job, wanted: StoredAs) -> list[torch.dtype]:
    if wanted != "auto":
        if _is_too_narrow(DTYPES[wanted], job.files):
            raise ConfigError(
                f"{job.files.model_id} merged would be stored in {wanted}, and loaded so, but it computes numbers that "
                f"{wanted} cannot hold. Choose dtype=bfloat16 or dtype=float32."
            )
        return [DTYPES[wanted]]
    return list(dict.fromkeys((job.own, torch.float32)))


def _is_too_narrow(dtype: torch.dtype, files: ModelFiles) -> bool:
    return is_beyond(files.config["model_type"], str(dtype).removeprefix("torch."))


def _attempt(job: _Job, folder: Path, stored: torch.dtype) -> tuple[float, Agreement | None]:
    """Merge, write, load what was written, and compare."""
    gc.collect()  # of an attempt before
    model, family = load_base(job.files, job.settings, device=job.device, dtype=job.loaded)
    model.generation_config = plain_generation(model.generation_config)
    model = without_quantization(model, job.working)
    check_consumed(model, job.adapter)
    before = _before_merging(job, model, family) if job.verify else None
    rounding_error = merge_into(model, job.adapter, stored)
    with storage_errors(str(folder)):
        failpoint("export.before_files")
        is_stored = stored_quantization(job.files.config, job.files.model_id) is not None
        save_model(model, folder, stored, checkpoint_names=not is_stored)
        _copy_companions(job.files.folder, folder)
    del model  # the merged model takes its place: two of them may not fit
    gc.collect()
    if before is None:
        return rounding_error, None
    merged = reload(folder, device=job.device, dtype=job.working)
    return rounding_error, agreement(probe_logits(merged, before.made), before.adapter, before.base)


def _before_merging(job: _Job, model: PreTrainedModel, family: Family) -> _Before:
    """What base and adapter say, the adapter beside the weights as PEFT applies it; the model is left as it was."""
    processor = load_processor(job.files, model.config)
    suppressed = family.vision_special_ids(model.config, processor.tokenizer)
    adapted = attached(model, job.adapter)
    made = probes(adapted, processor, suppressed, device=job.device)
    adapter_logits = probe_logits(adapted, made)
    with adapted.disable_adapter():
        base_logits = probe_logits(adapted, made)
    detach(adapted)
    return _Before(made=made, adapter=adapter_logits, base=base_logits)


def _copy_companions(source: Path, target: Path) -> None:
    """Processor, tokenizer, chat template and generation settings, as the base model has them."""
    for path in sorted(source.iterdir()):
        is_companion = path.suffix in (".json", ".txt", ".jinja", ".model") and path.name != "config.json"
        if is_companion and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)


def _problem(rounding_error: float, compared: Agreement | None) -> str | None:
    """Why a merge would not keep the policy, or None."""
    if compared is None:
        return f"rounding costs {rounding_error:.0%} of the update" if rounding_error > TOLERATED else None
    if not math.isfinite(compared.adapter_gap):
        return "logits of the base model or the adapter are not finite"
    if compared.adapter_gap == 0.0:
        return "the adapter changes no logit of the built-in prompts"
    if not compared.merged_gap <= TOLERATED * compared.adapter_gap:
        return (
            f"the largest logit gap between merged and adapter is {compared.merged_gap:.3g}, more than a tenth of the "
            f"{compared.adapter_gap:.3g} between adapter and base (rounding costs {rounding_error:.0%} of the update)"
        )
    return None


def _finish(card: str, temporary: Path, output: Path) -> None:
    """Write the card, make every file durable and readable under the user's umask, and give the folder its name."""
    with storage_errors(str(output)):
        (temporary / "README.md").write_text(card, encoding="utf-8")
        for path in temporary.iterdir():
            shutil.copymode(temporary / "README.md", path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
        failpoint("export.before_rename")
        temporary.replace(output)
        sync_folder(output.absolute().parent)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
