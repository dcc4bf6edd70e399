"""Attention in two halves and its merging: against plain softmax in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vgpo_lite.engine import kernels
from vgpo_lite.engine.attend import completion_attention, prompt_attention
from vgpo_lite.engine.kernels import EfficientOnCuda, FlashOnCpu, PlainKernel, kernel_for
from vgpo_lite.engine.layout import Layout
from vgpo_lite.engine.sight import CompletionSight, completion_sight, prompt_sight

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


EVERYTHING = 10_000
WINDOWS = (EVERYTHING, 153, 100, 4, 1)
"""Tokens seen: all; nearly all of the prompt; a part of it; less than a completion; oneself alone."""


def seen_by_completions(window: int) -> torch.Tensor:
    """[flat, row]: which key each completion token sees, by a loop."""
    mask = torch.zeros(LAYOUT.token_count, LAYOUT.row_length, dtype=torch.bool)
    start = 0
    for length in LAYOUT.lengths:
        for place in range(length):
            for key in range(SHARED):
                mask[start + place, key] = SHARED + place - key < window
            for key in range(place + 1):
                mask[start + place, SHARED + start + key] = place - key < window
        start += length
    return mask


def by_mask(query, key, value, window=EVERYTHING) -> torch.Tensor:
    """Completions by one dense mask."""
    key, value = (tensor.repeat_interleave(HEADS // KV_HEADS, dim=1) for tensor in (key, value))
    own = query[:, :, SHARED:]
    return scaled_dot_product_attention(own, key, value, attn_mask=seen_by_completions(window), scale=SCALE)


def by_parts(query, key, value, window=EVERYTHING) -> torch.Tensor:
    start = SHARED
    prompt, own = (key[:, :, :start], value[:, :, :start]), (key[:, :, start:], value[:, :, start:])
    sight = completion_sight(LAYOUT, window=window, device=torch.device("cpu"))
    return completion_attention(query[:, :, start:], prompt, own, LAYOUT.blocks, sight, scale=SCALE)


def assert_same_gradients(found, expected, inputs, exact, *, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    gradient = draw(HEADS, expected.shape[2], seed=9).detach()
    wanted = torch.autograd.grad(expected, exact, gradient)
    for own, right in zip(torch.autograd.grad(found, inputs, gradient.to(found.dtype)), wanted, strict=True):
        torch.testing.assert_close(own.double(), right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("trusted", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_completions_attend_the_prompt_and_themselves(monkeypatch, trusted, dtype, window):
    if not trusted:
        monkeypatch.setattr("vgpo_lite.engine.attend.kernel_for", lambda query, *, masked: PlainKernel())
    inputs, exact = row(dtype), row()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_same_gradients(by_parts(*inputs, window), by_mask(*exact, window), inputs, exact, tolerance=tolerance)


def test_what_hides_nothing_is_no_mask():
    cpu = torch.device("cpu")
    assert completion_sight(LAYOUT, window=None, device=cpu) == CompletionSight(None, None)
    assert completion_sight(LAYOUT, window=SHARED + 7, device=cpu) == CompletionSight(None, None)
    narrower = completion_sight(LAYOUT, window=SHARED + 6, device=cpu)
    assert narrower.own is None
    assert int((~narrower.prompt).sum()) == 1  # the seventh token of the longest completion, and the prompt's first
    assert prompt_sight(9, window=9, image_blocks=None) is None


def test_keys_that_are_left_out_do_not_move_a_window():
    # Of a prompt of six shared tokens the third and fourth are gone; a window of four shows the first token of a
    # completion tokens 3, 4, 5: of those that are there the last two.
    layout, places = Layout(prompt_length=7, lengths=(2,)), torch.tensor([0, 1, 4, 5])
    sight = completion_sight(layout, window=4, places=places, device=torch.device("cpu"))
    assert sight.prompt.int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


IMAGE_BLOCKS = torch.full((LAYOUT.row_length,), -1)
IMAGE_BLOCKS[5:40], IMAGE_BLOCKS[41:60] = 0, 1


def seen_by_prompt(window: int, *, blocks: bool) -> torch.Tensor:
    """By a loop: what is before, and what is of the same image; neither further than the window."""
    mask = torch.zeros(LAYOUT.row_length, LAYOUT.row_length, dtype=torch.bool)
    for token in range(LAYOUT.row_length):
        for key in range(LAYOUT.row_length):
            same = blocks and int(IMAGE_BLOCKS[token]) == int(IMAGE_BLOCKS[key]) >= 0
            mask[token, key] = (key <= token or same) and token - key < window
    return mask


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("window", [EVERYTHING, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prompt_sees_what_is_before_and_its_images_whole(dtype, window, blocks):
    inputs, exact = row(dtype), row()
    key, value = (tensor.repeat_interleave(HEADS // KV_HEADS, dim=1) for tensor in exact[1:])
    seen = seen_by_prompt(window, blocks=blocks)
    expected = scaled_dot_product_attention(exact[0], key, value, attn_mask=seen, scale=SCALE)
    sight = prompt_sight(LAYOUT.row_length, window=window, image_blocks=IMAGE_BLOCKS if blocks else None)
    assert (sight is None) == (window == EVERYTHING and not blocks)
    found = prompt_attention(*inputs, sight, scale=SCALE)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_same_gradients(found, expected, inputs, exact, tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prompt_is_causal(dtype):
    inputs, exact = row(dtype), row()
    key, value = (tensor.repeat_interleave(HEADS // KV_HEADS, dim=1) for tensor in exact[1:])
    expected = scaled_dot_product_attention(exact[0], key, value, is_causal=True, scale=SCALE)
    found = prompt_attention(*inputs, None, scale=SCALE)
    assert_same_gradients(found, expected, inputs, exact, tolerance=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_the_fused_kernel_of_this_machine_is_trusted(dtype, masked):
    assert isinstance(kernel_for(torch.zeros(1, 1, 1, 16, dtype=dtype), masked=masked), FlashOnCpu)


class _ForgetsTheMergedSum(FlashOnCpu):
    """A kernel whose backward normalises over its own keys: exact alone, wrong as a part."""

    def backward(self, inputs, output, log_sum, gradient, *, causal, scale, mask=None):
        _, own_sum = self.forward(*inputs, causal=causal, scale=scale, mask=mask)
        return super().backward(inputs, output, own_sum, gradient, causal=causal, scale=scale, mask=mask)


class _Absent(FlashOnCpu):
    def forward(self, query, key, value, *, causal, scale, mask=None):
        raise NotImplementedError("not for this card")


class _SeesBehindTheMask(FlashOnCpu):
    """Right without a mask; with one, it looks at everything."""

    def forward(self, query, key, value, *, causal, scale, mask=None):
        return super().forward(query, key, value, causal=causal, scale=scale)


class _NoNumbers(FlashOnCpu):
    def forward(self, query, key, value, *, causal, scale, mask=None):
        output, log_sum = super().forward(query, key, value, causal=causal, scale=scale, mask=mask)
        return output * torch.nan, log_sum


@pytest.mark.gpu
@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_are_trusted_to_the_fused_kernel_of_a_gpu(dtype, head_size):
    query = torch.zeros(1, 1, 1, head_size, dtype=dtype, device="cuda")
    assert isinstance(kernel_for(query, masked=True), EfficientOnCuda)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wrong", [_Absent(), _ForgetsTheMergedSum(), _NoNumbers()])
def test_a_kernel_that_is_wrong_or_absent_is_not_used(monkeypatch, wrong, masked):
    monkeypatch.setattr(kernels, "CANDIDATES", {"cpu": (wrong,)})
    kernels._trusted.cache_clear()
    assert isinstance(kernel_for(torch.zeros(1, 1, 1, 16), masked=masked), PlainKernel)
    kernels._trusted.cache_clear()


def test_a_kernel_may_be_right_without_masks_alone(monkeypatch):
    monkeypatch.setattr(kernels, "CANDIDATES", {"cpu": (_SeesBehindTheMask(), FlashOnCpu())})
    kernels._trusted.cache_clear()
    assert isinstance(kernel_for(torch.zeros(1, 1, 1, 16)), _SeesBehindTheMask)
    assert type(kernel_for(torch.zeros(1, 1, 1, 16), masked=True)) is FlashOnCpu
    kernels._trusted.cache_clear()


def test_a_device_without_fused_kernels_gets_the_plain_one():
    assert isinstance(kernel_for(torch.zeros(1, 1, 1, 16, device="meta")), PlainKernel)


@pytest.mark.parametrize("window", [EVERYTHING, 4])
def test_no_score_of_a_whole_completion_against_the_prompt_is_held(monkeypatch, window):
    monkeypatch.setattr("vgpo_lite.engine.attend.kernel_for", lambda query, *, masked: PlainKernel())
    monkeypatch.setattr(kernels, "PLAIN_CHUNK", 4)
    torch.testing.assert_close(by_parts(*row(), window), by_mask(*row(), window), rtol=0, atol=1e-12)
