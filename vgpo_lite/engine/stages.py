"""Who answers attention in each part of a group's row: the prompt, and the completions on top of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.engine.attend import completion_attention, prompt_attention
from vgpo_lite.engine.sight import completion_sight, prompt_sight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Int
    from torch import Tensor

    from vgpo_lite.engine.layout import Layout
    from vgpo_lite.engine.sight import CompletionSight

KeysAndValues = tuple["Tensor", "Tensor"]


class PromptReadError(Exception):
    """Ends the forward of a prompt: its last keys and values are there, and nothing behind them is wanted."""


class PromptStage:
    """An `AttentionStage` for a prompt alone, which leaves its keys and values behind.

    Attributes:
        keys_values: Of each layer, as they stand in the graph of the forward.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        *,
        image_blocks: Int[Tensor, " prompt"] | None = None,
        last_layer: int | None = None,
    ) -> None:
        """Prepare for one forward.

        Args:
            windows: Of each layer: how many tokens back a token sees, itself included; None: all.
            image_blocks: As in `models.families.PromptInputs`.
            last_layer: The layer at whose keys and values the forward ends, with `PromptReadError`; None: it goes on to
                the states.
        """
        self.keys_values: dict[int, KeysAndValues] = {}
        self._windows = windows
        self._image_blocks = image_blocks
        self._last_layer = last_layer
        self._sights: dict[int | None, Bool[Tensor, "prompt prompt"] | None] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Causal attention, unless an image sees itself; under checkpointing the second run's keys and values are not
        the graph's, and not kept."""
        self.keys_values.setdefault(layer, (key, value))
        if layer == self._last_layer:
            raise PromptReadError
        sight = self._sight(self._windows[layer], query)
        return prompt_attention(query, key, value, sight, scale=scale).transpose(1, 2)

    def _sight(self, window: int | None, query: Tensor) -> Bool[Tensor, "prompt prompt"] | None:
        length = query.shape[2]
        if window is not None and window >= length:
            window = None  # sees as much: one mask serves both
        if window not in self._sights:
            self._sights[window] = prompt_sight(
                length, window=window, image_blocks=self._image_blocks, device=query.device
            )
        return self._sights[window]


class CompletionStage:
    """An `AttentionStage` for completions whose prompt has been run."""

    def __init__(
        self,
        prompt: Mapping[int, KeysAndValues],
        layout: Layout,
        windows: Sequence[int | None],
        *,
        places: Mapping[int, Int[Tensor, " shared"]] | None = None,
    ) -> None:
        """Prepare for one forward.

        Args:
            prompt: Keys and values of the shared part of the prompt, by layer.
            layout: Where the completions are.
            windows: Of each layer: how many tokens back a token sees, itself included; None: all.
            places: Of layers whose keys and values are not those of the whole shared part: where those stand that are.
        """
        self._prompt = prompt
        self._layout = layout
        self._windows = windows
        self._places = places or {}
        self._sights: dict[tuple[int | None, int | None], CompletionSight] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Each completion sees the prompt and itself, as far back as the layer's window goes."""
        sight = self._sight(layer, query)
        attended = completion_attention(
            query, self._prompt[layer], (key, value), self._layout.blocks, sight, scale=scale
        )
        return attended.transpose(1, 2)

    def _sight(self, layer: int, query: Tensor) -> CompletionSight:
        places = self._places.get(layer)
        kind = self._windows[layer], None if places is None else layer
        if kind not in self._sights:
            self._sights[kind] = completion_sight(
                self._layout, window=self._windows[layer], places=places, device=query.device
            )
        return self._sights[kind]
