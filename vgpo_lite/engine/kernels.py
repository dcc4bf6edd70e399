"""Attention kernels in two halves: a forward that also tells the log-sum-exp, and the backward that takes it.

Two attentions over different keys can be merged exactly when each tells the log of its softmax's denominator, and the
backward of a part is exact when it is given the merged output and the merged log-sum-exp. Torch's fused kernels tell
and take it, but only below the public function; so each pair here is tried once on a small problem against plain
arithmetic before it is trusted.

No kernel takes a mask: a mask would cost memory, and would send grouped heads on CUDA to the kernel that holds all
scores.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

PLAIN_CHUNK = 128
"""Queries whose scores exist at one time in the plain kernel."""

TRIAL_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference from plain float32 arithmetic for a kernel to be trusted, values of about 1. Seen on a CPU, head
sizes 16 to 128: 2e-6, 2e-2 and 2e-3; a wrong mask, scale or log-sum-exp differs by more than 0.1."""


class Kernel(Protocol):
    """Attention without a mask; heads of keys and values may each serve several heads of queries."""

    def forward(
        self,
        query: Float[Tensor, "batch head token dim"],
        key: Float[Tensor, "batch kv_head context dim"],
        value: Float[Tensor, "batch kv_head context dim"],
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Float[Tensor, "batch head token dim"], Float[Tensor, "batch head token"]]:
        """What each query gathers, and the natural log of the sum of its exponentials, float32.

        `causal` asks for `token == context` and hides later keys.
        """
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, given the output and log-sum-exp over *all* keys, these or more."""
        ...


class PlainKernel:
    """Plain arithmetic, some queries at a time: the reference, and for devices without a fused kernel."""

    def forward(self, query, key, value, *, causal, scale):
        key, value = _spread(key, query), _spread(value, query)
        outputs, log_sums = [], []
        for start in range(0, query.shape[2], PLAIN_CHUNK):
            scores = _scores(query[:, :, start : start + PLAIN_CHUNK], key, start if causal else None, scale)
            log_sums.append(scores.logsumexp(dim=-1))
            outputs.append((scores - log_sums[-1][..., None]).exp().to(value.dtype) @ value)
        return torch.cat(outputs, dim=2), torch.cat(log_sums, dim=2)

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale):
        query = inputs[0]
        key, value = _spread(inputs[1], query), _spread(inputs[2], query)
        queries, keys, values = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for start in range(0, query.shape[2], PLAIN_CHUNK):
            part = slice(start, start + PLAIN_CHUNK)
            scores = _scores(query[:, :, part], key, start if causal else None, scale)
            weights = (scores - log_sum[:, :, part, None]).exp()
            values += weights.to(value.dtype).mT @ gradient[:, :, part]
            inner = (gradient[:, :, part] * output[:, :, part]).sum(dim=-1, keepdim=True)
            slopes = (weights * (gradient[:, :, part] @ value.mT - inner) * scale).to(query.dtype)
            queries[:, :, part] = slopes @ key
            keys += slopes.mT @ query[:, :, part]
        return queries, _gathered(keys, inputs[1]), _gathered(values, inputs[2])


class FlashOnCpu:
    """Torch's flash attention for CPUs; knows grouped heads."""

    def forward(self, query, key, value, *, causal, scale):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, *inputs, output, log_sum, 0.0, causal, scale=scale
        )


class FlashOnCuda:
    """Flash attention 2, for 16-bit numbers on compute capability 8.0 and later; knows grouped heads."""

    def forward(self, query, key, value, *, causal, scale):
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[:2]

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale):
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
    """Memory-efficient attention, for float32 and for older cards; heads of keys are repeated for it."""

    def forward(self, query, key, value, *, causal, scale):
        output, log_sum, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, _spread(key, query), _spread(value, query), None, True, 0.0, causal, scale=scale
        )
        return output, log_sum[:, :, : query.shape[2]]

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale):
        query, key, value = inputs
        aligned = pad(log_sum, (0, -log_sum.shape[2] % 32), value=float("inf"))  # the kernel reads 32 at a time
        unused = torch.zeros((), dtype=torch.int64, device=gradient.device)  # the state of a dropout that is off
        queries, keys, values, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            gradient,
            query,
            _spread(key, query),
            _spread(value, query),
            None,
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


def kernel_for(query: Tensor) -> Kernel:
    """The fastest kernel that was seen to be right for tensors of this device, dtype and head size."""
    return _trusted(query.device, query.dtype, query.shape[-1])


@cache
def _trusted(device: torch.device, dtype: torch.dtype, head_size: int) -> Kernel:
    for kernel in CANDIDATES.get(device.type, ()):
        try:
            if _error(kernel, device, dtype, head_size) < TRIAL_TOLERANCE.get(dtype, 0.0):
                return kernel
        except (RuntimeError, AttributeError, TypeError):  # not in this torch, or not for this card, dtype or size
            continue
    return PlainKernel()


def _error(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int) -> float:
    """Largest difference from plain float32 arithmetic, forward and backward, with keys beyond those the kernel saw."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 40, head_size), (1, 2, 40, head_size), (1, 2, 40, head_size), (1, 4, 40, head_size))
    query, key, value, gradient = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    scale, worst = head_size**-0.5, 0.0
    for causal in (True, False):
        exact = [tensor.float() for tensor in (query, key, value, gradient)]
        output, log_sum = PlainKernel().forward(*exact[:3], causal=causal, scale=scale)
        merged = log_sum + 0.5
        expected = (
            output,
            log_sum,
            *PlainKernel().backward(
                (exact[0], exact[1], exact[2]), output, merged, exact[3], causal=causal, scale=scale
            ),
        )
        own_output, own_log_sum = kernel.forward(query, key, value, causal=causal, scale=scale)
        found = (
            own_output,
            own_log_sum,
            *kernel.backward((query, key, value), output.to(dtype), merged, gradient, causal=causal, scale=scale),
        )
        worst = max(worst, *(float((a - b.float()).abs().max()) for a, b in zip(expected, found, strict=True)))
    return worst


def _spread(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _gathered(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient.unflatten(1, (like.shape[1], -1)).sum(dim=2)


def _scores(query: Tensor, key: Tensor, causal_from: int | None, scale: float) -> Tensor:
    scores = (query @ key.mT).to(torch.promote_types(query.dtype, torch.float32)) * scale
    if causal_from is None:
        return scores
    places = torch.arange(key.shape[2], device=key.device)
    return scores.masked_fill(places > places[causal_from : causal_from + query.shape[2], None], float("-inf"))
