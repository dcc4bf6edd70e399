"""Who answers attention in each part of a group's row: the prompt, and the completions on top of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.engine.attend import causal_attention, completion_attention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vgpo_lite.engine.layout import Layout

KeysAndValues = tuple["Tensor", "Tensor"]


class PromptReadError(Exception):
    """Ends the forward of a prompt: its last keys and values are there, and nothing behind them is wanted."""


class PromptStage:
    """An `AttentionStage` for a prompt alone, which leaves its keys and values behind.

    Attributes:
        keys_values: Of each layer, as they stand in the graph of the forward.
    """

    def __init__(self, *, last_layer: int | None = None) -> None:
        """Prepare for one forward.

        Args:
            last_layer: The layer at whose keys and values the forward ends, with `PromptReadError`; None: it goes on to
                the states.
        """
        self.keys_values: dict[int, KeysAndValues] = {}
        self._last_layer = last_layer

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Causal attention; under checkpointing the second run's keys and values are not the graph's, and not kept."""
        self.keys_values.setdefault(layer, (key, value))
        if layer == self._last_layer:
            raise PromptReadError
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
