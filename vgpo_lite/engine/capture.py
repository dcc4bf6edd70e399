"""Focus out of a forward that is made anyway: what is kept of one layer or the last states, and what becomes of it.

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
    seen: Seen,
    shared_key: Float[Tensor, "1 kv_head shared dim"],
    layout: Layout,
    image_mask: Bool[Tensor, " prompt"],
    *,
    chunk_size: int,
) -> Float[Tensor, "group token"]:
    """Attention focus of completions that share a prompt.

    Args:
        seen: Queries and keys of the completions' flat tokens, batch 1.
        shared_key: The same layer's keys of the prompt's shared part.
        layout: Where the completions are.
        image_mask: True at the prompt's image tokens.
        chunk_size: Tokens whose attention weights exist at one time.
    """
    emitting = layout.emitting().to(seen.query.device)
    queries, keys = seen.query[0].transpose(0, 1), seen.key[0].transpose(0, 1)
    # A token's own key stands one place behind the query that emitted it. The last token's is never seen.
    own_keys = keys.roll(-1, dims=0)[emitting]
    return attention_focus(
        layout.padded(queries[emitting]).transpose(1, 2),
        torch.cat([shared_key.detach()[0], keys[0][:, None]], dim=1),
        layout.padded(own_keys).transpose(1, 2),
        image_mask,
        scale=seen.scale,
        chunk_size=chunk_size,
    )


def row_similarity_focus(
    states: Float[Tensor, "flat hidden"], image_states: Float[Tensor, "image hidden"], layout: Layout
) -> Float[Tensor, "group token"]:
    """Similarity focus of completions that share a prompt; the layout feeds their last tokens.

    Args:
        states: States of the completions' flat tokens, after the final norm.
        image_states: States at the prompt's image tokens.
        layout: Where the completions are.
    """
    own = layout.own().to(states.device)
    return similarity_focus(layout.padded(states.detach()[own]), image_states.detach())
