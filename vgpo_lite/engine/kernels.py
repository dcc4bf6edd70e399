"""Attention kernels in two halves: a forward that also tells the log-sum-exp, and the backward that takes it.

Two attentions over different keys can be merged exactly when each tells the log of its softmax's denominator, and the
backward of a part is exact when it is given the merged output and the merged log-sum-exp. Torch's fused kernels tell
and take it, but only below the public function; so each pair here is tried once on a small problem against plain
arithmetic before it is trusted.

Most attention here needs no mask, and gets none: a mask costs memory, and on CUDA only the memory-efficient kernel
takes one. Where a layer sees a window, or an image sees itself in both directions, a mask says which keys each query
sees (`engine.sight`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

PLAIN_CHUNK = 128
"""Queries whose scores exist at one time in the plain kernel."""

TRIAL_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference from plain float32 arithmetic for a kernel to be trusted, values of about 1. Seen on a CPU, head
sizes 16 to 128: 2e-6, 2e-2 and 2e-3; a wrong mask, scale or log-sum-exp differs by more than 0.1."""


TRIAL_TOKENS, TRIAL_KEYS = 40, 197
"""Of a trial; the second with masks: several of a kernel's blocks, and rows that must be aligned whatever their length.
"""

BIAS_ALIGNMENT = 16
"""Numbers a row of what is added to the scores is filled up to, as torch itself does before it calls the kernel."""


class Kernel(Protocol):
    """Attention; heads of keys and values may each serve several heads of queries.

    `causal` asks for `token == context` and hides later keys. `mask` is True where a query sees a key, and goes without
    `causal`; a query that sees none gathers zeros, and the log of its sum is -inf.
    """

    def forward(
        self,
        query: Float[Tensor, "batch head token dim"],
        key: Float[Tensor, "batch kv_head context dim"],
        value: Float[Tensor, "batch kv_head context dim"],
        *,
        causal: bool,
        scale: float,
        mask: Bool[Tensor, "token context"] | None = None,
    ) -> tuple[Float[Tensor, "batch head token dim"], Float[Tensor, "batch head token"]]:
        """What each query gathers, and the natural log of the sum of its exponentials, float32."""
        ...

    def backward(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        output: Float[Tensor, "batch head token dim"],
        log_sum: Float[Tensor, "batch head token"],
        gradient: Float[Tensor, "batch head token dim"],
        *,
        causal: bool,
        scale: float,
        mask: Bool[Tensor, "token context"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, given the output and log-sum-exp over *all* keys, these or more."""
        ...


class PlainKernel:
    """Plain arithmetic, some queries at a time: the reference, and for devices without a fused kernel."""

    def forward(self, query, key, value, *, causal, scale, mask=None):
        key, value = _spread(key, query), _spread(value, query)
        outputs, log_sums = [], []
        for start in range(0, query.shape[2], PLAIN_CHUNK):
            part = slice(start, start + PLAIN_CHUNK)
            scores = _scores(query[:, :, part], key, _sight(part, key, causal=causal, mask=mask), scale)
            log_sums.append(scores.logsumexp(dim=-1))
            outputs.append((scores - log_sums[-1][..., None]).exp().to(value.dtype) @ value)
        return _where_any(mask, torch.cat(outputs, dim=2), torch.cat(log_sums, dim=2))

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale, mask=None):
        query = inputs[0]
        key, value = _spread(inputs[1], query), _spread(inputs[2], query)
        queries, keys, values = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for start in range(0, query.shape[2], PLAIN_CHUNK):
            part = slice(start, start + PLAIN_CHUNK)
            scores = _scores(query[:, :, part], key, _sight(part, key, causal=causal, mask=mask), scale)
            weights = (scores - log_sum[:, :, part, None]).exp()
            values += weights.to(value.dtype).mT @ gradient[:, :, part]
            inner = (gradient[:, :, part] * output[:, :, part]).sum(dim=-1, keepdim=True)
            slopes = (weights * (gradient[:, :, part] @ value.mT - inner) * scale).to(query.dtype)
            queries[:, :, part] = slopes @ key
            keys += slopes.mT @ query[:, :, part]
        return queries, _gathered(keys, inputs[1]), _gathered(values, inputs[2])


class FlashOnCpu:
    """Torch's flash attention for CPUs; knows grouped heads and masks."""

    def forward(self, query, key, value, *, causal, scale, mask=None):
        output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=_added(mask, query), scale=scale
        )
        return _where_any(mask, output, log_sum)

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale, mask=None):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, *inputs, output, log_sum, 0.0, causal, attn_mask=_added(mask, gradient), scale=scale
        )


class FlashOnCuda:
    """Flash attention 2, for 16-bit numbers on compute capability 8.0 and later; knows grouped heads and no mask."""

    def forward(self, query, key, value, *, causal, scale, mask=None):
        _refuse(mask)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[:2]

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale, mask=None):
        _refuse(mask)
        unused = torch.zeros(2, dtype=torch.uint64, device=gradient.device)  # the state of a dropout that is off
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient,
            *inputs,
            output,
            log_sum.contiguous(),
            None,
            None,
            inputs[0].shape[2],
            inputs[1].shape[2],
            0.0,
            causal,
            unused,
            unused[:0],
            scale=scale,
        )


