"""The adapters: made from a seed, continued from a folder, watched, saved."""

from __future__ import annotations

import json
import math
import re
import shutil
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import nn

from vgpo_lite.errors import CheckpointError
from vgpo_lite.failpoints import failpoint
from vgpo_lite.storage import discard_folder, storage_errors, sync_files, sync_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from vgpo_lite.config.schema import LoraSettings
    from vgpo_lite.models.families import Family
    from vgpo_lite.models.hub import ModelFiles
    from vgpo_lite.models.policy import Policy

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TRAINED_WITH = "vgpo_lite.json"
PREFIX = "base_model.model."
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_SHOWN = 3  # names in a message
# What PEFT can do to a LoRA adapter beyond W + alpha/r B A. None of it is kept by a merge or trained here.
_PLAIN = {"use_dora": False, "use_rslora": False, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None,
          "rank_pattern": {}, "alpha_pattern": {}, "trainable_token_indices": None, "target_parameters": None,
          "lora_bias": False, "layer_replication": None, "use_qalora": False, "alora_invocation_tokens": None,
          "arrow_config": None}  # fmt: skip


def add_adapters(
    model: PreTrainedModel, files: ModelFiles, family: Family, settings: LoraSettings, *, seed: int
) -> PeftModel:
    """Give a frozen model fresh adapters: A drawn from the seed alone, B zero, both float32.

    The process-wide generators are left as they were.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,  # dropout makes the first importance ratio differ from 1
        target_modules=family.lora_targets(vision=settings.vision),
        task_type=TaskType.CAUSAL_LM,
    )
    devices = [torch.cuda.current_device()] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    return _named(adapted, files)


def continue_adapters(
    model: PreTrainedModel, files: ModelFiles, family: Family, settings: LoraSettings, *, folder: Path
) -> PeftModel:
    """Give a frozen model the adapters of a folder, to be trained further.

    Raises:
        CheckpointError: The folder holds no adapter, a damaged one, or one of another model or form.
    """
    config = read_adapter_config(folder)
    wanted = {"r": settings.r, "lora_alpha": settings.alpha}
    for key, value in wanted.items():
        if config[key] != value:
            setting = {"r": "lora.r", "lora_alpha": "lora.alpha"}[key]
            raise CheckpointError(
                f"the adapter in {folder} has {key} {config[key]}, but {setting} is {value}. Set "
                f"{setting}={config[key]}."
            )
    check_adapter_weights(folder, model, family.lora_targets(vision=settings.vision), rank=settings.r)
    plain = cast("LoraConfig", LoraConfig.from_pretrained(str(folder)))
    plain.lora_dropout = 0.0  # as above, whatever it was trained with elsewhere
    plain.target_modules = family.lora_targets(vision=settings.vision)
    adapted = PeftModel.from_pretrained(
        model, str(folder), config=plain, is_trainable=True, torch_device=str(model.device), autocast_adapter_dtype=True
    )
    return _named(adapted, files)


def _named(adapted: PeftModel, files: ModelFiles) -> PeftModel:
    """Record which model, at which commit, the adapters belong to."""
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = files.model_id
    config.revision = files.revision
    return adapted


def find_adapter(folder: Path) -> Path:
    """The adapter's folder: `folder` itself, or the one in a run directory.

    Raises:
        CheckpointError: There is none.
    """
    for candidate in (folder / "adapter", folder):
        if (candidate / ADAPTER_CONFIG).is_file():
            return candidate
    raise CheckpointError(
        f"{folder} holds no adapter: expected a run directory, or a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
    )


def read_adapter_config(folder: Path) -> Mapping[str, Any]:
    """The content of adapter_config.json, if it is that of a plain LoRA adapter.

    Raises:
        CheckpointError: It is missing, damaged, or of another form.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_bytes())
        kind, rank, alpha = config["peft_type"], config["r"], config["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error
    numbers = isinstance(rank, int) and isinstance(alpha, (int, float)) and rank >= 1 and math.isfinite(alpha)
    if kind != "LORA" or not numbers:
        raise CheckpointError(f"{path} is of a {kind} adapter with r {rank}, alpha {alpha}; expected a plain LORA one")
    if config.get("init_lora_weights", True) not in (True, False, None, "gaussian"):
        raise CheckpointError(f"{path} changes the base model's weights ({config['init_lora_weights']}); not supported")
    strange = [f"{key}={config[key]!r}" for key, plain in _PLAIN.items() if config.get(key) and config[key] != plain]
    if strange:
        raise CheckpointError(f"{path} sets {', '.join(strange)}; only plain LoRA adapters are supported")
    return config


def adapter_weights(folder: Path) -> Path:
    """The file of an adapter's weights.

    Raises:
        CheckpointError: There is none, or they are pickled.
    """
    path = folder / ADAPTER_WEIGHTS
    if path.is_file():
        return path
    pickled = sorted(file.name for file in folder.glob("adapter_model*") if file.suffix in _PICKLED_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"the adapter in {folder} has its weights in {pickled[0]}, a pickle that can run code when it is read; "
            "expected safetensors. Save it again with a newer PEFT."
        )
    raise CheckpointError(f"{path} is missing or damaged: there is no such file")


def check_adapter_weights(folder: Path, model: nn.Module, targets: str, *, rank: int) -> None:
    """Compare the names and shapes in an adapter's file with the layers it would go to.

    Raises:
        CheckpointError: The file is missing or damaged, or the adapter is of another model.
    """
    expected = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(targets, name):
            expected[f"{PREFIX}{name}.lora_A.weight"] = [rank, module.in_features]
            expected[f"{PREFIX}{name}.lora_B.weight"] = [module.out_features, rank]
    path = adapter_weights(folder)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"the adapter in {folder} does not fit this model: {len(wrong)} of its weights do not match, such as "
            f"{name}: {found.get(name, 'absent')} in the adapter, {expected.get(name, 'nothing')} expected. Use the "
            "model it was trained on, with the same lora settings."
        )


