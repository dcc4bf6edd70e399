"""Adapters become weights: W + alpha/r B A, in float32, rounded once.

The result is never quantized again: 4 bits are coarser than what reinforcement learning changes, and most of the update
would round away. Bfloat16 can be too coarse as well; so what rounding leaves of the update is measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from vgpo_lite.errors import CheckpointError, MergeError
from vgpo_lite.models.lora import PREFIX, adapter_weights, read_adapter_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jaxtyping import Float
    from peft import LoraModel
    from torch import Tensor
    from transformers import PreTrainedModel

_KEY = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")
_SHOWN = 3  # names in a message


@dataclass(frozen=True, kw_only=True)
class AdapterWeights:
    """A plain LoRA adapter as it lies in a folder.

    Attributes:
        folder: Where it came from.
        base: The model it was trained on: hub id, `tiny` or a folder.
        revision: That model's commit on the hub; None where it comes from no hub.
        scale: alpha / r.
        layers: By layer name: A [r, in] and B [out, r].
    """

    folder: Path
    base: str
    revision: str | None
    scale: float
    layers: Mapping[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]


def read_adapter(folder: Path) -> AdapterWeights:
    """Read a plain LoRA adapter and check that it learned something.

    Raises:
        CheckpointError: It is missing, damaged, or of a form that is no plain LoRA.
        MergeError: Some of its weights belong to no layer or are not finite, or every B is zero: it is what it was born
            as.
    """
    config = read_adapter_config(folder)
    path = adapter_weights(folder)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error
    halves: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None:
            strange.append(key)
        else:
            halves.setdefault(found[1], {})[found[2]] = tensor
    strange += [f"{PREFIX}{name} (half of a pair)" for name, pair in halves.items() if len(pair) < 2]
    if strange:
        raise _unconsumed(folder, strange)
    layers = {name: (pair["A"], pair["B"]) for name, pair in halves.items()}
    _check_rank(folder, layers, config["r"])
    if not any(bool(b.count_nonzero()) for _, b in layers.values()):
        raise MergeError(
            f"the adapter in {folder} learned nothing: every B is zero, so the merged model would be the base model. "
            "Train until some group of completions tells right from wrong."
        )
    infinite = [name for name, pair in layers.items() if not all(bool(half.isfinite().all()) for half in pair)]
    if infinite:
        raise MergeError(f"the adapter in {folder} holds weights that are not finite, such as those of {infinite[0]}")
    if not config.get("base_model_name_or_path"):
        raise CheckpointError(f"the adapter in {folder} does not say which model it was trained on")
    return AdapterWeights(
        folder=folder,
        base=config["base_model_name_or_path"],
        revision=config.get("revision"),
        scale=config["lora_alpha"] / config["r"],
        layers=layers,
    )


def _check_rank(folder: Path, layers: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> None:
    """Raise a CheckpointError unless every A is [rank, in] and every B [out, rank]: their scale is alpha / rank."""
    for name, (a, b) in layers.items():
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise CheckpointError(
                f"the adapter in {folder} says r {rank}, but its weights for {name} are {list(a.shape)} and "
                f"{list(b.shape)}; expected [{rank}, in] and [out, {rank}]. Its two files do not belong together."
            )


def _unconsumed(folder: Path, keys: list[str]) -> MergeError:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return MergeError(
        f"the merge would leave out {len(keys)} weights of the adapter in {folder}: {', '.join(sorted(keys)[:_SHOWN])}"
        f"{more}. They have no place in the base model; use the model the adapter was trained on."
    )


def check_consumed(model: nn.Module, adapter: AdapterWeights) -> None:
    """Every weight of the adapter has a linear layer of its shape in the bare model.

    Raises:
        MergeError: Some have not; the message names them.
    """
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    homeless = [
        f"{PREFIX}{name}" for name, (a, b) in adapter.layers.items() if shapes.get(name) != (b.shape[0], a.shape[1])
    ]
    if homeless:
        raise _unconsumed(adapter.folder, homeless)


def without_quantization(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A loaded model with ordinary linear layers: what its 4 bits stood for when it was loaded, cast to `dtype`."""
    plain = model.dequantize(dtype) if "quantization_config" in model.config.to_dict() else model
    return plain.to(dtype)  # pyright: ignore[reportArgumentType]  (transformers hides the signature of Module.to)


def attached(model: PreTrainedModel, adapter: AdapterWeights) -> PeftModel:
    """The model with the adapter beside its weights, as PEFT applies it, in evaluation mode.

    Raises:
        MergeError: PEFT adapts other layers than the adapter's weights name.
    """
    adapted = PeftModel.from_pretrained(
        model, str(adapter.folder), torch_device=str(model.device), autocast_adapter_dtype=True
    )
    names = {name.split(".lora_A.")[0].removeprefix(PREFIX) for name in adapted.state_dict() if ".lora_A." in name}
    if names != set(adapter.layers):
        raise _unconsumed(adapter.folder, [f"{PREFIX}{name}" for name in names ^ set(adapter.layers)])
    return adapted.eval()


def detach(adapted: PeftModel) -> None:
    """Give the bare model its own layers back, as they were before `attached`."""
    cast("LoraModel", adapted.base_model).unload()


def merge_into(model: nn.Module, adapter: AdapterWeights, dtype: torch.dtype) -> float:
    """Add the adapter to a bare model's weights and round the sum to `dtype`, layer by layer in float32.

    Args:
        model: Ordinary linear layers in any format; changed in place, and in `dtype` afterwards.
        adapter: What to add.
        dtype: The format the model will be stored in.

    Returns:
        What rounding did to the update: the norm of the error over the norm of the update, over all layers. 0 when the
        update is kept, 1 when it might as well be gone.
    """
    squared = noise = 0.0
    with torch.no_grad():
        for name, (a, b) in adapter.layers.items():
            weight = model.get_submodule(name).get_parameter("weight")
            before = weight.float()
            update = adapter.scale * (b.to(before) @ a.to(before))
            stored = (before + update).to(dtype)
            squared += float(update.square().sum(dtype=torch.float64))
            noise += float((stored.float() - before - update).square().sum(dtype=torch.float64))
            weight.data = stored
    model.to(dtype)
    return (noise / squared) ** 0.5


def save_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype, *, checkpoint_names: bool) -> None:
    """Write the weights in shards of safetensors, and the configuration without a word of quantization.

    Args:
        model: A merged model.
        folder: Where to write.
        dtype: The format its weights are in.
        checkpoint_names: Call the weights what the checkpoint calls them, which older programs know too. transformers
            cannot for a checkpoint stored in 4 bits; the weights then have the names of today's modules.

    Raises:
        OSError: The disk refuses.
    """
    model.config.dtype = dtype
    try:
        model.save_pretrained(str(folder), max_shard_size="5GB", save_original_format=checkpoint_names)
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(str(error)) from error


def reload(folder: Path, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load a written model as anybody would, in evaluation mode.

    Raises:
        MergeError: Not every weight is in the folder.
    """
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, local_files_only=True, output_loading_info=True
    )
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        raise MergeError(f"the merged model in {folder} lacks weights: {sorted(report['missing_keys'])[:_SHOWN]}")
    return model.eval()


def parameter_count(config: Any) -> int:
    """Weights of a model with this configuration, counted without making them."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
