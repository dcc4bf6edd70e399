"""What the Qwen vision-language families have in common: images as grids of patches, three rotary axes.

Each family is one instance of `QwenFamily`, in the file of its name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import torch

from vgpo_lite.models.families.base import PromptInputs, VisionFeatures
from vgpo_lite.models.families.composed import ComposedFamily, checked_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor, nn

    from vgpo_lite.data_types import Prompt


CHANNELS = 3
"""Red, green, blue: a patch holds all its pixels of one, then of the next."""


class _Features(Protocol):
    pooler_output: Sequence[Tensor]
    deepstack_features: Sequence[Tensor]


class _Inner(Protocol):
    """What is used of `Qwen2VLModel` and its successors."""

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> _Features: ...

    def get_rope_index(
        self, input_ids: Tensor, mm_token_type_ids: Tensor, image_grid_thw: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class QwenFamily(ComposedFamily):
    """A `Family` of Qwen2-VL's build; the fields are what differs.

    Attributes:
        has_deepstack: Whether the tower also feeds the first layers of the language model.
    """

    tower: str = "visual"
    blocks: str = "blocks"
    vision_ids: tuple[str, ...] = (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    )
    vision_tokens: str = r"<\|vision_(start|end|pad)\|>|<\|(image|video)_pad\|>"
    has_deepstack: bool

    def encode_images(self, model: nn.Module, prompt: Prompt) -> VisionFeatures | None:
        if not prompt.has_image:
            return None
        device = self.vision_tower(model).device
        with self._grad_mode(model):
            output = cast("_Inner", self._inner(model)).get_image_features(
                prompt.vision["pixel_values"].to(device), prompt.vision["image_grid_thw"].to(device)
            )
            image_embeds = torch.cat(tuple(output.pooler_output), dim=0)
        return VisionFeatures(
            image_embeds=checked_features(image_embeds, prompt),
            deepstack=tuple(output.deepstack_features) if self.has_deepstack else (),
        )

    def painted_over(self, prompt: Prompt) -> Prompt:
        patches = prompt.vision["pixel_values"].unflatten(1, (CHANNELS, -1))
        images = patches.split(prompt.vision["image_grid_thw"].prod(dim=-1).tolist())
        painted = [image.mean(dim=(0, 2), keepdim=True).expand_as(image) for image in images]
        return replace(prompt, vision={**prompt.vision, "pixel_values": torch.cat(painted).flatten(1)})

    def prompt_inputs(self, model: nn.Module, prompt: Prompt, features: VisionFeatures | None) -> PromptInputs:
        inputs_embeds = self._placed(model, prompt, features)
        # Positions are counted on the CPU: the model's own loop asks for single numbers, each a wait on a GPU.
        position_ids, _ = cast("_Inner", self._inner(model)).get_rope_index(
            input_ids=prompt.input_ids.cpu()[None],
            mm_token_type_ids=prompt.image_mask.cpu()[None].int(),
            image_grid_thw=prompt.vision["image_grid_thw"].cpu() if prompt.has_image else None,
        )
        return PromptInputs(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids.to(inputs_embeds.device),
            next_position=int(position_ids.max()) + 1,
            image_mask=prompt.image_mask.to(inputs_embeds.device),
            deepstack=() if features is None else features.deepstack,
        )

    def text_positions(self, positions: Int[Tensor, "row token"]) -> Int[Tensor, "3 row token"]:
        return positions.expand(3, -1, -1)
