"""How much each token looks at the image, in [0, 1]: cosine similarity (Eq. 3-4) or attention mass.

Similarity reads the last states, attention one layer: the last that sees the whole prompt, which is the last one in
most families. Neither carries a gradient: focus is a constant of the objective.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@torch.no_grad()
def similarity_focus(
    hidden: Float[Tensor, "group token hidden"], image_hidden: Float[Tensor, "image hidden"]
) -> Float[Tensor, "group token"]:
    """How much the state of each token points where the image's states point.

    ::

        mu     = mean of the states at the image tokens      (Eq. 3)
        rho[t] = (cos(h[t], mu) + 1) / 2                     (Eq. 4)

    Args:
        hidden: State after the final norm at each token itself.
        image_hidden: States after the final norm at the prompt's image tokens, at least one.

    Returns:
        rho in [0, 1], in float32 or better; 1/2 where a state or mu is zero. Padding is not masked.

    Raises:
        ValueError: There is no image token.
    """
    if image_hidden.shape[0] == 0:
        raise ValueError("a prompt without image tokens has no focus; expected at least one row in image_hidden")
    accurate = torch.promote_types(hidden.dtype, torch.float32)
    mu = image_hidden.to(accurate).mean(dim=0)
    cosine = torch.cosine_similarity(hidden.to(accurate), mu, dim=-1)
    return ((cosine + 1) / 2).clamp(0, 1)


@torch.no_grad()
def attention_focus(
    query: Float[Tensor, "group head token dim"],
    prompt_key: Float[Tensor, "kv_head prompt dim"],
    own_key: Float[Tensor, "group kv_head token dim"],
    image_mask: Bool[Tensor, " prompt"],
    *,
    scale: float,
    chunk_size: int,
) -> Float[Tensor, "group token"]:
    """The attention mass that the query which emitted each token puts on the image, averaged over the heads.

    Queries and keys are those of one layer after rotary embedding. `query[:, :, t]` is the query that *emitted* token
    t: it stands one position before it. Query 0 stands at the prompt's last position and sees the whole prompt; query
    t > 0 stands at token t - 1 and sees the prompt and the completion's own keys 0 .. t-1, where `own_key[:, :, j]` is
    the key of token j. The key of the last token is never seen. Head h reads key head h // (heads / key heads)::

        p[h, t] = softmax over the prompt and own keys j < t of (scale q[h, t] . k)
        rho[t]  = mean over h of the sum of p[h, t] over the image tokens

    Only `chunk_size` tokens have their attention weights in memory at one time.

    Args:
        query: Queries, shifted as said. Padding is not masked; that of a completion never reaches its tokens.
        prompt_key: Keys of the prompt that the group shares.
        own_key: Keys of each completion's tokens.
        image_mask: True at the prompt's image tokens.
        scale: The layer's factor on q . k, as a rule 1 / sqrt(dim).
        chunk_size: Tokens per chunk, >= 1; it changes memory, not the result.

    Returns:
        rho in [0, 1], in float32 or better.

    Raises:
        ValueError: The heads are no multiple of the key heads, or `chunk_size` is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1")
    tokens = query.shape[2]
    place = torch.arange(tokens, device=query.device)
    chunks = []
    for start in range(0, tokens, chunk_size):
        stop = min(start + chunk_size, tokens)
        is_seen = place[:stop] < place[start:stop, None]
        chunks.append(
            _image_mass(query[:, :, start:stop], prompt_key, own_key[:, :, :stop], image_mask, is_seen, scale)
        )
    return torch.cat(chunks, dim=-1) if chunks else query.new_zeros(query.shape[0], 0)


@torch.no_grad()
def next_token_attention_focus(
    query: Float[Tensor, "group head dim"],
    prompt_key: Float[Tensor, "kv_head prompt dim"],
    own_key: Float[Tensor, "group kv_head seen dim"],
    image_mask: Bool[Tensor, " prompt"],
    *,
    scale: float,
) -> Float[Tensor, " group"]:
    """`attention_focus` of the one token that each row is about to emit, while decoding.

    Args:
        query: The query at each row's newest token; at the prompt's last position before the first one.
        prompt_key: Keys of the prompt that the rows share.
        own_key: Keys of the tokens each row has emitted so far, all of them seen; none before the first.
        image_mask: True at the prompt's image tokens.
        scale: The layer's factor on q . k.

    Returns:
        rho in [0, 1] of the token that these queries emit, in float32 or better.
    """
    is_seen = torch.ones(1, own_key.shape[2], dtype=torch.bool, device=query.device)
    return _image_mass(query.unsqueeze(2), prompt_key, own_key, image_mask, is_seen, scale).squeeze(-1)


def _image_mass(
    query: Float[Tensor, "group head token dim"],
    prompt_key: Float[Tensor, "kv_head prompt dim"],
    own_key: Float[Tensor, "group kv_head own dim"],
    image_mask: Bool[Tensor, " prompt"],
    is_seen: Bool[Tensor, "token own"],
    scale: float,
) -> Float[Tensor, "group token"]:
    """Softmax mass on the image, mean over heads. The scores are turned into weights in place: one copy of each exists.

    Axes: k key head, r query heads that share it, g row of the group, t token, p prompt, j own, d dim.
    """
    heads, key_heads = query.shape[1], prompt_key.shape[0]
    if heads % key_heads:
        raise ValueError(f"{heads} query heads cannot share {key_heads} key heads evenly")
    accurate = torch.promote_types(query.dtype, torch.float32)
    queries = query.to(accurate).unflatten(1, (key_heads, heads // key_heads)).movedim(1, 0) * scale
    prompt = torch.einsum("kgrtd,kpd->kgrtp", queries, prompt_key.to(accurate))
    own = torch.einsum("kgrtd,gkjd->kgrtj", queries, own_key.to(accurate)).masked_fill_(~is_seen, -torch.inf)
    largest = prompt.amax(dim=-1, keepdim=True)
    if own_key.shape[2] > 0:
        largest = torch.maximum(largest, own.amax(dim=-1, keepdim=True))
    prompt.sub_(largest).exp_()
    own.sub_(largest).exp_()
    on_image = prompt @ image_mask.to(accurate)
    mass = on_image / (prompt.sum(dim=-1) + own.sum(dim=-1))
    return mass.mean(dim=(0, 2)).clamp(max=1)
