"""Chunked log-probabilities against full logits and `log_softmax`, values and gradients."""

from __future__ import annotations

import pytest
import torch

from vgpo_lite.engine.logprobs import token_logprobs

TOKENS, HIDDEN, VOCABULARY = 23, 12, 57


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)
    token_ids = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return states, head, token_ids


def naive(states, head, token_ids, temperature=1.0):
    logits = (states.double() @ head.double().T) / temperature
    return logits.log_softmax(dim=-1).gather(1, token_ids[:, None])[:, 0]


@pytest.mark.parametrize("chunk_size", [1, 7, TOKENS, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_the_naive_ones(chunk_size, temperature):
    states, head, token_ids = problem(torch.float32)
    weights = torch.linspace(-2, 2, TOKENS)
    found = token_logprobs(states, head, token_ids, temperature=temperature, chunk_size=chunk_size)
    exact = states.detach().double().requires_grad_()
    expected = naive(exact, head, token_ids, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=1e-5)


def test_one_token_worked_by_hand():
    # logits 0, ln 3: probabilities 1/4, 3/4.
    # d log p_1 / d state = head_1 - (1/4 head_0 + 3/4 head_1) = (-1/4, 1/4 ln 3).
    log_three = float(torch.log(torch.tensor(3.0)))
    states = torch.tensor([[0.0, 1.0]], requires_grad=True)
    head = torch.tensor([[1.0, 0.0], [0.0, log_three]])
    logprob = token_logprobs(states, head, torch.tensor([1]))
    logprob.sum().backward()
    torch.testing.assert_close(logprob, torch.tensor([0.75]).log())
    torch.testing.assert_close(states.grad, torch.tensor([[-0.25, 0.25 * log_three]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_heads_give_float32_values_and_sixteen_bit_gradients(dtype):
    states, head, token_ids = problem(dtype)
    found = token_logprobs(states, head, token_ids, chunk_size=5)
    assert found.dtype == torch.float32
    exact = states.detach().double().requires_grad_()
    expected = naive(exact, head, token_ids)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.1)
    found.sum().backward()
    expected.sum().backward()
    assert states.grad.dtype == dtype
    torch.testing.assert_close(states.grad.double(), exact.grad, rtol=0.05, atol=0.1)


def test_huge_logits_stay_finite_and_an_impossible_token_is_very_unlikely():
    states = torch.tensor([[1e4]], requires_grad=True)
    logprobs = token_logprobs(states, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    logprobs.sum().backward()
    assert logprobs.item() == -2e4
    assert states.grad.item() == -2.0


def test_no_graph_is_left_where_no_gradient_is_wanted():
    states, head, token_ids = problem()
    with torch.no_grad():
        assert not token_logprobs(states, head, token_ids).requires_grad
    assert not token_logprobs(states.detach(), head, token_ids).requires_grad


@pytest.mark.parametrize(
    ("options", "name"), [({"chunk_size": 0}, "chunk_size"), ({"temperature": 0.0}, "temperature")]
)
def test_impossible_settings_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        token_logprobs(*problem(), **options)