def adapter_state(policy: Policy) -> dict[str, Tensor]:
    """A copy of the adapters' weights on the CPU, by name."""
    return {name: parameter.detach().cpu().clone() for name, parameter in policy.adapters().items()}


def load_adapter_state(policy: Policy, state: Mapping[str, Tensor]) -> None:
    """Put weights that `adapter_state` copied back in place.

    Raises:
        CheckpointError: They are those of other adapters.
    """
    adapters = policy.adapters()
    shapes = {name: parameter.shape for name, parameter in adapters.items()}
    wrong = sorted(
        name
        for name in shapes.keys() | state.keys()
        if name not in state or name not in shapes or state[name].shape != shapes[name]
    )
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} saved adapter weights do not match the policy's, such as {', '.join(wrong[:_SHOWN])}"
        )
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(state[name])


def adapter_snapshot(policy: Policy) -> dict[str, Tensor]:
    """A copy of every adapter's B where it lies, to be compared after an update."""
    return {name: parameter.detach().clone() for name, parameter in policy.adapters().items() if ".lora_B." in name}


def unmoved_adapters(policy: Policy, snapshot: Mapping[str, Tensor]) -> list[str]:
    """Names of the adapted layers whose B is exactly what it was in the snapshot."""
    adapters = policy.adapters()
    return [name.split(".lora_B.")[0].removeprefix(PREFIX) for name, before in snapshot.items()
            if torch.equal(adapters[name].detach(), before)]  # fmt: skip


def save_adapter(policy: Policy, folder: Path) -> None:
    """Write the adapters as a folder that PEFT loads as it is. Asks no network.

    Beside PEFT's own files it holds `vgpo_lite.json`: how the model was quantized and rounded while they were trained,
    so that a merge can start from the very same weights. PEFT's card, which tells nothing and names a folder of this
    machine, is left out.
    """
    policy.model.save_pretrained(
        str(folder),
        state_dict=dict(policy.adapters()),
        save_embedding_layers=False,  # otherwise PEFT asks the hub how large the vocabulary was
    )
    (folder / "README.md").unlink(missing_ok=True)
    # safetensors renames a private temporary file into place; the others were written under the user's umask
    shutil.copymode(folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS)
    settings = {"quantization": policy.quantization, "dtype": str(policy.dtype).removeprefix("torch.")}
    (folder / TRAINED_WITH).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def place_adapter(policy: Policy, final: Path, companions: Mapping[str, bytes]) -> None:
    """Write the adapters as a folder that PEFT loads, whole or not at all, over one that may be there.

    Args:
        policy: Whose adapters.
        final: The folder.
        companions: Further files of it by name, such as its card.

    Raises:
        StorageError: The disk refuses; what was there is untouched.
    """
    beside = final.with_name(f".tmp-{final.name}")
    with storage_errors(str(final)):
        shutil.rmtree(beside, ignore_errors=True)
        try:
            failpoint("adapter.before_files")
            save_adapter(policy, beside)
            for name, content in companions.items():
                (beside / name).write_bytes(content)
            sync_files(beside)
            failpoint("adapter.before_rename")
            if final.exists():
                discard_folder(final)
            beside.replace(final)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        except SafetensorError as error:  # what safetensors makes of a full disk
            shutil.rmtree(beside, ignore_errors=True)
            raise OSError(str(error)) from error
        sync_folder(final.parent)
