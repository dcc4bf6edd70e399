"""What the engine must know of a model family, and the two carriers between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from vgpo_lite.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

    from vgpo_lite.data_types import Prompt


@dataclass(frozen=True, kw_only=True)
class VisionFeatures:
    """What the vision tower made of one prompt's images, in the order of the prompt's image tokens.

    Attributes:
        image_embeds: What takes the place of the image tokens' embeddings.
        deepstack: What is added to the hidden states at the image tokens after the first layers, one tensor per layer
            (Qwen3-VL); empty for families without.
    """

    image_embeds: Float[Tensor, "image hidden"]
    deepstack: tuple[Float[Tensor, "image hidden"], ...] = ()


@dataclass(frozen=True, kw_only=True)
class PromptInputs:
    """A prompt as the language model takes it, on the model's device.

    Attributes:
        inputs_embeds: Embeddings with the image features in place.
        position_ids: Rotary positions; with an axis in front (temporal, height, width) where the family has three.
        next_position: The position of a completion's first token, on all axes.
        image_mask: True at the image tokens.
        deepstack: As in `VisionFeatures`.
        image_blocks: The image that each token belongs to, from 0, and -1 where it belongs to none, of families whose
            images see themselves in both directions (Gemma 3); None: every token sees what stands before it.
    """

    inputs_embeds: Float[Tensor, "1 prompt hidden"]
    position_ids: Int[Tensor, "*axis 1 prompt"]
    next_position: int
    image_mask: Bool[Tensor, " prompt"]
    deepstack: tuple[Float[Tensor, "image hidden"], ...] = ()
    image_blocks: Int[Tensor, " prompt"] | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.image_mask.shape[0]

    def without_last_token(self) -> PromptInputs:
        """All but the last token: what completions share, when each begins with that token itself.

        Raises:
            ModelError: The last token is the only one, or stands for an image.
        """
        if self.length < 2 or bool(self.image_mask[-1]):
            raise ModelError(
                f"a prompt must end with text behind its images, but this one has {self.length} tokens and ends with "
                "an image; check the chat template"
            )
        return replace(
            self,
            inputs_embeds=self.inputs_embeds[:, :-1],
            position_ids=self.position_ids[..., :-1],
            image_mask=self.image_mask[:-1],
            image_blocks=None if self.image_blocks is None else self.image_blocks[:-1],
        )

    def row_positions(self, tokens: int, *, rows: int = 1) -> Int[Tensor, "*axis row token"]:
        """Positions of rows that begin with this prompt and go on for `tokens` more.

        Args:
            tokens: Tokens behind the prompt, >= 0.
            rows: Copies of the prompt in the batch.
        """
        axes = self.position_ids.shape[:-2]
        behind = torch.arange(tokens, device=self.position_ids.device) + self.next_position
        return torch.cat(
            [self.position_ids.expand(*axes, rows, -1), behind.expand(*axes, rows, -1)],
            dim=-1,
        )

    def extras(self, row_length: int, *, rows: int = 1) -> Mapping[str, object]:
        """Further keywords of the language model for rows that begin with this prompt.

        Args:
            row_length: Tokens of a row, >= `length`. Tokens behind the prompt are never image tokens, whatever their
                ids are.
            rows: Copies of the prompt in the batch.
        """
        if not self.deepstack:
            return {}
        mask = torch.nn.functional.pad(self.image_mask, (0, row_length - self.length))
        return {
            "visual_pos_masks": mask.expand(rows, -1),
            "deepstack_visual_embeds": [features.repeat(rows, 1) for features in self.deepstack],
        }


class Tokenizer(Protocol):
    """The one thing a family asks of a tokenizer."""

    def get_added_vocab(self) -> Mapping[str, int]:
        """Ids of the tokens that were added to the trained vocabulary, special ones among them."""
        ...


class Family(Protocol):
    """Models that share an architecture. Every method takes the model bare or wrapped by PEFT."""

    @property
    def model_type(self) -> str:
        """The `model_type` of the configurations this family answers for."""
        ...

    def skip_quantization(self) -> list[str]:
        """Full names of what stays 16-bit: the vision tower with its merger, and the head.

        transformers compares from the start of a module's full name (`model.visual.blocks.0...`): a bare `visual`
        matches nothing. The head must be named, or an untied one is quantized.
        """
        ...

    def lora_targets(self, *, vision: bool) -> str:
        """PEFT's `target_modules` as one expression: the language model's attention and MLP projections.

        Args:
            vision: Also the linear layers of the vision tower's blocks.
        """
        ...

    def bare(self, model: nn.Module) -> PreTrainedModel:
        """The conditional-generation model under a possible PEFT wrapper; adapters stay in place inside it."""
        ...

    def language_model(self, model: nn.Module) -> PreTrainedModel:
        """The decoder: embeddings, layers, final norm. Its `last_hidden_state` is after the final norm."""
        ...

    def vision_tower(self, model: nn.Module) -> PreTrainedModel:
        """The vision transformer with its merger."""
        ...

    def lm_head(self, model: nn.Module) -> nn.Linear:
        """The head that turns states after the final norm into logits; frozen, without a bias."""
        ...

    def final_norm(self, model: nn.Module) -> nn.Module:
        """The norm between the last layer and the head. `hidden_states[-1]` of transformers is behind it."""
        ...

    def layers(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The decoder layers, first to last."""
        ...

    def vision_layers(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The blocks of the vision tower, first to last."""
        ...

    def capture_layer(self, model: nn.Module) -> int:
        """The last layer with full attention, from 0: where focus is read."""
        ...

    def kept_numbers(self, model: nn.Module) -> int:
        """How many numbers a decoder layer keeps of each token for its backward pass, about."""
        ...

    def shares_prompts(self, model: nn.Module) -> bool:
        """Whether what a layer shows a completion of its prompt follows from places alone: all, or a window."""
        ...

    def windows(self, model: nn.Module) -> tuple[int | None, ...]:
        """Of each decoder layer: how many tokens back a token sees, itself included; None: all."""
        ...

    def row_masks(
        self,
        model: nn.Module,
        inputs: PromptInputs,
        embeds: Float[Tensor, "row token hidden"],
        kept: Bool[Tensor, "row token"],
    ) -> Any:
        """The language model's own `attention_mask` for rows that begin with a prompt, none of them under a stage.

        Args:
            model: The model.
            inputs: The prompt.
            embeds: The whole rows.
            kept: False on the padding behind them.
        """
        ...

    def whole_inputs(self, prompt: Prompt, *, rows: int) -> Mapping[str, Tensor]:
        """What the whole model's forward takes of copies of a prompt beside ids and positions: pixels, and whatever
        tells it where images are.

        Args:
            prompt: The prompt.
            rows: Copies of it in the batch.
        """
        ...

    def vision_special_ids(self, config: PretrainedConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
        """Ids that stand for vision, sorted: placeholders, starts and ends. A policy must never sample them.

        Args:
            config: The model's configuration.
            tokenizer: Knows ids the configuration does not name, such as `<|vision_pad|>`; None: configuration only.
        """
        ...

    def image_token_id(self, processor: Any) -> int:
        """The id that stands for one feature of an image, as the model's processor writes it."""
        ...

    def trains_vision(self, model: nn.Module) -> bool:
        """Whether any parameter of the vision tower learns (vision LoRA): features then belong to the graph."""
        ...

    def encode_images(self, model: nn.Module, prompt: Prompt) -> VisionFeatures | None:
        """Run the vision tower once over a prompt's images; None for a prompt without.

        A frozen tower leaves no graph. One with adapters belongs to the caller's graph: its features may not outlive
        the backward pass.

        Raises:
            ModelError: The features are not as many as the prompt's image tokens.
        """
        ...

    def painted_over(self, prompt: Prompt) -> Prompt:
        """The same prompt, each image replaced by its own mean colour, as the processor sees it; sizes stay."""
        ...

    def prompt_inputs(self, model: nn.Module, prompt: Prompt, features: VisionFeatures | None) -> PromptInputs:
        """Embed a prompt with its image features in place; positions come from the image grids.

        Image tokens are those of `prompt.image_mask`; ids are never compared.
        """
        ...

    def text_positions(self, positions: Int[Tensor, "row token"]) -> Int[Tensor, "*axis row token"]:
        """Positions of text as the language model takes them: on three axes where the family has three."""
        ...

    def embed(self, model: nn.Module, token_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape hidden"]:
        """Embeddings of sampled tokens, on the model's device; a vision id is only an embedding like any other."""
        ...
