"""The policy: a model with its adapters, and what sampling from it needs to know."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vgpo_lite.models.quantization import weight_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from jaxtyping import Int
    from peft import PeftModel
    from torch import Tensor, nn

    from vgpo_lite.models.families import Family


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A vision-language model that learns through its adapters alone.

    Attributes:
        model: The model with its adapters, in training mode; PEFT's wrapper.
        family: Where its parts are.
        processor: What `AutoProcessor` made of the model's own files; `prompts` says what it needs of one.
        device: Where the model runs.
        dtype: The format of everything that is not quantized. Adapters are float32 in any case.
        quantization: Whether the language model's linear layers are in NF4.
        eos_ids: Ids that end a completion: every one of the generation configuration, and the tokenizer's.
        pad_id: The id written where a completion has ended.
        suppressed_ids: Ids that are never sampled: whatever stands for vision.
        model_id: Hub id, `tiny`, or the absolute path of a local folder.
        revision: The commit on the hub; None for a model that comes from no hub.
    """

    model: PeftModel
    family: Family
    processor: Any
    device: torch.device
    dtype: torch.dtype
    quantization: Literal["nf4", "none"]
    eos_ids: tuple[int, ...]
    pad_id: int
    suppressed_ids: tuple[int, ...]
    model_id: str
    revision: str | None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The model without its adapters, for as long as the body runs: the reference of the KL divergence."""
        with self.model.disable_adapter():
            yield

    def adapters(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name, in the model's order."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def text_of(self, token_ids: Int[Tensor, " token"]) -> str:
        """Sampled tokens as text, without special tokens."""
        return self.processor.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def parameter_count(self) -> int:
        """Weights of the model and its adapters; four bits count as one weight like any other."""
        return sum(count for count, _ in weight_sizes(self.model))

    def weight_bytes(self) -> int:
        """Memory that the weights and their scales take."""
        return sum(size for _, size in weight_sizes(self.model))
