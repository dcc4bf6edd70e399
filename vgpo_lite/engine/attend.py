"""Attention of a row that shares its prompt, exact forward and backward, without a mask and without copies.

The prompt is causal. A completion attends the prompt's keys (all completions at once, as if they were one long query)
and its own (causal, one rectangle of equal lengths at a time); the two are merged by their log-sum-exps::

    keys      prompt        a      b      c
    prompt    [ causal ]
    a         [ all    ] [causal]
    b         [ all    ]        [causal]
    c         [ all    ]               [causal]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vgpo_lite.engine.kernels import kernel_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.engine.layout import Block


def causal_attention(
    query: Float[Tensor, "batch head token dim"],
    key: Float[Tensor, "batch kv_head token dim"],
    value: Float[Tensor, "batch kv_head token dim"],
    *,
    scale: float,
) -> Float[Tensor, "batch head token dim"]:
    """Each token attends itself and what is before it in its own batch row."""
    return _Causal.apply(query, key, value, scale)  # pyright: ignore[reportReturnType]


def completion_attention(
    query: Float[Tensor, "1 head flat dim"],
    prompt: tuple[Float[Tensor, "1 kv_head prompt dim"], Float[Tensor, "1 kv_head prompt dim"]],
    own: tuple[Float[Tensor, "1 kv_head flat dim"], Float[Tensor, "1 kv_head flat dim"]],
    blocks: Sequence[Block],
    *,
    scale: float,
) -> Float[Tensor, "1 head flat dim"]:
    """Each completion token attends the whole prompt, itself and what is before it in its own completion.

    Args:
        query: Queries of the completion tokens in flat order.
        prompt: Keys and values of the prompt, one copy for all completions.
        own: Keys and values of the completion tokens.
        blocks: How the flat order falls into completions (`Layout.blocks`).
        scale: What the products of queries and keys are multiplied by.
    """
    return _Merged.apply(query, *prompt, *own, blocks, scale)  # pyright: ignore[reportReturnType]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, scale):
        output, log_sum = kernel_for(query).forward(query, key, value, causal=True, scale=scale)
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, log_sum = ctx.saved_tensors
        gradients = kernel_for(query).backward(
            (query, key, value), output, log_sum, gradient, causal=True, scale=ctx.scale
        )
        return *gradients, None


class _Merged(torch.autograd.Function):
    """With the merged output and log-sum-exp, each part's backward is exact: its weights are exp(score - log-sum)."""

    @staticmethod
    def forward(ctx, query, prompt_key, prompt_value, own_key, own_value, blocks, scale):
        kernel = kernel_for(query)
        shared, shared_sum = kernel.forward(query, prompt_key, prompt_value, causal=False, scale=scale)
        parts = [
            kernel.forward(*(_rectangle(x, block) for x in (query, own_key, own_value)), causal=True, scale=scale)
            for block in blocks
        ]
        own = _flat([output for output, _ in parts])
        own_sum = _flat([log_sum for _, log_sum in parts])
        share = torch.sigmoid(shared_sum - own_sum)[..., None]
        output = torch.lerp(own.to(share.dtype), shared.to(share.dtype), share).to(query.dtype)
        log_sum = torch.logaddexp(shared_sum, own_sum)
        ctx.save_for_backward(query, prompt_key, prompt_value, own_key, own_value, output, log_sum)
        ctx.blocks, ctx.scale = blocks, scale
        return output

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, prompt_key, prompt_value, own_key, own_value, output, log_sum = ctx.saved_tensors
        kernel = kernel_for(query)
        queries, prompt_keys, prompt_values = kernel.backward(
            (query, prompt_key, prompt_value), output, log_sum, gradient, causal=False, scale=ctx.scale
        )
        parts = []
        for block in ctx.blocks:
            inputs = (_rectangle(query, block), _rectangle(own_key, block), _rectangle(own_value, block))
            rest = (_rectangle(x, block) for x in (output, log_sum, gradient))
            parts.append(kernel.backward(inputs, *rest, causal=True, scale=ctx.scale))
        own_queries, own_keys, own_values = (_flat(list(gradients)) for gradients in zip(*parts, strict=True))
        return queries + own_queries, prompt_keys, prompt_values, own_keys, own_values, None, None


def _rectangle(flat: Tensor, block: Block) -> Tensor:
    """[1, head, flat, ...] -> [row, head, token, ...], a view."""
    return flat[0, :, block.start : block.stop].unflatten(1, (block.rows, block.length)).transpose(0, 1)


def _flat(rectangles: list[Tensor]) -> Tensor:
    """The way back: [row, head, token, ...] each -> [1, head, flat, ...]."""
    flat = [rectangle.transpose(0, 1).flatten(1, 2) for rectangle in rectangles]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, dim=1))[None]
