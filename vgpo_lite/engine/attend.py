"""Attention of a row that shares its prompt, exact forward and backward, without copies.

The prompt is causal. A completion attends the prompt's keys (all completions at once, as if they were one long query)
and its own (causal, one rectangle of equal lengths at a time); the two are merged by their log-sum-exps::

    keys      prompt        a      b      c
    prompt    [ causal ]
    a         [ all    ] [causal]
    b         [ all    ]        [causal]
    c         [ all    ]               [causal]

Where a layer sees less (a window) or more (an image that sees itself), masks say so: `engine.sight`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vgpo_lite.engine.kernels import kernel_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from vgpo_lite.engine.kernels import Kernel
    from vgpo_lite.engine.layout import Block
    from vgpo_lite.engine.sight import CompletionSight


def prompt_attention(
    query: Float[Tensor, "batch head token dim"],
    key: Float[Tensor, "batch kv_head token dim"],
    value: Float[Tensor, "batch kv_head token dim"],
    sight: Bool[Tensor, "token token"] | None,
    *,
    scale: float,
) -> Float[Tensor, "batch head token dim"]:
    """Each token attends what it sees of its own batch row; where `sight` is None, itself and what is before it."""
    return _Whole.apply(query, key, value, sight, scale)  # pyright: ignore[reportReturnType]


def completion_attention(
    query: Float[Tensor, "1 head flat dim"],
    prompt: tuple[Float[Tensor, "1 kv_head prompt dim"], Float[Tensor, "1 kv_head prompt dim"]],
    own: tuple[Float[Tensor, "1 kv_head flat dim"], Float[Tensor, "1 kv_head flat dim"]],
    blocks: Sequence[Block],
    sight: CompletionSight,
    *,
    scale: float,
) -> Float[Tensor, "1 head flat dim"]:
    """Each completion token attends what it sees of the prompt and of its own completion.

    By default that is the whole prompt, itself and what is before it.

    Args:
        query: Queries of the completion tokens in flat order.
        prompt: Keys and values of the prompt, one copy for all completions.
        own: Keys and values of the completion tokens.
        blocks: How the flat order falls into completions (`Layout.blocks`).
        sight: What is seen less.
        scale: What the products of queries and keys are multiplied by.
    """
    return _Merged.apply(query, *prompt, *own, blocks, sight, scale)  # pyright: ignore[reportReturnType]


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, sight, scale):
        kernel = kernel_for(query, masked=sight is not None)
        output, log_sum = kernel.forward(query, key, value, causal=sight is None, scale=scale, mask=sight)
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.sight, ctx.scale = sight, scale
        return output

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, log_sum = ctx.saved_tensors
        kernel, sight = kernel_for(query, masked=ctx.sight is not None), ctx.sight
        how = {"causal": sight is None, "scale": ctx.scale, "mask": sight}
        return *kernel.backward((query, key, value), output, log_sum, gradient, **how), None, None


class _Merged(torch.autograd.Function):
    """With the merged output and log-sum-exp, each part's backward is exact: its weights are exp(score - log-sum)."""

    @staticmethod
    def forward(ctx, query, prompt_key, prompt_value, own_key, own_value, blocks, sight, scale):
        kernel = kernel_for(query, masked=sight.prompt is not None)
        shared, shared_sum = kernel.forward(
            query, prompt_key, prompt_value, causal=False, scale=scale, mask=sight.prompt
        )
        parts = []
        for block in blocks:
            inputs = (_rectangle(x, block) for x in (query, own_key, own_value))
            kernel, how = _own(query, block, sight)
            parts.append(kernel.forward(*inputs, scale=scale, **how))
        own = _flat([output for output, _ in parts])
        own_sum = _flat([log_sum for _, log_sum in parts])
        share = torch.sigmoid(shared_sum - own_sum)[..., None]
        output = torch.lerp(own.to(share.dtype), shared.to(share.dtype), share).to(query.dtype)
        log_sum = torch.logaddexp(shared_sum, own_sum)
        ctx.save_for_backward(query, prompt_key, prompt_value, own_key, own_value, output, log_sum)
        ctx.blocks, ctx.sight, ctx.scale = blocks, sight, scale
        return output

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, prompt_key, prompt_value, own_key, own_value, output, log_sum = ctx.saved_tensors
        sight, scale = ctx.sight, ctx.scale
        queries, prompt_keys, prompt_values = kernel_for(query, masked=sight.prompt is not None).backward(
            (query, prompt_key, prompt_value), output, log_sum, gradient, causal=False, scale=scale, mask=sight.prompt
        )
        parts = []
        for block in ctx.blocks:
            inputs = (_rectangle(query, block), _rectangle(own_key, block), _rectangle(own_value, block))
            rest = (_rectangle(x, block) for x in (output, log_sum, gradient))
            kernel, how = _own(query, block, sight)
            parts.append(kernel.backward(inputs, *rest, scale=scale, **how))
        own_queries, own_keys, own_values = (_flat(list(gradients)) for gradients in zip(*parts, strict=True))
        return queries + own_queries, prompt_keys, prompt_values, own_keys, own_values, None, None, None


def _own(query: Tensor, block: Block, sight: CompletionSight) -> tuple[Kernel, dict[str, Any]]:
    """How the completions of a block attend themselves: a window may be wider than they are long."""
    mask = None if sight.own is None else sight.own[: block.length, : block.length]
    return kernel_for(query, masked=mask is not None), {"causal": mask is None, "mask": mask}


def _rectangle(flat: Tensor, block: Block) -> Tensor:
    """[1, head, flat, ...] -> [row, head, token, ...], a view."""
    return flat[0, :, block.start : block.stop].unflatten(1, (block.rows, block.length)).transpose(0, 1)


def _flat(rectangles: list[Tensor]) -> Tensor:
    """The way back: [row, head, token, ...] each -> [1, head, flat, ...]."""
    flat = [rectangle.transpose(0, 1).flatten(1, 2) for rectangle in rectangles]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, dim=1))[None]
