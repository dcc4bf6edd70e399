"""What every library that loads models is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from vgpo_lite.models.families import Family
    from vgpo_lite.models.hub import ModelFiles


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """A model to load.

    Attributes:
        files: Its files.
        family: Its architecture.
        config: Its configuration, as transformers reads it.
        quantization: `nf4`: quantize while loading. `stored`: the files are in NF4 already. `none`: neither.
        dtype: The format of everything that is not quantized, and of products.
        device: Where its weights go, one shard after the other.
        trust_remote_code: Whether code among the files may run.
    """

    files: ModelFiles
    family: Family
    config: PretrainedConfig
    quantization: Literal["nf4", "stored", "none"]
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool


class Backend(Protocol):
    """A library that loads models."""

    def load(self, request: LoadRequest) -> PreTrainedModel:
        """The bare model on its device, every weight read from its files.

        Raises:
            ModelError: The files do not hold the model they name.
            HardwareError: The model does not fit, or the library cannot run on this machine.
        """
        ...
