"""RunConfig -> Policy: the files, the device, the weights, the check of what was quantized, the adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from vgpo_lite.errors import HardwareError, ModelError
from vgpo_lite.launch import launched
from vgpo_lite.models.backends import backend_named
from vgpo_lite.models.backends.base import LoadRequest
from vgpo_lite.models.checkpointing import allow_recomputation
from vgpo_lite.models.families import family_of
from vgpo_lite.models.hub import ModelFiles, model_files
from vgpo_lite.models.lora import add_adapters, continue_adapters, find_adapter
from vgpo_lite.models.policy import Policy
from vgpo_lite.models.quantization import check_precision, stored_in_16_bits, stored_quantization
from vgpo_lite.planning import check_format

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.models.families import Family

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_policy(config: RunConfig) -> Policy:
    """Load the model that a configuration names, quantized and with adapters as it says.

    The model is in training mode: its 4-bit layers must not run in evaluation mode on a CPU (`models.modes`).

    Raises:
        ModelError: The model cannot be found, fetched or used, or did not load as it should.
        CheckpointError: The adapter to continue from is damaged, or of another model.
        HardwareError: The machine lacks the device, the number format or the memory.
        StorageError: The download does not fit on the disk.
    """
    device = chosen_device(config.device)
    dtype = chosen_dtype(config.dtype, device)
    if dtype == torch.float16:  # not every model can be computed in it, which its config.json tells before gigabytes do
        about = model_files(config.model_id or config.model, revision=config.revision, weights=False)
        check_format(about.config["model_type"], "float16", about.model_id)
    files = model_files(config.model_id or config.model, revision=config.revision)
    model, family = load_base(files, config, device=device, dtype=dtype)
    processor = load_processor(files, model.config)
    generation = model.generation_config
    model.generation_config = plain_generation(generation)
    if config.adapter is None:
        adapted = add_adapters(model, files, family, config.lora, seed=config.seed)
    else:
        adapted = continue_adapters(model, files, family, config.lora, folder=find_adapter(Path(config.adapter)))
    if config.gradient_checkpointing:
        allow_recomputation(family.language_model(adapted))
    adapted.train()
    eos_ids = end_ids(generation, processor.tokenizer)
    return Policy(
        model=adapted,
        family=family,
        processor=processor,
        device=device,
        dtype=dtype,
        quantization=config.quantization,
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if processor.tokenizer.pad_token_id is None else processor.tokenizer.pad_token_id,
        suppressed_ids=family.vision_special_ids(model.config, processor.tokenizer),
        model_id=files.model_id,
        revision=files.revision,
    )


def processor_alone(config: RunConfig) -> Any:
    """The processor of the model that a configuration names; its weights are neither fetched nor read.

    Raises:
        ModelError: The model cannot be found, fetched or used.
        StorageError: The download does not fit on the disk.
    """
    files = model_files(config.model_id or config.model, revision=config.revision, weights=False)
    return load_processor(files, model_settings(files, trust_remote_code=config.trust_remote_code))


def load_base(
    files: ModelFiles, config: RunConfig, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, Family]:
    """Load the bare model, frozen, and check that exactly the language model's linear layers are in NF4.

    Raises:
        ModelError: The files do not hold the model they name, or it did not load as it should.
        HardwareError: It does not fit into memory.
    """
    quantization = _wanted_quantization(files, config.quantization)
    settings = model_settings(files, trust_remote_code=config.trust_remote_code)
    family = family_of(settings)
    settings.get_text_config().attention_dropout = 0.0  # dropout would make two forwards over the same tokens differ
    if quantization == "stored":
        settings.quantization_config |= {
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            "llm_int8_skip_modules": stored_in_16_bits(files.folder, family),
        }
    request = LoadRequest(
        files=files,
        family=family,
        config=settings,
        quantization=quantization,
        dtype=dtype,
        device=device,
        trust_remote_code=config.trust_remote_code,
    )
    model = backend_named(config.backend).load(request)
    model.requires_grad_(False)
    check_precision(model, family, dtype, quantized=quantization != "none", stored=quantization == "stored")
    return model, family


def _wanted_quantization(files: ModelFiles, wanted: str) -> Literal["nf4", "stored", "none"]:
    if stored_quantization(files.config, files.model_id) is None:
        return "nf4" if wanted == "nf4" else "none"
    if wanted == "none":
        raise ModelError(
            f"{files.model_id} is stored in NF4, but quantization is none. Choose the 16-bit model it was made from, "
            "or quantization=nf4."
        )
    return "stored"


def model_settings(files: ModelFiles, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration, as transformers reads it.

    Raises:
        ModelError: transformers cannot make sense of it.
    """
    try:
        return AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(f"{files.model_id}: its config.json cannot be used: {error}") from error


def plain_generation(shipped: GenerationConfig | None) -> GenerationConfig:
    """Ends and padding of the shipped generation configuration, without its nearly greedy sampling."""
    if shipped is None:
        return GenerationConfig()
    return GenerationConfig(
        bos_token_id=shipped.bos_token_id, eos_token_id=shipped.eos_token_id, pad_token_id=shipped.pad_token_id
    )


def load_processor(files: ModelFiles, settings: Any) -> Any:
    """The model's own processor, tokenizer and chat template included.

    Args:
        files: The model's files.
        settings: The model's configuration.

    Raises:
        ModelError: Its files are missing, damaged or another model's, or it has no chat template.
    """
    try:
        processor = AutoProcessor.from_pretrained(files.folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"{files.model_id}: its processor cannot be loaded: {error}") from error
    if not processor.chat_template:
        raise ModelError(
            f"{files.model_id} has no chat template, so no question can be put to it. Choose an Instruct version."
        )
    written = family_of(settings).image_token_id(processor)
    if written != settings.image_token_id:
        raise ModelError(
            f"{files.model_id}: its tokenizer writes an image as token {written}, the model reads token "
            f"{settings.image_token_id}: tokenizer.json is missing or another model's. Fetch or copy it again."
        )
    return processor


def end_ids(generation: GenerationConfig | None, tokenizer: Any) -> tuple[int, ...]:
    """Every id that ends a completion, sorted: those of the generation configuration, and the tokenizer's own.

    Raises:
        ModelError: There is none.
    """
    named = None if generation is None else generation.eos_token_id
    ids = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    if not ids:
        raise ModelError("neither the generation configuration nor the tokenizer names an end of sequence")
    return tuple(sorted(ids))


def chosen_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device a setting means on this machine; of several cards that of this process.

    Raises:
        HardwareError: CUDA is asked for, but there is no card.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise HardwareError("device=cuda, but no CUDA card is to be seen here. Set device=auto or device=cpu.")
    return torch.device("cuda", launched().local_rank) if has_cuda and wanted != "cpu" else torch.device("cpu")


def chosen_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The number format a setting means on a device; auto: bfloat16 on cards that have it, float16 on those that do
    not, float32 on a CPU.

    Raises:
        HardwareError: bfloat16 is asked for on a card without it.
    """
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if wanted == "bfloat16" and not has_bfloat16:
        raise HardwareError("dtype=bfloat16, but this card only emulates it. Set dtype=auto or dtype=float16.")
    return DTYPES[wanted]
