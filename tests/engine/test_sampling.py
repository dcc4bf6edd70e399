"""Sampling: equal to transformers' warpers, driven by private noise alone, never an impossible token."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vgpo_lite.data_types import Sampling
from vgpo_lite.engine.sampling import completion_noise, keep_top_k, keep_top_p, sampled_tokens, token_at

NONE = torch.tensor([], dtype=torch.long)
SAMPLING = Sampling(num_generations=5, max_completion_length=40, seed=3)


def random_logits(rows: int, vocabulary: int, *, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def random_uniform(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_k", [0, 1, 7, 96, 97, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-6])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_what_may_be_drawn_equals_transformers_warpers(top_k, top_p, temperature):
    logits = random_logits(6, 97)
    logits[2, 5:9] = logits[2, 4]  # ties
    expected = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1.0 else logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(keep_top_p(keep_top_k(logits / temperature, top_k), top_p), expected)


def test_the_nucleus_ends_where_its_mass_is_reached_exactly():
    # Shares 1/2, 1/4, 1/8, 1/8: the best two hold 3/4, so a nucleus of 3/4 needs no third.
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log2() * torch.tensor(2.0).log()
    assert keep_top_p(scores, 0.75).isfinite().tolist() == [[True, True, False, False]]
    assert torch.equal(keep_top_p(scores, 0.75), TopPLogitsWarper(0.75)(None, scores))


def test_a_token_is_the_first_whose_cumulative_probability_exceeds_the_number():
    probabilities = random_logits(50, 31).softmax(-1)
    uniform = random_uniform(50)
    expected = []
    for row, number in zip(probabilities.double(), uniform.double(), strict=True):
        mass = 0.0
        for token, share in enumerate(row / row.sum()):
            mass += share.item()
            if mass > number:
                expected.append(token)
                break
    assert token_at(probabilities, uniform).tolist() == expected


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("total", [1e-30, 0.5, 0.999999, 1.0, 1.000001, 7.0])
def test_rounding_never_draws_an_impossible_token_nor_leaves_the_vocabulary(number, total, device):
    generator = torch.Generator().manual_seed(4)
    probabilities = torch.rand(64, 5000, generator=generator)
    probabilities *= torch.rand(64, 5000, generator=generator) < 0.01
    probabilities[:, -7:] = 0
    probabilities[:, :3] = 0
    probabilities *= total / probabilities.sum(-1, keepdim=True)
    tokens = token_at(probabilities.to(device), torch.full((64,), number, device=device)).cpu()
    assert (probabilities.gather(1, tokens[:, None]) > 0).all()
    possible = (probabilities > 0).long()
    if number == 0.0:
        assert torch.equal(tokens, possible.argmax(-1))
    if number > 0.9:
        last = possible.shape[1] - 1 - possible.flip(-1).argmax(-1)
        left = torch.stack([row[token + 1 :].sum() for row, token in zip(probabilities, tokens, strict=True)])
        assert ((tokens == last) | (left < 1e-5 * total)).all()


def test_draws_follow_the_distribution():
    # 40,000 draws of five tokens: the standard error of a share p is sqrt(p (1 - p) / 40,000) <= 0.0025.
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5]])
    rows = 40_000
    tokens, _ = sampled_tokens(logits.expand(rows, -1), random_uniform(rows), NONE, SAMPLING)
    shares = torch.bincount(tokens, minlength=5) / rows
    assert (shares - logits.softmax(-1)[0]).abs().max() < 4 * 0.0025


@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0, 3.0])
def test_suppressed_ids_are_never_drawn_but_count_in_the_log_probability(temperature):
    sampling = Sampling(num_generations=1, max_completion_length=1, temperature=temperature, top_p=0.9, top_k=20)
    logits = random_logits(300, 40)
    suppressed = torch.tensor([3, 17])
    logits[:, suppressed] += 8  # they would be drawn nearly always
    before = logits.clone()
    tokens, logprobs = sampled_tokens(logits, random_uniform(300), suppressed, sampling)
    assert not torch.isin(tokens, suppressed).any()
    expected = (logits / (temperature or 1.0)).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, expected)
    assert torch.equal(logits, before)


def test_temperature_zero_is_the_best_allowed_token():
    sampling = Sampling(num_generations=1, max_completion_length=1, temperature=0.0)
    logits = torch.tensor([[1.0, 5.0, 4.0], [9.0, 5.0, 4.0]])
    tokens, _ = sampled_tokens(logits, torch.rand(2), torch.tensor([1]), sampling)
    assert tokens.tolist() == [2, 0]


def test_log_probabilities_are_float32_for_half_precision_logits():
    logits = random_logits(4, 100).bfloat16()
    tokens, logprobs = sampled_tokens(logits, random_uniform(4), NONE, SAMPLING)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, logits.float().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1))


def test_a_row_that_is_not_finite_still_gives_a_token_and_shows_it():
    logits = random_logits(2, 10)
    logits[1, 4] = float("nan")
    tokens, logprobs = sampled_tokens(logits, random_uniform(2), NONE, SAMPLING)
    assert 0 <= tokens[1] < 10
    assert logprobs.isfinite().tolist() == [True, False]


def test_noise_depends_on_seed_place_row_and_token_alone():
    noise = completion_noise(SAMPLING, place=11)
    assert torch.equal(noise, completion_noise(SAMPLING, place=11))
    wider = Sampling(num_generations=9, max_completion_length=333, seed=3, temperature=0.5, top_k=4)
    assert torch.equal(noise, completion_noise(wider, place=11)[:5, :40])
    numbers = [noise, completion_noise(SAMPLING, place=12)]
    numbers.append(completion_noise(Sampling(num_generations=5, max_completion_length=40, seed=4), place=11))
    rows = torch.cat(numbers)
    assert len({tuple(row.tolist()) for row in rows}) == 15
    assert ((rows >= 0) & (rows < 1)).all()


def test_noise_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = completion_noise(SAMPLING, place=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(completion_noise(SAMPLING, place=0), first)


def test_noise_is_the_same_on_every_machine():
    # Fixed numbers: a run that resumes elsewhere must draw what it would have drawn here.
    noise = completion_noise(Sampling(num_generations=2, max_completion_length=2, seed=5), place=9)
    torch.testing.assert_close(noise, torch.tensor([[0.538326, 0.663332], [0.623409, 0.753632]]), atol=1e-6, rtol=0)
