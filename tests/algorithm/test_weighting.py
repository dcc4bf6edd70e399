from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from tests.algorithm.groups import (
    assert_close,
    lengths_of_a_group,
    mask_of,
    more_padding,
    random_focus,
    rows_of,
    seeds,
    shares,
    with_nan_padding,
)
from tests.tolerances import FLOAT32, FLOAT64
from vgpo_lite.algorithm.weighting import among_the_top, compensate, reweight, token_weights, trajectory_weights, whole

NAN = float("nan")
SCHEDULES = {"linear": lambda u: u, "exponential": lambda u: u * u, "step": lambda u: 1.0 if u >= 0.5 else 0.0}
PAPER = {"beta": 0.3, "gamma": 0.5, "kappa": 0.2}


def compensated_by_hand(rho: list[float], *, beta: float, gamma: float, kappa: float, schedule: str) -> list[float]:
    """Eq. 5-6 for one completion, token by token."""
    length = len(rho)
    first = math.floor(round((1 - gamma) * length, 9))
    tail = rho[first:]
    gated = max(1, math.floor(round(kappa * len(tail), 9)))
    threshold = sorted(tail, reverse=True)[gated - 1] if tail else math.inf
    w = []
    for index, focus in enumerate(rho):
        gate = 1 if index >= first and focus >= threshold else 0
        w.append(focus * (1 + gate * beta * SCHEDULES[schedule]((index + 1) / length)))
    return w


def scaled_by_hand(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low + 1e-8) for value in values]


def centered_by_hand(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def padded(rows: list[list[float]], width: int) -> torch.Tensor:
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_a_group, seed=seeds, gamma=shares, kappa=shares)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("levels", [0, 3])
def test_compensate_equals_the_equation_token_by_token(lengths, seed, gamma, kappa, schedule, levels):
    mask = mask_of(lengths)
    focus = random_focus(seed, mask, levels=levels)
    settings_ = {"beta": 0.7, "gamma": gamma, "kappa": kappa, "schedule": schedule}
    expected = [compensated_by_hand(row, **settings_) for row in rows_of(focus, mask)]
    assert_close(compensate(focus, mask, **settings_), padded(expected, mask.shape[1]), FLOAT64)


def test_compensate_a_completion_of_ten_tokens():
    # T = 10, gamma 0.5: the tail starts at index floor(0.5 * 10) = 5, so it holds 0.2 0.9 0.4 0.9 0.1; kappa 0.4 of 5
    # tokens is 2: the second largest is 0.9, so both 0.9 are gated, at t = 7 and t = 9. beta 0.5:
    # 0.9 (1 + 0.5 * 0.7) = 1.215 and 0.9 (1 + 0.5 * 0.9) = 1.305
    focus = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.8, 0.2, 0.9, 0.4, 0.9, 0.1, NAN]], dtype=torch.float64)
    mask = mask_of([10], width=11)
    expected = [1.0, 0.5, 0.5, 0.5, 0.8, 0.2, 1.215, 0.4, 1.305, 0.1, 0.0]
    actual = compensate(focus, mask, beta=0.5, gamma=0.5, kappa=0.4)
    assert_close(actual, torch.tensor([expected], dtype=torch.float64), FLOAT64)


def test_compensate_gates_all_ties_but_never_fewer_than_one_token():
    focus = torch.tensor([[0.9, 0.9, 0.4, 0.4, 0.4, 0.1]], dtype=torch.float64)
    mask = mask_of([6])
    # the tail is 0.4 0.4 0.1; kappa 0 still gates the largest, which is there twice, at t = 4 and 5 of 6
    expected = [0.9, 0.9, 0.4, 0.4 * (1 + 4 / 6), 0.4 * (1 + 5 / 6), 0.1]
    actual = compensate(focus, mask, beta=1.0, gamma=0.5, kappa=0.0)
    assert_close(actual, torch.tensor([expected], dtype=torch.float64), FLOAT64)


