"""Loading with Unsloth: its kernels, on CUDA only. Everything this project knows of Unsloth is in this file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import torch

from vgpo_lite.errors import HardwareError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vgpo_lite.models.backends.base import LoadRequest


class UnslothBackend:
    """`FastVisionModel.from_pretrained`."""

    def load(self, request: LoadRequest) -> PreTrainedModel:
        if request.device.type != "cuda" or not torch.cuda.is_available():
            raise HardwareError("backend=unsloth needs a CUDA card; on a CPU set backend=transformers (the default)")
        try:
            unsloth = importlib.import_module("unsloth")
        except ImportError as error:
            raise HardwareError(
                f"backend=unsloth: Unsloth cannot be imported ({error}). Install it with `pip install "
                "'vgpo-lite[unsloth]'`, or set backend=transformers."
            ) from error
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
