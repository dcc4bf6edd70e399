"""LLaVA-OneVision in the form that transformers reads (`-hf`): a SigLIP tower, a projector and a Qwen2 decoder.

A lone image is shown whole in one tile and then in a canvas of tiles, joined into rows; of several each is one tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vgpo_lite.models.families.tiled import TiledFamily

if TYPE_CHECKING:
    from vgpo_lite.data_types import Prompt


@dataclass(frozen=True, kw_only=True)
class JoinedFamily(TiledFamily):
    """A `Family` whose processor keeps the tiles of each image apart, the whole image first."""

    def painted_over(self, prompt: Prompt) -> Prompt:
        # The first tile alone is the image without the black that its canvas is filled up with; of several images
        # each is squared with grey, which counts. All that is shown of an image is painted, padding included.
        pixels = prompt.vision["pixel_values"]
        painted = pixels[:, :1].mean(dim=(1, 3, 4), keepdim=True).expand_as(pixels)
        return replace(prompt, vision={**prompt.vision, "pixel_values": painted})


LLAVA_ONEVISION = JoinedFamily(
    model_type="llava_onevision",
    tower="vision_tower",
    blocks="encoder.layers",
    connectors=("multi_modal_projector",),
    vision_projections=r"self_attn\.(q|k|v|out)_proj|mlp\.(fc1|fc2)",
    vision_ids=("image_token_index", "video_token_index"),
    vision_tokens=r"<image>|<video>",
)