def test_shares_that_binary_cannot_hold_round_to_the_token_they_mean():
    # (1 - 0.9) * 10 is 0.9999999999999998 in binary: without rounding the tail would start at token 0, which has the
    # largest focus and would take the only gate
    focus = torch.tensor([[0.9, 0.2, 0.5, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
    w = compensate(focus, mask_of([10]), beta=1.0, gamma=0.9, kappa=0.1)
    assert_close(w[0, :3], torch.tensor([0.9, 0.2, 0.5 * 1.3]).double(), FLOAT32)
    # 0.7 * 10 and 0.29 * 100 lie below 7 and 29
    products = torch.tensor([(1 - 0.9) * 10, 0.7 * 10, 0.29 * 100, 2.9999], dtype=torch.float64)
    assert whole(products).tolist() == [1.0, 7.0, 29.0, 2.0]


def test_compensate_with_no_tail_or_no_strength_is_the_focus_itself():
    mask = mask_of([5, 9, 1])
    focus = random_focus(3, mask)
    plain = torch.where(mask, focus, 0)
    assert torch.equal(compensate(focus, mask, beta=0.5, gamma=0.0, kappa=0.5), plain)
    assert torch.equal(compensate(focus, mask, beta=0.0, gamma=0.5, kappa=0.5), plain)


def test_among_the_top_chooses_only_candidates():
    values = torch.tensor([[0.9, 0.1, 0.5, NAN]])
    assert among_the_top(values, torch.tensor([[False, True, True, False]]), share=0.5).tolist() == [
        [False, False, True, False]
    ]
    assert not among_the_top(values, torch.zeros(1, 4, dtype=torch.bool), share=1.0).any()


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_a_group, seed=seeds)
def test_token_weights_equal_the_equation_and_center_each_completion(lengths, seed):
    mask = mask_of(lengths)
    w = random_focus(seed, mask)
    expected = [centered_by_hand(scaled_by_hand(row)) for row in rows_of(w, mask)]
    psi = token_weights(w, mask)
    assert_close(psi, padded(expected, mask.shape[1]), FLOAT64)
    assert_close(psi.sum(dim=-1), torch.zeros(len(lengths)), FLOAT64)


def test_token_weights_of_three_tokens():
    # w = 1 3 2: what = 0 1 0.5, mean 0.5, psi = -0.5 0.5 0 (the 1e-8 moves what by 5e-9)
    psi = token_weights(torch.tensor([[1.0, 3.0, 2.0, NAN]], dtype=torch.float64), mask_of([3], width=4))
    assert_close(psi, torch.tensor([[-0.5, 0.5, 0.0, 0.0]]), FLOAT32)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_a_group, seed=seeds)
@pytest.mark.parametrize("accumulation", ["sum", "mean"])
def test_trajectory_weights_equal_the_equation_and_center_the_group(lengths, seed, accumulation):
    mask = mask_of(lengths)
    w = random_focus(seed, mask)
    gathered = [math.fsum(row) / (len(row) if accumulation == "mean" else 1) for row in rows_of(w, mask)]
    phi = trajectory_weights(w, mask, accumulation=accumulation)
    assert_close(phi, torch.tensor(centered_by_hand(scaled_by_hand(gathered))), FLOAT32)
    assert_close(phi.sum(), torch.tensor(0.0), FLOAT64)


def test_trajectory_weights_of_three_completions():
    # sums 1, 2, 4: z = 0, 1/3, 1, mean 4/9, phi = -4/9, -1/9, 5/9; means 1, 1, 2: z = 0, 0, 1, phi = -1/3, -1/3, 2/3
    w = torch.tensor([[1.0, NAN], [0.5, 1.5], [2.0, 2.0]], dtype=torch.float64)
    mask = mask_of([1, 2, 2])
    assert_close(trajectory_weights(w, mask), torch.tensor([-4 / 9, -1 / 9, 5 / 9]), FLOAT32)
    assert_close(trajectory_weights(w, mask, accumulation="mean"), torch.tensor([-1 / 3, -1 / 3, 2 / 3]), FLOAT32)


def test_a_constant_row_and_a_constant_group_weigh_nothing():
    mask = mask_of([4, 4, 4])
    same = torch.full((3, 4), 0.3, dtype=torch.float64)
    assert token_weights(same, mask).eq(0).all()
    assert trajectory_weights(same, mask).eq(0).all()


def test_reweight_multiplies_both_factors():
    # 2 (1 + 0.5) (1 - 0.25) = 2.25 and -1 (1 - 0.5) (1 + 1) = -1
    psi = torch.tensor([[0.5, 0.0], [-0.5, 0.0]])
    actual = reweight(torch.tensor([2.0, -1.0]), psi, torch.tensor([-0.25, 1.0]))
    assert actual.tolist() == [[2.25, 1.5], [-1.0, -2.0]]


def all_weights(focus: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    w = compensate(focus, mask, **PAPER)
    return [w, token_weights(w, mask), trajectory_weights(w, mask).unsqueeze(-1)]


def test_weights_ignore_what_lies_under_the_padding_and_how_much_there_is():
    mask = mask_of([7, 2, 11])
    focus = random_focus(1, mask)
    wider = [more_padding(focus, by=5), torch.where(mask, focus, 1e30), with_nan_padding(focus, mask)]
    masks = [torch.nn.functional.pad(mask, (0, 5)), mask, mask]
    expected = all_weights(focus, mask)
    for values, kept in zip(wider, masks, strict=True):
        w, psi, phi = all_weights(values, kept)
        assert torch.equal(w[:, :11], expected[0])
        assert_close(psi[:, :11], expected[1], FLOAT64)
        assert_close(phi, expected[2], FLOAT64)
        assert not torch.cat([w, psi], dim=-1)[torch.cat([~kept, ~kept], dim=-1)].any()


def test_weights_follow_the_order_of_rows_and_token_weights_need_no_group():
    mask = mask_of([7, 2, 11, 5])
    focus = random_focus(2, mask)
    order = torch.tensor([2, 0, 3, 1])
    expected = all_weights(focus, mask)
    for actual, whole_group in zip(all_weights(focus[order], mask[order]), expected, strict=True):
        assert_close(actual, whole_group[order], FLOAT64)
    for row in range(4):
        w = compensate(focus[row : row + 1], mask[row : row + 1], **PAPER)
        assert torch.equal(w, expected[0][row : row + 1])
        assert_close(token_weights(w, mask[row : row + 1]), expected[1][row : row + 1], FLOAT64)


def test_the_dtype_is_kept():
    mask = mask_of([7, 2])
    for dtype in (torch.float32, torch.float64):
        assert {weights.dtype for weights in all_weights(random_focus(0, mask).to(dtype), mask)} == {dtype}


def test_what_cannot_be_meant_is_refused():
    mask = mask_of([3, 2])
    focus = random_focus(0, mask)
    with pytest.raises(ValueError, match=r"same shape \[group, token\], got \(2, 3\) and \(2, 2\)"):
        compensate(focus, mask[:, :2], **PAPER)
    with pytest.raises(ValueError, match="schedule is 'cosine'; expected one of linear, exponential, step"):
        compensate(focus, mask, **PAPER, schedule="cosine")
    with pytest.raises(ValueError, match="accumulation is 'max'; expected one of sum, mean"):
        trajectory_weights(focus, mask, accumulation="max")
    with pytest.raises(ValueError, match="at least 2 completions, got 1"):
        trajectory_weights(focus[:1], mask[:1])
