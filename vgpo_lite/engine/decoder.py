"""The language model over the parts of a group's row: embeddings in, states after the final norm out."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vgpo_lite.engine.stages import CompletionStage, PromptReadError, PromptStage
from vgpo_lite.models.attention import NO_MASK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int
    from torch import Tensor

    from vgpo_lite.engine.layout import Layout
    from vgpo_lite.engine.stages import KeysAndValues
    from vgpo_lite.models.attention import AttentionStage, AttentionWatch
    from vgpo_lite.models.families import PromptInputs
    from vgpo_lite.models.policy import Policy


class Decoder:
    """A policy's language model, run over rows. Adapters, gradient mode and checkpointing are the caller's."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._language_model = policy.family.language_model(policy.model)
        self._windows = policy.family.windows(policy.model)

    def prompt(
        self, prompt: PromptInputs, watch: AttentionWatch | None = None
    ) -> tuple[Float[Tensor, "prompt hidden"], dict[int, KeysAndValues]]:
        """The states of a prompt, and its keys and values of every layer."""
        stage = PromptStage(self._windows, image_blocks=prompt.image_blocks)
        return self._run_prompt(prompt, stage, watch), stage.keys_values

    def keys_values(self, prompt: PromptInputs) -> dict[int, KeysAndValues]:
        """A prompt's keys and values of every layer, and nothing that only its states would need."""
        last_layer = len(self._windows) - 1
        stage = PromptStage(self._windows, image_blocks=prompt.image_blocks, last_layer=last_layer)
        with suppress(PromptReadError):
            self._run_prompt(prompt, stage, None)
        return stage.keys_values

    def _run_prompt(self, prompt: PromptInputs, stage: PromptStage, watch: AttentionWatch | None) -> Tensor:
        return self._run(prompt.inputs_embeds, prompt.position_ids, stage, watch, prompt.extras(prompt.length))

    def completions(
        self,
        keys_values: Mapping[int, KeysAndValues],
        layout: Layout,
        token_ids: Int[Tensor, " flat"],
        *,
        first_position: int,
        watch: AttentionWatch | None,
        places: Mapping[int, Int[Tensor, " shared"]] | None = None,
    ) -> Float[Tensor, "flat hidden"]:
        """The states of some completions, on top of their prompt's keys and values.

        Args:
            keys_values: Of the shared part of the prompt.
            layout: Where the completions are.
            token_ids: What is fed (`layout.fed_ids`).
            first_position: The position of the prompt's last token.
            watch: Who looks on.
            places: Of layers whose keys and values are not those of the whole shared part: where those stand that are.
        """
        embeds = self._policy.family.embed(self._policy.model, token_ids)[None]
        positions = self._policy.family.text_positions((layout.places() + first_position).to(embeds.device)[None])
        stage = CompletionStage(keys_values, layout, self._windows, places=places)
        return self._run(embeds, positions, stage, watch, {})

    def _run(
        self,
        embeds: Tensor,
        positions: Tensor,
        stage: AttentionStage,
        watch: AttentionWatch | None,
        extras: Mapping[str, object],
    ) -> Float[Tensor, "token hidden"]:
        output = self._language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=NO_MASK,
            use_cache=False,
            stage=stage,
            watch=watch,
            **extras,
        )
        return output.last_hidden_state[0]
