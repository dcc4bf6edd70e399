"""Where each token looks: attention over every place of the prompt. Focus is its sum over the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@torch.no_grad()
def attention_maps(
    query: Float[Tensor, "head token dim"],
    prompt_key: Float[Tensor, "kv_head prompt dim"],
    own_key: Float[Tensor, "kv_head token dim"],
    *,
    scale: float,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "token prompt"], Float[Tensor, " token"]]:
    """Attention of the query that emitted each token, averaged over the heads.

    Queries and keys are shifted as in `focus.attention_focus`: query t sees the prompt and own keys before t.

    Args:
        query: One completion's queries.
        prompt_key: Keys of the prompt.
        own_key: Keys of the completion's tokens.
        scale: The layer's factor on q . k.
        chunk_size: Tokens whose weights of all heads exist at one time; it changes memory, not the result.

    Returns:
        The weight of each place of the prompt, and the weight of the completion's own tokens together; they add up to 1
        for every token. In float32 or better.
    """
    accurate = torch.promote_types(query.dtype, torch.float32)
    heads, tokens = query.shape[:2]
    shared = heads // prompt_key.shape[0]
    keys = torch.cat([prompt_key, own_key], dim=1).to(accurate).repeat_interleave(shared, dim=0)
    prompt, place = prompt_key.shape[1], torch.arange(tokens, device=query.device)
    rows = []
    for start in range(0, tokens, chunk_size):
        part = slice(start, min(start + chunk_size, tokens))
        scores = query[:, part].to(accurate) @ keys.transpose(1, 2) * scale
        scores[:, :, prompt:].masked_fill_(place >= place[part, None], -torch.inf)
        rows.append(scores.softmax(dim=-1).mean(dim=0))
    weights = torch.cat(rows) if rows else keys.new_zeros(0, prompt)
    return weights[:, :prompt], weights[:, prompt:].sum(dim=-1)
