"""What the families have in common: a vision tower, a decoder and a head, each at the path that its family names.

`QwenFamily` and `TiledFamily` add how images become features and where tokens stand.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from peft import PeftModel

from vgpo_lite.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

    from vgpo_lite.data_types import Prompt
    from vgpo_lite.models.families.base import PromptInputs, Tokenizer, VisionFeatures

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of attention in the words of transformers' configurations."""

LANGUAGE_PROJECTIONS = r"self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj"


class _Model(Protocol):
    """What all conditional-generation models share."""

    model: nn.Module
    lm_head: nn.Linear


class _Decoder(Protocol):
    """What all text models share."""

    embed_tokens: nn.Embedding
    layers: Sequence[nn.Module]
    norm: nn.Module
    config: _TextConfig


class _TextConfig(Protocol):
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int


@dataclass(frozen=True, kw_only=True)
class ComposedFamily:
    """The part of a `Family` that follows from where things are; the fields are what differs.

    Attributes:
        model_type: As in the configuration.
        decoder: The text model's name inside `model.model`.
        tower: The vision tower's name there.
        blocks: Path of the blocks inside the tower.
        connectors: Names of what else stands between the two and stays as it is.
        vision_projections: Expression for the linear layers inside a block of the tower.
        vision_ids: Names of ids in the configuration that stand for vision.
        vision_tokens: Expression for added tokens that do.
    """

    model_type: str
    decoder: str = "language_model"
    tower: str
    blocks: str
    connectors: tuple[str, ...] = ()
    vision_projections: str
    vision_ids: tuple[str, ...] = ("image_token_id",)
    vision_tokens: str

    def skip_quantization(self) -> list[str]:
        return [*(f"model.{name}" for name in (self.tower, *self.connectors)), "lm_head"]

    def lora_targets(self, *, vision: bool) -> str:
        language = rf"(.*\.)?{self.decoder}\.layers\.\d+\.({LANGUAGE_PROJECTIONS})"
        if not vision:
            return language
        return rf"{language}|(.*\.)?{self.tower}\.{re.escape(self.blocks)}\.\d+\.({self.vision_projections})"

    def bare(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", _bare(model))

    def language_model(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", _parts(model).model.get_submodule(self.decoder))

    def vision_tower(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", _parts(model).model.get_submodule(self.tower))

    def lm_head(self, model: nn.Module) -> nn.Linear:
        return _parts(model).lm_head

    def final_norm(self, model: nn.Module) -> nn.Module:
        return self._decoder(model).norm

    def layers(self, model: nn.Module) -> tuple[nn.Module, ...]:
        return tuple(self._decoder(model).layers)

    def vision_layers(self, model: nn.Module) -> tuple[nn.Module, ...]:
        return tuple(self.vision_tower(model).get_submodule(self.blocks).children())

    def capture_layer(self, model: nn.Module) -> int:
        return max(layer for layer, kind in enumerate(self._layer_kinds(model)) if kind == FULL)

    def kept_numbers(self, model: nn.Module) -> int:
        config = self._decoder(model).config
        # Gate, up, their product and its activation; norms, queries, keys, values, attention and sums around it. 52
        # million parameters keep 57 to 63 kB of a token and layer in float32; this says 63.
        return 4 * config.intermediate_size + 10 * config.hidden_size

    def shares_prompts(self, model: nn.Module) -> bool:
        return {FULL, SLIDING}.issuperset(self._layer_kinds(model))

    def windows(self, model: nn.Module) -> tuple[int | None, ...]:
        window = vars(self._decoder(model).config).get("sliding_window")
        return tuple(window if kind == SLIDING else None for kind in self._layer_kinds(model))

    def row_masks(self, model: nn.Module, inputs: PromptInputs, embeds: Tensor, kept: Bool[Tensor, "row token"]) -> Any:
        return kept.long()

    def whole_inputs(self, prompt: Prompt, *, rows: int) -> dict[str, Tensor]:
        return {name: torch.cat([value] * rows) for name, value in prompt.vision.items()}

    def _layer_kinds(self, model: nn.Module) -> Sequence[str]:
        """The attention of each layer, as its configuration calls it."""
        config = self._decoder(model).config
        return vars(config).get("layer_types") or [FULL] * config.num_hidden_layers  # only some configurations list it

    def vision_special_ids(self, config: PretrainedConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
        named = vars(config)
        ids = {named[name] for name in self.vision_ids}
        if tokenizer is not None:
            added = tokenizer.get_added_vocab()
            ids.update(index for token, index in added.items() if re.fullmatch(self.vision_tokens, token))
        return tuple(sorted(ids))

    def image_token_id(self, processor: Any) -> int:
        return processor.image_token_id

    def trains_vision(self, model: nn.Module) -> bool:
        return any(parameter.requires_grad for parameter in self.vision_tower(model).parameters())

    def embed(self, model: nn.Module, token_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape hidden"]:
        table = self._decoder(model).embed_tokens
        with torch.no_grad():
            # Detached: a hook of `enable_input_require_grads` would make even these require a gradient.
            return table(token_ids.to(table.weight.device)).detach()

    def _decoder(self, model: nn.Module) -> _Decoder:
        return cast("_Decoder", self.language_model(model))

    def _inner(self, model: nn.Module) -> nn.Module:
        """The model without its head."""
        return _parts(model).model

    def _grad_mode(self, model: nn.Module) -> AbstractContextManager[None]:
        """A frozen tower leaves no graph."""
        return nullcontext() if self.trains_vision(model) else torch.no_grad()

    def _placed(
        self, model: nn.Module, prompt: Prompt, features: VisionFeatures | None
    ) -> Float[Tensor, "1 prompt hidden"]:
        """A prompt's embeddings with its image features where the prompt's own mask says."""
        embeds = self.embed(model, prompt.input_ids)[None]
        if features is None:
            return embeds
        mask = prompt.image_mask.to(embeds.device)
        return embeds.masked_scatter(mask[None, :, None], features.image_embeds.to(embeds))


def checked_features(image_embeds: Float[Tensor, "image hidden"], prompt: Prompt) -> Float[Tensor, "image hidden"]:
    """The features, if there is one for each of the prompt's image tokens.

    Raises:
        ModelError: There are more or fewer.
    """
    expected = int(prompt.image_mask.sum())
    if image_embeds.shape[0] != expected:
        raise ModelError(
            f"{prompt.sample.sample_id}: the vision tower made {image_embeds.shape[0]} features of the images, but "
            f"the prompt has {expected} image tokens; encode the prompt with this model's own processor"
        )
    return image_embeds


def _bare(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _parts(model: nn.Module) -> _Model:
    return cast("_Model", _bare(model))
