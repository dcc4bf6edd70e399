"""Attention in two halves and its merging: against plain softmax in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vgpo_lite.engine import kernels
from vgpo_lite.engine.attend import causal_attention, completion_attention
from vgpo_lite.engine.kernels import FlashOnCpu, PlainKernel, kernel_for
from vgpo_lite.engine.layout import Layout

LAYOUT = Layout(prompt_length=150, lengths=(3, 3, 7, 1, 5))
HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 8, 0.3


def draw(heads: int, tokens: int, *, seed: int, dtype=torch.float64) -> torch.Tensor:
    """Tokens before heads in memory, as a model's projections leave them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, tokens, heads, SIZE, generator=generator, dtype=torch.float64).to(dtype)
    return values.transpose(1, 2).requires_grad_()


SHARED = LAYOUT.shared_length


def row(dtype=torch.float64) -> tuple[torch.Tensor, ...]:
    return tuple(
        draw(heads, LAYOUT.row_length, seed=seed, dtype=dtype) for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS))
    )


def seen_by_completions() -> torch.Tensor:
    """[flat, row]: which key each completion token sees, written out."""
    owner = torch.repeat_interleave(torch.arange(5), torch.tensor(LAYOUT.lengths))
    place = torch.arange(LAYOUT.token_count)
    own = (owner[:, None] == owner) & (place[:, None] >= place)
    return torch.cat([torch.ones(LAYOUT.token_count, SHARED, dtype=torch.bool), own], dim=1)


def by_mask(query, key, value) -> torch.Tensor:
    """Completions by one dense mask."""
    key, value = (tensor.repeat_interleave(HEADS // KV_HEADS, dim=1) for tensor in (key, value))
    own = query[:, :, SHARED:]
    return scaled_dot_product_attention(own, key, value, attn_mask=seen_by_completions(), scale=SCALE)


def by_parts(query, key, value) -> torch.Tensor:
    start = SHARED
    prompt, own = (key[:, :, :start], value[:, :, :start]), (key[:, :, start:], value[:, :, start:])
    return completion_attention(query[:, :, start:], prompt, own, LAYOUT.blocks, scale=SCALE)


@pytest.mark.parametrize("trusted", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_completions_attend_the_prompt_and_themselves(monkeypatch, trusted, dtype):
    if not trusted:
        monkeypatch.setattr("vgpo_lite.engine.attend.kernel_for", lambda query: PlainKernel())
    expected, inputs = by_mask(*row()), row(dtype)
    found = by_parts(*inputs)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    gradient = draw(HEADS, LAYOUT.token_count, seed=9).detach()
    wanted = torch.autograd.grad(by_mask(*(exact := row())), exact, gradient)
    for own, right in zip(torch.autograd.grad(found, inputs, gradient.to(dtype)), wanted, strict=True):
        torch.testing.assert_close(own.double(), right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prompt_is_causal(dtype):
    inputs, exact = row(dtype), row()
    key, value = (tensor.repeat_interleave(HEADS // KV_HEADS, dim=1) for tensor in exact[1:])
    expected = scaled_dot_product_attention(exact[0], key, value, is_causal=True, scale=SCALE)
    found = causal_attention(*inputs, scale=SCALE)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    gradient = draw(HEADS, LAYOUT.row_length, seed=9).detach()
    wanted = torch.autograd.grad(expected, exact, gradient)
    for own, right in zip(torch.autograd.grad(found, inputs, gradient.to(dtype)), wanted, strict=True):
        torch.testing.assert_close(own.double(), right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fused_kernel_of_this_machine_is_trusted(dtype):
    assert isinstance(kernel_for(torch.zeros(1, 1, 1, 16, dtype=dtype)), FlashOnCpu)


class _ForgetsTheMergedSum(FlashOnCpu):
    """A kernel whose backward normalises over its own keys: exact alone, wrong as a part."""

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale):
        _, own_sum = self.forward(*inputs, causal=causal, scale=scale)
        return super().backward(inputs, output, own_sum, gradient, causal=causal, scale=scale)


class _Absent(FlashOnCpu):
    def forward(self, query, key, value, *, causal, scale):
        raise NotImplementedError("not for this card")


def test_a_kernel_that_is_wrong_or_absent_is_not_used(monkeypatch):
    monkeypatch.setattr(kernels, "CANDIDATES", {"cpu": (_Absent(), _ForgetsTheMergedSum())})
    kernels._trusted.cache_clear()
    assert isinstance(kernel_for(torch.zeros(1, 1, 1, 16)), PlainKernel)
    kernels._trusted.cache_clear()


def test_a_device_without_fused_kernels_gets_the_plain_one():
    assert isinstance(kernel_for(torch.zeros(1, 1, 1, 16, device="meta")), PlainKernel)


def test_no_score_of_a_whole_completion_against_the_prompt_is_held(monkeypatch):
    monkeypatch.setattr("vgpo_lite.engine.attend.kernel_for", lambda query: PlainKernel())
    monkeypatch.setattr(kernels, "PLAIN_CHUNK", 4)
    torch.testing.assert_close(by_parts(*row()), by_mask(*row()), rtol=0, atol=1e-12)
