"""What the Qwen vision-language families have in common: one tower, one decoder, three rotary axes.

Each family is one instance of `QwenFamily`, in the file of its name.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import torch
from peft import PeftModel

from vgpo_lite.errors import ModelError
from vgpo_lite.models.families.base import PromptInputs, VisionFeatures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

    from vgpo_lite.data_types import Prompt
    from vgpo_lite.models.families.base import Tokenizer

LANGUAGE_PROJECTIONS = r"self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj"
CHANNELS = 3
"""Red, green, blue: a patch holds all its pixels of one, then of the next."""
VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


class _Features(Protocol):
    pooler_output: Sequence[Tensor]
    deepstack_features: Sequence[Tensor]


class _Inner(Protocol):
    """What is used of `Qwen2VLModel` and its successors."""

    visual: PreTrainedModel
    language_model: PreTrainedModel

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> _Features: ...

    def get_rope_index(
        self, input_ids: Tensor, mm_token_type_ids: Tensor, image_grid_thw: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...


class _Model(Protocol):
    """What is used of `Qwen2VLForConditionalGeneration` and its successors."""

    model: _Inner
    lm_head: nn.Linear


class _Decoder(Protocol):
    """What is used of `Qwen2VLTextModel` and its successors."""

    embed_tokens: nn.Embedding
    layers: Sequence[nn.Module]
    norm: nn.Module
    config: _TextConfig


class _Tower(Protocol):
    """What is used of the vision towers."""

    blocks: Sequence[nn.Module]


class _TextConfig(Protocol):
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    layer_types: Sequence[str]


class _VisionIds(Protocol):
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


@dataclass(frozen=True, kw_only=True)
class QwenFamily:
    """A `Family` of Qwen2-VL's build; the fields are what differs.

    Attributes:
        model_type: As in the configuration.
        vision_projections: Expression for the linear layers inside a block of the vision tower.
        has_deepstack: Whether the tower also feeds the first layers of the language model.
        has_layer_types: Whether the configuration lists each layer's attention (some may have windows).
    """

    model_type: str
    vision_projections: str
    has_deepstack: bool
    has_layer_types: bool

    def skip_quantization(self) -> list[str]:
        return ["model.visual", "lm_head"]

    def lora_targets(self, *, vision: bool) -> str:
        language = rf"(.*\.)?language_model\.layers\.\d+\.({LANGUAGE_PROJECTIONS})"
        if not vision:
            return language
        return rf"{language}|(.*\.)?visual\.blocks\.\d+\.({self.vision_projections})"

    def bare(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", _bare(model))

    def language_model(self, model: nn.Module) -> PreTrainedModel:
        return _parts(model).model.language_model

    def vision_tower(self, model: nn.Module) -> PreTrainedModel:
        return _parts(model).model.visual

    def lm_head(self, model: nn.Module) -> nn.Linear:
        return _parts(model).lm_head

    def final_norm(self, model: nn.Module) -> nn.Module:
        return _decoder(model).norm

    def layers(self, model: nn.Module) -> tuple[nn.Module, ...]:
        return tuple(_decoder(model).layers)

    def vision_layers(self, model: nn.Module) -> tuple[nn.Module, ...]:
        return tuple(cast("_Tower", _parts(model).model.visual).blocks)

    def capture_layer(self, model: nn.Module) -> int:
        return max(index for index, full in enumerate(self._full_attention(model)) if full)

    def kept_numbers(self, model: nn.Module) -> int:
        config = _decoder(model).config
        # Gate, up, their product and its activation; norms, queries, keys, values, attention and sums around it. 52
        # million parameters keep 57 to 63 kB of a token and layer in float32; this says 63.
        return 4 * config.intermediate_size + 10 * config.hidden_size

    def shares_prompts(self, model: nn.Module) -> bool:
        return all(self._full_attention(model))

    def _full_attention(self, model: nn.Module) -> list[bool]:
        config = _decoder(model).config
        if not self.has_layer_types:
            return [True] * config.num_hidden_layers
        return [layer_type == "full_attention" for layer_type in config.layer_types]

    def vision_special_ids(self, config: PretrainedConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
        named = cast("_VisionIds", config)
        ids = {named.image_token_id, named.video_token_id, named.vision_start_token_id, named.vision_end_token_id}
        if tokenizer is not None:
            added = tokenizer.get_added_vocab()
            ids.update(added[token] for token in VISION_TOKENS if token in added)
        return tuple(sorted(ids))

    def trains_vision(self, model: nn.Module) -> bool:
        return any(parameter.requires_grad for parameter in _parts(model).model.visual.parameters())

    def encode_images(self, model: nn.Module, prompt: Prompt) -> VisionFeatures | None:
        if not prompt.has_image:
            return None
        inner = _parts(model).model
        device = inner.visual.device
        with nullcontext() if self.trains_vision(model) else torch.no_grad():
            output = inner.get_image_features(
                prompt.vision["pixel_values"].to(device), prompt.vision["image_grid_thw"].to(device)
            )
            image_embeds = torch.cat(tuple(output.pooler_output), dim=0)
        expected = int(prompt.image_mask.sum())
        if image_embeds.shape[0] != expected:
            raise ModelError(
                f"{prompt.sample.sample_id}: the vision tower made {image_embeds.shape[0]} features of the images, but "
                f"the prompt has {expected} image tokens; encode the prompt with this model's own processor"
            )
        return VisionFeatures(
            image_embeds=image_embeds, deepstack=tuple(output.deepstack_features) if self.has_deepstack else ()
        )

    def painted_over(self, prompt: Prompt) -> Prompt:
        patches = prompt.vision["pixel_values"].unflatten(1, (CHANNELS, -1))
        images = patches.split(prompt.vision["image_grid_thw"].prod(dim=-1).tolist())
        painted = [image.mean(dim=(0, 2), keepdim=True).expand_as(image) for image in images]
        return replace(prompt, vision={**prompt.vision, "pixel_values": torch.cat(painted).flatten(1)})

    def prompt_inputs(self, model: nn.Module, prompt: Prompt, features: VisionFeatures | None) -> PromptInputs:
        inner = _parts(model).model
        inputs_embeds = self.embed(model, prompt.input_ids)[None]
        image_mask = prompt.image_mask.to(inputs_embeds.device)
        if features is not None:
            image_embeds = features.image_embeds.to(inputs_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(image_mask[None, :, None], image_embeds)
        # Positions are counted on the CPU: the model's own loop asks for single numbers, each a wait on a GPU.
        position_ids, _ = inner.get_rope_index(
            input_ids=prompt.input_ids.cpu()[None],
            mm_token_type_ids=prompt.image_mask.cpu()[None].int(),
            image_grid_thw=prompt.vision["image_grid_thw"].cpu() if prompt.has_image else None,
        )
        return PromptInputs(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids.to(inputs_embeds.device),
            next_position=int(position_ids.max()) + 1,
            image_mask=image_mask,
            deepstack=() if features is None else features.deepstack,
        )

    def embed(self, model: nn.Module, token_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape hidden"]:
        table = _decoder(model).embed_tokens
        with torch.no_grad():
            # Detached: a hook of `enable_input_require_grads` would make even these require a gradient.
            return table(token_ids.to(table.weight.device)).detach()


def _bare(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _parts(model: nn.Module) -> _Model:
    return cast("_Model", _bare(model))


def _decoder(model: nn.Module) -> _Decoder:
    return cast("_Decoder", _parts(model).model.language_model)
