"""Loading with transformers and bitsandbytes: the default, on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText

from vgpo_lite.errors import HardwareError, ModelError, is_out_of_memory
from vgpo_lite.models.quantization import nf4_settings, widen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vgpo_lite.models.backends.base import LoadRequest

_SHOWN = 3  # weight names in a message


class TransformersBackend:
    """`AutoModelForImageTextToText.from_pretrained`, weight by weight straight to the device."""

    def load(self, request: LoadRequest) -> PreTrainedModel:
        files = request.files
        nf4 = nf4_settings(request.family, request.dtype) if request.quantization == "nf4" else None
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                files.folder,
                config=request.config,
                dtype=request.dtype,
                device_map={"": request.device},
                quantization_config=nf4,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=request.trust_remote_code,
                output_loading_info=True,
            )
        except (SafetensorError, RuntimeError, OSError, MemoryError) as error:
            if is_out_of_memory(error):
                raise HardwareError(
                    f"{files.model_id} does not fit into the memory of {request.device}. Choose a smaller model, or "
                    "quantization=nf4."
                ) from error
            raise ModelError(f"{files.model_id}: the weights in {files.folder} cannot be read: {error}") from error
        model, report = loaded
        absent = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
        if absent:
            raise ModelError(
                f"{files.model_id}: {len(absent)} weights are missing from {files.folder} or have another shape, such "
                f"as {', '.join(absent[:_SHOWN])}. Fetch or copy it again."
            )
        if request.quantization == "stored":
            widen(model, request.dtype)
        return model
