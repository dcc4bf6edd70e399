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
)
from tests.tolerances import FLOAT32, FLOAT64
from vgpo_lite.algorithm.released import released_compensate, released_token_weights, released_trajectory_weights

NAN = float("nan")


def compensated_by_hand(rho: list[float], *, beta: float, gamma: float, kappa: float, schedule: str) -> list[float]:
    length = len(rho)
    first = math.floor(round(gamma * length, 9))
    tail = rho[first:]
    gated = max(1, math.floor(round(kappa * len(tail), 9)))
    threshold = sorted(tail, reverse=True)[gated - 1] if tail else math.inf
    w = []
    for index, focus in enumerate(rho):
        u = index / (length - 1) if length > 1 else 0.0
        boost = {"linear": u, "exponential": u * u, "step": 1.0 if index >= length // 2 else 0.0}[schedule]
        if schedule == "step" and length == 1:
            boost = 0.0
        w.append(focus * (1 + beta * boost) if index >= first and focus >= threshold else focus)
    return w


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_a_group, seed=seeds, gamma=shares, kappa=shares)
@pytest.mark.parametrize("schedule", ["linear", "exponential", "step"])
def test_released_compensation_equals_its_description_token_by_token(lengths, seed, gamma, kappa, schedule):
    mask = mask_of(lengths)
    focus = random_focus(seed, mask, levels=5)
    options = {"beta": 0.7, "gamma": gamma, "kappa": kappa, "schedule": schedule}
    expected = [compensated_by_hand(row, **options) for row in rows_of(focus, mask)]
    padded = torch.tensor([row + [0.0] * (mask.shape[1] - len(row)) for row in expected], dtype=torch.float64)
    assert_close(released_compensate(focus, mask, **options), padded, FLOAT64)


def test_released_compensation_of_five_tokens():
    # gamma 0.25: the tail starts at index floor(1.25) = 1, so it holds 0.2 0.8 0.1 0.6; kappa 0.5 of 4 tokens gates
    # 0.8 at position 2/4 and 0.6 at 4/4: 0.8 (1 + 0.3 * 0.5) = 0.92 and 0.6 * 1.3 = 0.78. The paper's tail of the last
    # quarter would start at index floor(3.75) = 3
    focus = torch.tensor([[0.9, 0.2, 0.8, 0.1, 0.6, NAN]], dtype=torch.float64)
    actual = released_compensate(focus, mask_of([5], width=6), beta=0.3, gamma=0.25, kappa=0.5)
    assert_close(actual, torch.tensor([[0.9, 0.2, 0.92, 0.1, 0.78, 0.0]]), FLOAT32)


def test_released_token_factors_are_cut_at_a_tenth():
    # one low token among ninety-nine high ones: what = 0 and 1, mean 0.99: 1 - 0.99 = 0.01, cut to 0.1; the others are
    # 1 + 0.01
    w = torch.ones(1, 100, dtype=torch.float64)
    w[0, 0] = 0.0
    factor = 1 + released_token_weights(w, mask_of([100]))
    assert_close(factor[0, :2], torch.tensor([0.1, 1.01]), FLOAT32)


def test_released_trajectory_factors_gather_scaled_focus_and_are_cut_at_nine_tenths():
    # what: 0 1 0.5 (sum 1.5) | 0 1 (sum 1) | 1 0 1 1 (sum 3): z = 0.25, 0, 1, mean 5/12: phi = -1/6, -5/12, 7/12, and
    # both negative ones are cut to -0.1. Gathering w itself would put the second, 0 + 90, first
    w = torch.tensor([[1.0, 3.0, 2.0, NAN], [0.0, 90.0, NAN, NAN], [4.0, 2.0, 4.0, 4.0]], dtype=torch.float64)
    phi = released_trajectory_weights(w, mask_of([3, 2, 4]))
    assert_close(phi, torch.tensor([-0.1, -0.1, 7 / 12]), FLOAT32)


def test_released_weights_ignore_padding_and_the_order_of_rows():
    mask = mask_of([7, 2, 11])
    focus = random_focus(4, mask)
    order = torch.tensor([2, 0, 1])
    options = {"beta": 0.3, "gamma": 0.4, "kappa": 0.3}
    w = released_compensate(focus, mask, **options)
    wide = torch.nn.functional.pad(mask, (0, 3))
    assert torch.equal(released_compensate(more_padding(focus, by=3), wide, **options)[:, :11], w)
    assert torch.equal(released_compensate(focus[order], mask[order], **options), w[order])
    assert_close(released_token_weights(w[order], mask[order]), released_token_weights(w, mask)[order], FLOAT64)
    assert_close(
        released_trajectory_weights(w[order], mask[order]), released_trajectory_weights(w, mask)[order], FLOAT64
    )
    assert released_token_weights(w, mask)[~mask].eq(0).all()
