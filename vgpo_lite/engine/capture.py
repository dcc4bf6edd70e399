"""Focus out of a forward that is made anyway: what is kept of the last layer, and what becomes of it.

Nothing is hooked: attention comes from the onlooker that the model's attention calls (`models.attention`), similarity
from the states after the final norm, which the language model returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from vgpo_lite.algorithm.focus import attention_focus, similarity_focus

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from vgpo_lite.engine.layout import Layout


class Seen(NamedTuple):
    """One layer's queries and keys, rotated and detached."""

    query: Float[Tensor, "batch head kept dim"]
    key: Float[Tensor, "batch kv_head token dim"]
    scale: float

    def behind(self, first: Seen) -> Seen:
        """The tokens of this, behind those of `first`, in one row."""
        query, key = torch.cat([first.query, self.query], dim=2), torch.cat([first.key, self.key], dim=2)
        return Seen(query, key, self.scale)


class AttentionCapture:
    """An `AttentionWatch` that keeps one layer's queries and keys of one forward: memory does not grow with layers."""

    def __init__(self, layer: int, *, first_query: int = 0) -> None:
        """Watch one layer.

        Args:
            layer: Which, from 0.
            first_query: Queries before this token are not kept.
        """
        self._layer = layer
        self._first_query = first_query
        self._seen: list[Seen] = []

    def see(
        self,
        layer: int,
        query: Float[Tensor, "batch head token dim"],
        key: Float[Tensor, "batch kv_head token dim"],
        *,
        scale: float,
    ) -> None:
        """Keep the first sight of the layer; under checkpointing there is a second during the backward pass."""
        if layer == self._layer and not self._seen:
            kept = query.detach()[:, :, self._first_query :]
            self._seen.append(Seen(kept.clone() if self._first_query else kept, key.detach(), scale))

    @property
    def seen(self) -> Seen:
        """What was kept; the forward must be over."""
        return self._seen[0]


def row_attention_focus(
    seen: Seen, layout: Layout, image_mask: Bool[Tensor, " prompt"], *, chunk_size: int
) -> Float[Tensor, "group token"]:
    """Attention focus of completions that share a prompt.

    Args:
        seen: Queries of the *states* (the prompt's last token, then all completion tokens) and keys of the whole row
            (the prompt, then all completion tokens), batch 1.
        layout: Where the completions are.
        image_mask: True at the prompt's image tokens.
        chunk_size: Tokens whose attention weights exist at one time.
    """
    emitting = layout.emitting_states().to(seen.query.device)
    query = layout.padded(seen.query[0].transpose(0, 1)[emitting]).transpose(1, 2)
    keys = seen.key[0]
    own_key = layout.padded(keys[:, layout.prompt_length :].transpose(0, 1)).transpose(1, 2)
    prompt_key = keys[:, : layout.prompt_length]
    return attention_focus(query, prompt_key, own_key, image_mask, scale=seen.scale, chunk_size=chunk_size)


def row_similarity_focus(
    states: Float[Tensor, "state hidden"], image_states: Float[Tensor, "image hidden"], layout: Layout
) -> Float[Tensor, "group token"]:
    """Similarity focus of completions that share a prompt; each token's own state is the one behind its emission.

    Args:
        states: The prompt's last state, then those of all completion tokens, after the final norm.
        image_states: States at the prompt's image tokens.
        layout: Where the completions are.
    """
    return similarity_focus(layout.padded(states.detach()[1:]), image_states.detach())
