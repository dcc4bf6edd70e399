"""Loading with Unsloth: its kernels, on CUDA only. Everything this project knows of Unsloth is in this file."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import torch

from vgpo_lite.errors import ConfigError, HardwareError, ModelError

if TYPE_CHECKING:
    from types import ModuleType

    from transformers import PreTrainedModel

    from vgpo_lite.models.backends.base import LoadRequest


def import_unsloth(device: str) -> ModuleType:
    """Unsloth, imported before transformers, whose classes it replaces while it is imported.

    Raises:
        ConfigError: transformers is imported already.
        HardwareError: There is no CUDA card to run on, or Unsloth is not installed or cannot run here.
    """
    if device == "cpu" or not torch.cuda.is_available():
        raise HardwareError("backend=unsloth needs a CUDA card; on a CPU set backend=transformers (the default)")
    if "unsloth" not in sys.modules and "transformers" in sys.modules:
        raise ConfigError(
            "backend=unsloth: transformers was imported first, and Unsloth can no longer patch it. Write `import "
            "unsloth` as the first line of the program, or use the command line."
        )
    try:
        return importlib.import_module("unsloth")
    except (ImportError, RuntimeError) as error:  # it raises NotImplementedError on cards that it does not know
        raise HardwareError(
            f"backend=unsloth: Unsloth cannot be imported ({error}). Install it with `pip install "
            "'vgpo-lite[unsloth]'`, or set backend=transformers."
        ) from error


class UnslothBackend:
    """`FastVisionModel.from_pretrained`."""

    def load(self, request: LoadRequest) -> PreTrainedModel:
        unsloth = import_unsloth(request.device.type)
        if request.quantization == "stored":
            raise ModelError(
                f"{request.files.model_id} is stored in NF4; backend=unsloth quantizes 16-bit checkpoints itself. "
                "Choose the 16-bit one, or backend=transformers."
            )
        model, _ = unsloth.FastVisionModel.from_pretrained(
            str(request.files.folder),
            load_in_4bit=request.quantization == "nf4",
            dtype=request.dtype,
            use_gradient_checkpointing=False,  # this project switches it on itself, for the language model only
            trust_remote_code=request.trust_remote_code,
        )
        return model
