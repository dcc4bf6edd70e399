"""The language model over a group's row, whole or in parts: embeddings in, states after the final norm out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vgpo_lite.engine.stages import CompletionStage, PackedStage, PromptStage

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

    def packed(
        self, prompt: PromptInputs, layout: Layout, token_ids: Int[Tensor, " flat"], watch: AttentionWatch | None
    ) -> Float[Tensor, "row_token hidden"]:
        """The whole row at once."""
        embeds = torch.cat([prompt.inputs_embeds, self._embeds(token_ids)], dim=1)
        positions = torch.cat([prompt.position_ids, _positions(layout, prompt)], dim=2)
        return self._run(embeds, positions, PackedStage(layout), watch, prompt.extras(layout.row_length))

    def prompt(
        self, prompt: PromptInputs, stage: PromptStage, watch: AttentionWatch | None
    ) -> Float[Tensor, "prompt hidden"]:
        """The prompt alone; `stage` holds its keys and values afterwards."""
        return self._run(prompt.inputs_embeds, prompt.position_ids, stage, watch, prompt.extras(prompt.length))

    def completions(
        self,
        prompt: PromptInputs,
        keys_values: Mapping[int, KeysAndValues],
        layout: Layout,
        token_ids: Int[Tensor, " flat"],
        watch: AttentionWatch | None,
    ) -> Float[Tensor, "flat hidden"]:
        """Some completions, on top of their prompt's keys and values."""
        stage = CompletionStage(keys_values, layout)
        return self._run(self._embeds(token_ids), _positions(layout, prompt), stage, watch, {})

    def _embeds(self, token_ids: Int[Tensor, " flat"]) -> Float[Tensor, "1 flat hidden"]:
        return self._policy.family.embed(self._policy.model, token_ids)[None]

    def _run(
        self,
        embeds: Tensor,
        positions: Tensor,
        stage: AttentionStage,
        watch: AttentionWatch | None,
        extras: Mapping[str, object],
    ) -> Float[Tensor, "token hidden"]:
        output = self._language_model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, stage=stage, watch=watch, **extras
        )
        return output.last_hidden_state[0]


def _positions(layout: Layout, prompt: PromptInputs) -> Int[Tensor, "3 1 flat"]:
    """All completions go on from the prompt's last position."""
    places = layout.token_places() + prompt.next_position
    return places.to(prompt.position_ids.device).expand(3, 1, -1)
