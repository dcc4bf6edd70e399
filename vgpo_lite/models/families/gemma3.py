"""Gemma 3: a SigLIP tower whose patches are pooled to 256 tokens an image, and a decoder most of whose layers see a
window only; in the others too, an image's tokens see each other in both directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from vgpo_lite.models.families.tiled import TiledFamily

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor, nn

    from vgpo_lite.data_types import Prompt
    from vgpo_lite.models.families.base import PromptInputs, VisionFeatures


class _Model(Protocol):
    """What is used of `Gemma3ForConditionalGeneration`."""

    config: Any

    def create_masks_for_generate(self, config: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor | None]: ...


@dataclass(frozen=True, kw_only=True)
class Gemma3Family(TiledFamily):
    """A `TiledFamily` with one tile an image, whose prompt is not causal inside an image."""

    def prompt_inputs(self, model: nn.Module, prompt: Prompt, features: VisionFeatures | None) -> PromptInputs:
        inputs = super().prompt_inputs(model, prompt, features)
        return replace(inputs, image_blocks=image_blocks(inputs.image_mask)) if prompt.has_image else inputs

    def row_masks(
        self, model: nn.Module, inputs: PromptInputs, embeds: Tensor, kept: Bool[Tensor, "row token"]
    ) -> dict[str, Tensor | None]:
        rows, tokens = kept.shape
        kinds = torch.nn.functional.pad(inputs.image_mask, (0, tokens - inputs.length)).long().expand(rows, -1)
        bare = cast("_Model", self.bare(model))
        return bare.create_masks_for_generate(
            bare.config, embeds, kept.long(), None, None, token_type_ids=kinds, is_first_iteration=True
        )

    def whole_inputs(self, prompt: Prompt, *, rows: int) -> dict[str, Tensor]:
        inputs = super().whole_inputs(prompt, rows=rows)
        return inputs | ({"token_type_ids": prompt.image_mask.long().expand(rows, -1)} if prompt.has_image else {})

    def image_token_id(self, processor: Any) -> int:
        return processor.tokenizer.image_token_id  # the processor's own is the mark that begins an image


def image_blocks(image_mask: Bool[Tensor, " prompt"]) -> Int[Tensor, " prompt"]:
    """The image each token belongs to: tokens that stand together are one image; -1 between them.

    >>> image_blocks(torch.tensor([False, True, True, False, True])).tolist()
    [-1, 0, 0, -1, 1]
    """
    begins = image_mask & ~torch.nn.functional.pad(image_mask[:-1], (1, 0))
    return (begins.long().cumsum(dim=0) - 1).masked_fill(~image_mask, -1)


GEMMA3 = Gemma3Family(
    model_type="gemma3",
    tower="vision_tower",
    blocks="encoder.layers",
    connectors=("multi_modal_projector",),
    vision_projections=r"self_attn\.(q|k|v|out)_proj|mlp\.(fc1|fc2)",
    vision_ids=("image_token_index", "boi_token_index", "eoi_token_index"),
    vision_tokens=r"<image_soft_token>|<start_of_image>|<end_of_image>",
)
