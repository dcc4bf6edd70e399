"""Keys and values while groups decode: each prompt's once, each completion's own, and attention over both.

Several groups decode as one batch, a rectangle of *slots*: as many per prompt, each decoding one completion. All is
laid out as `[prompt, kv_head, slot, ...]`, so that the queries of a prompt's completions meet its keys in one product,
and nothing of a prompt is ever repeated per completion. Slots and prompts leave the batch when nobody needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from vgpo_lite.engine.stages import KeysAndValues

FIRST_ROOM = 64
"""Completion tokens there is room for at first. Room doubles when it is used up, so that a token's keys and values are
moved less than once on average, and never more than half of the room is empty."""


class GroupCache:
    """An `AttentionStage` that decodes one token of every slot per forward.

    Rows of the forward are prompt-major: row `prompt * slots + slot`. Each forward appends one token to every slot;
    `advance` ends it.

    Attributes:
        tokens: Completion tokens whose keys and values are held; the same for every slot.
        attention: Where focus is read from attention: mean over the heads of the mass that the last forward's queries
            put on the image tokens, for each prompt and slot. Empty before the first forward, or where not asked for.
    """

    def __init__(
        self,
        image_masks: Sequence[Bool[Tensor, " prompt_token"]],
        *,
        slots: int,
        max_tokens: int,
        focus_layer: int | None,
        windows: Sequence[int | None] | None = None,
    ) -> None:
        """Prepare for prompts that are stored one by one.

        Args:
            image_masks: Each prompt's image tokens, on the model's device; they give the prompts' lengths too.
            slots: Completions of each prompt.
            max_tokens: Completion tokens that will be held at most.
            focus_layer: The layer whose attention on image tokens is kept; None: none.
            windows: Of each layer: how many tokens back a token sees, itself included; None: no layer has one.
        """
        lengths = [mask.shape[0] for mask in image_masks]
        self._longest = max(lengths)
        padded = [torch.nn.functional.pad(mask, (0, self._longest - mask.shape[0])) for mask in image_masks]
        self._image_mask = torch.stack(padded).float()
        self._padding: Tensor | None = None
        self._prompt_places = torch.arange(self._longest, device=self._image_mask.device)
        self._lengths = torch.tensor(lengths, device=self._image_mask.device)[:, None]
        if min(lengths) < self._longest:
            self._padding = self._prompt_places >= self._lengths
        self._prompts = len(lengths)
        self._slots = slots
        self._max_tokens = max_tokens
        self._focus_layer = focus_layer
        self._windows = windows
        self._unused: Bool[Tensor, " room"] | None = None  # where room is attended to that holds no token yet
        # One tensor per layer, keys and values on its first axis.
        self._of_prompts: list[Float[Tensor, "2 prompt kv_head prompt_token dim"]] = []
        self._own: list[Float[Tensor, "2 prompt kv_head slot room dim"]] = []
        self.tokens = 0
        self.attention = torch.empty(self._prompts, 0)

    def store_prompt(self, prompt: int, keys_values: Mapping[int, KeysAndValues]) -> None:
        """Keep what a prompt left behind, `[1, kv_head, prompt_token, dim]` each, layer by layer.

        Args:
            prompt: Its place in the batch.
            keys_values: Of every layer, the first layer's first.
        """
        for layer, (key, value) in keys_values.items():
            if layer == len(self._of_prompts):
                shape = (2, self._prompts, key.shape[1], self._longest, key.shape[3])
                self._of_prompts.append(key.new_zeros(shape))  # not empty: padded values are multiplied by zero
            held = self._of_prompts[layer][:, prompt, :, : key.shape[2]]
            held[0], held[1] = key[0], value[0]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "row head 1 dim"],
        key: Float[Tensor, "row kv_head 1 dim"],
        value: Float[Tensor, "row kv_head 1 dim"],
        *,
        scale: float,
    ) -> Float[Tensor, "row 1 head dim"]:
        """Append one token to every slot, and let it attend its prompt and its own completion.

        Scores are formed in float32 whatever the model's type: keys with large biases (Qwen's) overflow half precision
        or lose the differences that matter.
        """
        prompt_key, prompt_value = self._of_prompts[layer]
        own_key, own_value = self._append(layer, key, value)
        prompts, kv_heads, slots, _, dim = own_key.shape
        heads_each = query.shape[1] // kv_heads
        queries = (query.float() * scale).view(prompts, slots, kv_heads, heads_each, dim).transpose(1, 2)
        on_prompt = queries.flatten(2, 3) @ prompt_key.float().mT  # all slots of a prompt as one long query
        if self._padding is not None:
            on_prompt.masked_fill_(self._padding[:, None, None], float("-inf"))
        on_own = queries @ own_key.float().mT
        if self._unused is not None:
            on_own.masked_fill_(self._unused, float("-inf"))
        self._hide_beyond_window(layer, on_prompt, on_own)
        weights = torch.cat([on_prompt.view(*on_own.shape[:-1], -1), on_own], dim=-1).softmax(dim=-1)
        if layer == self._focus_layer:
            on_image = torch.einsum("pkshi,pi->ps", weights[..., : self._longest], self._image_mask)
            self._see((on_image / query.shape[1]).clamp(max=1))
        for_prompt, for_own = weights.to(value.dtype).tensor_split([self._longest], dim=-1)
        gathered = (for_prompt.flatten(2, 3) @ prompt_value).view(queries.shape) + for_own @ own_value
        return gathered.transpose(1, 2).reshape(prompts * slots, 1, -1, dim)

    def _hide_beyond_window(self, layer: int, on_prompt: Tensor, on_own: Tensor) -> None:
        """Scores of keys that the layer's window no longer shows to the token at hand, of every slot the same."""
        window = None if self._windows is None else self._windows[layer]
        if window is None or self._longest + on_own.shape[-1] <= window:
            return
        on_prompt.masked_fill_((self._prompt_places <= self._lengths + self._at - window)[:, None, None], float("-inf"))
        own_places = torch.arange(on_own.shape[-1], device=on_own.device)
        on_own.masked_fill_(own_places <= self._at - window, float("-inf"))

    @property
    def _at(self) -> int | Int[Tensor, " 1"]:
        """The place of the token at hand in its completion."""
        return self.tokens

    def _see(self, attention: Float[Tensor, "prompt slot"]) -> None:
        self.attention = attention

    def _append(self, layer: int, key: Tensor, value: Tensor) -> Float[Tensor, "2 prompt kv_head slot token dim"]:
        """Write the token at hand; the layer's own keys and values with it."""
        if layer == len(self._own):
            self._own.append(self._first_room(key))
        elif self._own[layer].shape[4] == self.tokens:
            self._own[layer] = self._more_room(self._own[layer])
        held = self._own[layer]
        for place, new in enumerate((key, value)):
            held[place, ..., self.tokens, :] = self._by_slot(new)
        return held[..., : self.tokens + 1, :]

    def _by_slot(self, new: Float[Tensor, "row kv_head 1 dim"]) -> Float[Tensor, "prompt kv_head slot dim"]:
        return new.view(self._prompts, self._slots, -1, new.shape[3]).transpose(1, 2)

    def _first_room(self, key: Float[Tensor, "row kv_head 1 dim"]) -> Float[Tensor, "2 prompt kv_head slot room dim"]:
        """Zeros: whoever attends to room without a token in it multiplies its values by zero."""
        return key.new_zeros(2, self._prompts, key.shape[1], self._slots, self._first_tokens(), key.shape[3])

    def _first_tokens(self) -> int:
        return min(FIRST_ROOM, self._max_tokens)

    def _more_room(self, held: Tensor) -> Float[Tensor, "2 prompt kv_head slot room dim"]:
        roomy = held.new_zeros(*held.shape[:4], min(2 * self.tokens, self._max_tokens), held.shape[5])
        roomy[..., : self.tokens, :] = held
        return roomy

    def advance(self) -> None:
        """The forward is over: its token counts."""
        self.tokens += 1

    def keep(self, prompts: Int[Tensor, " kept"], slots: Int[Tensor, "kept slot"]) -> None:
        """Retire everything else, and give its memory back layer by layer.

        Args:
            prompts: The prompts that stay, by their place in the batch.
            slots: For each of them, the slots that stay.
        """
        if prompts.shape[0] < self._prompts:
            for store in (self._of_prompts, self._own):
                for layer, held in enumerate(store):
                    store[layer] = held.index_select(1, prompts)
            self._image_mask = self._image_mask.index_select(0, prompts)
            self._padding = None if self._padding is None else self._padding.index_select(0, prompts)
            self._lengths = self._lengths.index_select(0, prompts)
        self._prompts, self._slots = slots.shape
        for layer, held in enumerate(self._own):
            chosen = slots[None, :, None, :, None, None].expand(2, -1, held.shape[2], -1, *held.shape[4:])
            self._own[layer] = held.gather(3, chosen)
