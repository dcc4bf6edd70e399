"""Log-probabilities of tokens from hidden states, some tokens at a time: `[token, vocabulary]` is never held whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def token_logprobs(
    states: Float[Tensor, "token hidden"],
    head: Float[Tensor, "vocabulary hidden"],
    token_ids: Int[Tensor, " token"],
    *,
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> Float[Tensor, " token"]:
    """log p of each token under `softmax(states @ head.T / temperature)`.

    The gradient of one log-probability with respect to its state is one vector, `(head[token] - sum_v p_v head[v]) /
    temperature`, whatever is made of the log-probability later. It is formed while the token's logits are at hand, so
    the backward pass neither keeps logits nor computes them again.

    Args:
        states: Hidden states after the final norm, each the one that emits its token.
        head: Weight of the head, frozen: it receives no gradient.
        token_ids: The tokens that were emitted.
        temperature: Logits are divided by it, > 0.
        chunk_size: Tokens whose logits exist at one time, >= 1; it changes memory, not the result.

    Returns:
        Log-probabilities <= 0, float32.

    Raises:
        ValueError: `chunk_size` is below 1, or the temperature is not positive.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    return _TokenLogprobs.apply(states, head, token_ids, temperature, chunk_size)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def token_entropies(
    states: Float[Tensor, "token hidden"],
    head: Float[Tensor, "vocabulary hidden"],
    *,
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> Float[Tensor, " token"]:
    """Entropy of `softmax(states @ head.T / temperature)` at each state, in nats, float32; arguments as above."""
    entropies = [
        torch.special.entr(((part @ head.mT).float() / temperature).softmax(dim=-1)).sum(dim=-1)
        for part in states.split(chunk_size)
    ]
    return torch.cat(entropies) if entropies else states.new_zeros(0, dtype=torch.float32)


def _chunk(
    states: Float[Tensor, "token hidden"],
    head: Float[Tensor, "vocabulary hidden"],
    targets: Int[Tensor, "token 1"],
    temperature: float,
    wants_slopes: bool,
) -> tuple[Float[Tensor, " token"], Float[Tensor, "token hidden"] | None]:
    """One chunk on its own, so that its logits are gone before the next chunk's come."""
    scores = (states @ head.mT).float()
    if temperature != 1.0:
        scores.div_(temperature)
    chosen = scores.gather(-1, targets)
    largest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    logprobs = (chosen - largest - total.log()).squeeze(-1)
    if not wants_slopes:
        return logprobs, None
    against = weights.div_(total).scatter_add_(-1, targets, torch.full_like(chosen, -1.0))
    return logprobs, (against.to(head.dtype) @ head).div_(-temperature)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, head, token_ids, temperature, chunk_size):
        logprobs = states.new_empty(states.shape[0], dtype=torch.float32)
        slopes = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, states.shape[0], chunk_size):
            part = slice(start, start + chunk_size)
            logprobs[part], slope = _chunk(states[part], head, token_ids[part, None], temperature, slopes is not None)
            if slopes is not None and slope is not None:
                slopes[part] = slope
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return logprobs

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes,) = ctx.saved_tensors
        return (slopes * gradient[:, None]).to(slopes.dtype), None, None, None, None
