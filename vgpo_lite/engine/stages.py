"""Who answers attention in each way of running a group: the whole row, the prompt alone, completions on top of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vgpo_lite.engine.attend import causal_attention, completion_attention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vgpo_lite.engine.layout import Layout

KeysAndValues = tuple["Tensor", "Tensor"]


class PackedStage:
    """An `AttentionStage` for the whole row: the prompt, then all completions."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Two attentions, one for the prompt and one for the completions, end to end."""
        parts = [self._layout.prompt_length, self._layout.token_count]
        (prompt_query, own_query), (prompt_key, own_key), (prompt_value, own_value) = (
            tensor.split(parts, dim=2) for tensor in (query, key, value)
        )
        prompt = causal_attention(prompt_query, prompt_key, prompt_value, scale=scale)
        own = completion_attention(
            own_query, (prompt_key, prompt_value), (own_key, own_value), self._layout.blocks, scale=scale
        )
        return torch.cat([prompt.transpose(1, 2), own.transpose(1, 2)], dim=1)


class PromptStage:
    """An `AttentionStage` for a prompt alone, which leaves its keys and values behind.

    Attributes:
        keys_values: Of each layer, as they stand in the graph of the forward.
    """

    def __init__(self) -> None:
        self.keys_values: dict[int, KeysAndValues] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Causal attention; under checkpointing the second run's keys and values are not the graph's, and not kept."""
        self.keys_values.setdefault(layer, (key, value))
        return causal_attention(query, key, value, scale=scale).transpose(1, 2)


class CompletionStage:
    """An `AttentionStage` for completions whose prompt has been run."""

    def __init__(self, prompt: Mapping[int, KeysAndValues], layout: Layout) -> None:
        self._prompt = prompt
        self._layout = layout

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Each completion sees the prompt and itself."""
        attended = completion_attention(query, self._prompt[layer], (key, value), self._layout.blocks, scale=scale)
        return attended.transpose(1, 2)
