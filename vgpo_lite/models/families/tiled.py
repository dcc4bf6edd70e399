"""What the families have in common that cut an image into tiles of one size and count their tokens one by one.

Each family is one instance of `TiledFamily`, in the file of its name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import torch

from vgpo_lite.models.families.base import PromptInputs, VisionFeatures
from vgpo_lite.models.families.composed import ComposedFamily, checked_features

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Int
    from torch import Tensor, nn

    from vgpo_lite.data_types import Prompt


class _Features(Protocol):
    pooler_output: Iterable[Tensor]


class _Inner(Protocol):
    """What is used of the models: all take what their own processor makes of images, by its names."""

    def get_image_features(self, **vision: Tensor) -> _Features: ...


@dataclass(frozen=True, kw_only=True)
class TiledFamily(ComposedFamily):
    """A `Family` whose images are tiles: each tile's features follow one another, and so do positions."""

    def encode_images(self, model: nn.Module, prompt: Prompt) -> VisionFeatures | None:
        if not prompt.has_image:
            return None
        device = self.vision_tower(model).device
        with self._grad_mode(model):
            vision = {name: values.to(device) for name, values in prompt.vision.items()}
            output = cast("_Inner", self._inner(model)).get_image_features(**vision)
            image_embeds = torch.cat([part.flatten(0, -2) for part in output.pooler_output])
        return VisionFeatures(image_embeds=checked_features(image_embeds, prompt))

    def painted_over(self, prompt: Prompt) -> Prompt:
        pixels = prompt.vision["pixel_values"]
        tiles, lengths = pixels.flatten(0, -4), prompt.image_lengths or (1,)
        counts = [length * tiles.shape[0] // sum(lengths) for length in lengths]
        painted = [image.mean(dim=(0, 2, 3), keepdim=True).expand_as(image) for image in tiles.split(counts)]
        return replace(prompt, vision={**prompt.vision, "pixel_values": torch.cat(painted).view_as(pixels)})

    def prompt_inputs(self, model: nn.Module, prompt: Prompt, features: VisionFeatures | None) -> PromptInputs:
        inputs_embeds = self._placed(model, prompt, features)
        length, device = prompt.input_ids.shape[0], inputs_embeds.device
        return PromptInputs(
            inputs_embeds=inputs_embeds,
            position_ids=torch.arange(length, device=device)[None],
            next_position=length,
            image_mask=prompt.image_mask.to(device),
        )

    def text_positions(self, positions: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
        return positions
