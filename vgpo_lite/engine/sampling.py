"""From logits to sampled tokens: what may be drawn, the private noise it is drawn with, and its log-probability.

A token is the first one whose cumulative probability exceeds a uniform number, and that number depends on the seed, the
prompt's place in the run, the row and the token alone. So a completion is the same whatever is decoded beside it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from vgpo_lite.data_types import Sampling


def completion_noise(sampling: Sampling, place: int) -> Float[Tensor, "group token"]:
    """The uniform numbers that decide a prompt's completions.

    Each row has a generator of its own, seeded with a hash of `(seed, place, row)`: more rows or a later limit leave
    the numbers before them as they are, and no global generator is read or moved.

    Args:
        sampling: Gives the seed, the rows that are drawn and the tokens.
        place: Where the prompt stands in the run: the same prompt at another place draws other completions.

    Returns:
        Numbers in [0, 1), float32, on the CPU.

    >>> from vgpo_lite.data_types import Sampling
    >>> few = completion_noise(Sampling(num_generations=2, max_completion_length=3), place=7)
    >>> many = completion_noise(Sampling(num_generations=4, max_completion_length=50), place=7)
    >>> bool((many[:2, :3] == few).all())
    True
    >>> last = completion_noise(Sampling(num_generations=4, max_completion_length=50, rows=range(3, 4)), place=7)
    >>> bool((many[3:] == last).all())
    True
    """
    rows = []
    for row in sampling.drawn_rows:
        digest = hashlib.blake2b(f"{sampling.seed}/{place}/{row}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        rows.append(torch.rand(sampling.max_completion_length, generator=generator))
    return torch.stack(rows)


def keep_top_k(scores: Float[Tensor, "row vocabulary"], top_k: int) -> Float[Tensor, "row vocabulary"]:
    """The scores with -inf below the k-th best of each row; ties with it stay, as in transformers.

    A `top_k` of 0, or beyond the vocabulary, keeps all.
    """
    if not 0 < top_k < scores.shape[-1]:
        return scores
    kth_best = scores.topk(top_k, dim=-1).values[:, -1:]
    return scores.masked_fill(scores < kth_best, float("-inf"))


def keep_top_p(scores: Float[Tensor, "row vocabulary"], top_p: float) -> Float[Tensor, "row vocabulary"]:
    """The scores with -inf outside the nucleus: the fewest best tokens whose mass reaches `top_p`.

    The best token always stays; `top_p` of 1 keeps all. A token is dropped where the mass of it and of all that score
    lower is at most `1 - top_p`, which is how transformers draws the line.
    """
    if top_p >= 1.0:
        return scores
    ascending, order = scores.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, order, dropped), float("-inf"))


def token_at(probabilities: Float[Tensor, "row vocabulary"], uniform: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The first token whose cumulative probability exceeds the uniform number.

    Rounding can make the total miss 1 and a parallel sum fall by an ulp, so the number is scaled to the total and the
    token is looked for among those of positive probability only: the answer is always a token that may be drawn. A row
    that is not finite gives token 0.

    Args:
        probabilities: >= 0; a row need not sum to exactly 1.
        uniform: One number in [0, 1) per row.

    >>> token_at(torch.tensor([[0.0, 0.25, 0.0, 0.75]]).repeat(3, 1), torch.tensor([0.0, 0.25, 0.999999])).tolist()
    [1, 3, 3]
    """
    reached_mass = probabilities.cumsum(dim=-1).masked_fill_(probabilities <= 0, -1.0)
    total = reached_mass.amax(dim=-1)
    threshold = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return (reached_mass > threshold[:, None]).to(torch.uint8).argmax(dim=-1)


def sampled_tokens(
    logits: Float[Tensor, "row vocabulary"],
    uniform: Float[Tensor, " row"],
    suppressed_ids: Int[Tensor, " suppressed"],
    sampling: Sampling,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """One token per row, and the log-probability it trains with.

    Suppression, temperature, top-k and top-p are applied in this order, the order of transformers' `generate`. The
    log-probability is that of `softmax(logits / temperature)` over the whole vocabulary, suppressed ids included,
    because that is what the update computes. Nothing larger than `[row, vocabulary]` is held.

    Args:
        logits: Of the next token, any floating type.
        uniform: One number in [0, 1) per row; unused where decoding is greedy.
        suppressed_ids: Never drawn, such as the ids that stand for image tokens.
        sampling: Temperature (0: the best token, its log-probability at temperature 1), top_k and top_p.

    Returns:
        Token ids, and their log-probabilities in float32.
    """
    greedy = sampling.temperature == 0
    scores = logits.float() / (1.0 if greedy else sampling.temperature)
    log_total = scores.logsumexp(dim=-1)
    scores.index_fill_(-1, suppressed_ids, float("-inf"))
    if greedy:
        tokens = scores.argmax(dim=-1)
    else:
        nucleus = keep_top_p(keep_top_k(scores, sampling.top_k), sampling.top_p)
        tokens = token_at(nucleus.softmax(dim=-1), uniform)
    return tokens, scores.gather(-1, tokens[:, None]).squeeze(-1) - log_total