class EfficientOnCuda:
    """Memory-efficient attention, for float32, older cards and masks; heads of keys are repeated for it."""

    def forward(self, query, key, value, *, causal, scale, mask=None):
        output, log_sum, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, _spread(key, query), _spread(value, query), _aligned(mask, query), True, 0.0, causal, scale=scale
        )
        return _where_any(mask, output, log_sum[:, :, : query.shape[2]])

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale, mask=None):
        query, key, value = inputs
        aligned = pad(log_sum, (0, -log_sum.shape[2] % 32), value=float("inf"))  # the kernel reads 32 at a time
        unused = torch.zeros((), dtype=torch.int64, device=gradient.device)  # the state of a dropout that is off
        queries, keys, values, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            gradient,
            query,
            _spread(key, query),
            _spread(value, query),
            _aligned(mask, query),
            output,
            aligned,
            unused,
            unused,
            0.0,
            [True, True, True, False],
            causal,
            scale=scale,
        )
        return queries, _gathered(keys, key), _gathered(values, value)


CANDIDATES: dict[str, tuple[Kernel, ...]] = {"cpu": (FlashOnCpu(),), "cuda": (FlashOnCuda(), EfficientOnCuda())}


def kernel_for(query: Tensor, *, masked: bool = False) -> Kernel:
    """The fastest kernel that was seen to be right for tensors of this device, dtype and head size.

    Args:
        query: The queries it is for.
        masked: Whether it will be given a mask.
    """
    return _trusted(query.device, query.dtype, query.shape[-1], masked)


@cache
def _trusted(device: torch.device, dtype: torch.dtype, head_size: int, masked: bool) -> Kernel:
    for kernel in CANDIDATES.get(device.type, ()):
        try:
            if _error(kernel, device, dtype, head_size, masked) < TRIAL_TOLERANCE.get(dtype, 0.0):
                return kernel
        except (RuntimeError, AttributeError, TypeError):  # not in this torch, or not for this card, dtype or size
            continue
    return PlainKernel()


def _error(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int, masked: bool) -> float:
    """Largest difference from plain float32 arithmetic, forward and backward, with keys beyond those the kernel saw.

    Not a number where the kernel's results are none.
    """
    generator, context = torch.Generator().manual_seed(0), TRIAL_KEYS if masked else TRIAL_TOKENS
    shapes = ((4, TRIAL_TOKENS), (2, context), (2, context), (4, TRIAL_TOKENS))
    drawn = [torch.randn(1, *shape, head_size, generator=generator).to(device, dtype) for shape in shapes]
    mask = torch.rand(TRIAL_TOKENS, context, generator=generator) > 0.5
    mask[0] = False  # a query that sees nothing
    mask[1:8, :-5] = False  # and some that see only what comes last, as behind a window
    mask = mask.to(device)
    errors = []
    for causal, seen in [(False, mask)] if masked else [(True, None), (False, None)]:
        exact = _tried(PlainKernel(), [tensor.float() for tensor in drawn], causal=causal, mask=seen)
        found = _tried(kernel, drawn, causal=causal, mask=seen)
        errors += [(a - b.float()).abs().max() for a, b in zip(exact, found, strict=True)]
    return float(torch.stack(errors).max())


def _tried(kernel: Kernel, drawn: Sequence[Tensor], *, causal: bool, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Everything a kernel gives, merged with one key more, whose score is 0.5 and whose value is 0."""
    query, key, value, gradient = drawn
    how = {"causal": causal, "scale": query.shape[-1] ** -0.5, "mask": mask}
    output, log_sum = kernel.forward(query, key, value, **how)
    merged = torch.logaddexp(log_sum, torch.full_like(log_sum, 0.5))
    joined = (output * (log_sum - merged).exp()[..., None]).to(output.dtype)
    gradients = kernel.backward((query, key, value), joined, merged, gradient, **how)
    return output, log_sum.nan_to_num(nan=float("nan"), neginf=-100.0), *gradients


def _spread(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _gathered(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient.unflatten(1, (like.shape[1], -1)).sum(dim=2)


def _sight(part: slice, key: Tensor, *, causal: bool, mask: Tensor | None) -> Bool[Tensor, "token context"] | None:
    """What some of the queries see; None: everything."""
    if mask is not None:
        return mask[part]
    if not causal:
        return None
    places = torch.arange(key.shape[2], device=key.device)
    return places <= places[part, None]


def _scores(query: Tensor, key: Tensor, sight: Tensor | None, scale: float) -> Tensor:
    scores = (query @ key.mT).to(torch.promote_types(query.dtype, torch.float32)) * scale
    return scores if sight is None else scores.masked_fill(~sight, float("-inf"))


def _where_any(mask: Tensor | None, output: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros and -inf for queries that see nothing: kernels disagree about those."""
    if mask is None:
        return output, log_sum
    blind = ~mask.any(dim=-1)
    return output.masked_fill(blind[:, None], 0.0), log_sum.masked_fill(blind, float("-inf"))


def _added(mask: Tensor | None, like: Tensor) -> Float[Tensor, "token context"] | None:
    """What is added to the scores, if there is a mask."""
    return None if mask is None else _bias(mask, like)


def _bias(mask: Tensor, like: Tensor) -> Float[Tensor, "token context"]:
    """0 where a query sees a key, otherwise -inf."""
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, float("-inf"))


def _aligned(mask: Tensor | None, query: Tensor) -> Float[Tensor, "batch head token context"] | None:
    """The same for all heads, its rows as far apart as the memory-efficient kernel wants them."""
    if mask is None:
        return None
    keys = mask.shape[1]
    return _bias(pad(mask, (0, -keys % BIAS_ALIGNMENT)), query)[:, :keys].expand(*query.shape[:2], -1, -1)


def _refuse(mask: Tensor | None) -> None:
    if mask is not None:
        raise TypeError("this kernel takes no mask")
