from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.algorithm.groups import assert_close, mask_of, more_padding, random_focus
from tests.tolerances import FLOAT32, FLOAT64
from vgpo_lite.algorithm.weigh import Weighting, weigh
from vgpo_lite.algorithm.weighting import compensate, reweight, token_weights, trajectory_weights

PAPER = Weighting()
MASK = mask_of([7, 2, 11, 5])
FOCUS = random_focus(5, MASK)
ADVANTAGES = torch.tensor([1.5, -0.5, 0.0, -1.0], dtype=torch.float64)
PLAIN = torch.where(MASK, ADVANTAGES.unsqueeze(-1), 0)
OPTIONS = {"beta": 0.3, "gamma": 0.5, "kappa": 0.2}


def test_weigh_is_the_product_of_advantage_token_weight_and_trajectory_weight():
    w = compensate(FOCUS, MASK, **OPTIONS)
    psi, phi = token_weights(w, MASK), trajectory_weights(w, MASK)
    expected = torch.where(MASK, reweight(ADVANTAGES, psi, phi), 0)
    assert torch.equal(weigh(ADVANTAGES, FOCUS, MASK, weighting=PAPER), expected)


def test_weigh_two_completions():
    # beta 0, so w is the focus. Row 0: 0.2 0.6: what 0 1, psi -1/2 1/2; row 1: 0.4: psi 0. Sums 0.8 and 0.4: z = 1 0,
    # phi = 1/2 -1/2. 2 (1 -+ 1/2)(1 + 1/2) = 1.5 4.5 and -2 (1 - 1/2) = -1
    focus = torch.tensor([[0.2, 0.6], [0.4, float("nan")]])
    actual = weigh(torch.tensor([2.0, -2.0]), focus, mask_of([2, 1]), weighting=replace(PAPER, beta=0.0))
    assert_close(actual, torch.tensor([[1.5, 4.5], [-1.0, 0.0]]), FLOAT32)


@pytest.mark.parametrize("weighting", ["paper", "released"])
def test_without_an_image_or_as_grpo_or_with_both_switches_off_weights_are_exactly_one(weighting):
    chosen = replace(PAPER, weighting=weighting)
    off = replace(chosen, token_reweighting=False, trajectory_reweighting=False)
    assert torch.equal(weigh(ADVANTAGES, None, MASK, weighting=chosen), PLAIN)
    assert torch.equal(weigh(ADVANTAGES, FOCUS, MASK, weighting=replace(chosen, advantage="grpo")), PLAIN)
    assert torch.equal(weigh(ADVANTAGES, FOCUS, MASK, weighting=off), PLAIN)


@pytest.mark.parametrize("weighting", ["paper", "released"])
def test_each_switch_leaves_out_its_own_factor_alone(weighting):
    chosen = replace(PAPER, weighting=weighting)
    both = weigh(ADVANTAGES, FOCUS, MASK, weighting=chosen)
    token_only = weigh(ADVANTAGES, FOCUS, MASK, weighting=replace(chosen, trajectory_reweighting=False))
    trajectory_only = weigh(ADVANTAGES, FOCUS, MASK, weighting=replace(chosen, token_reweighting=False))
    # A (1 + psi) * A (1 + phi) = A * A (1 + psi) (1 + phi)
    assert_close(token_only * trajectory_only, PLAIN * both, FLOAT64)
    for row in (0, 1, 3):  # one factor for the whole completion
        assert trajectory_only[row][MASK[row]].unique().numel() == 1
    uncompensated = weigh(ADVANTAGES, FOCUS, MASK, weighting=replace(chosen, compensation=False))
    assert torch.equal(uncompensated, weigh(ADVANTAGES, FOCUS, MASK, weighting=replace(chosen, beta=0.0)))
    assert not torch.equal(uncompensated, both)


def test_sign_positive_leaves_all_other_completions_as_they_are():
    both = weigh(ADVANTAGES, FOCUS, MASK, weighting=PAPER)
    positive = weigh(ADVANTAGES, FOCUS, MASK, weighting=replace(PAPER, sign="positive"))
    assert torch.equal(positive[0], both[0])
    assert torch.equal(positive[1:], PLAIN[1:])
    assert not torch.equal(both[3], PLAIN[3])


def test_every_option_reaches_its_function():
    both = weigh(ADVANTAGES, FOCUS, MASK, weighting=PAPER)
    others = [{"beta": 0.9}, {"gamma": 1.0}, {"kappa": 0.9}, {"schedule": "exponential"}, {"schedule": "step"}]
    others += [{"accumulation": "mean"}, {"weighting": "released"}]
    for option in others:
        assert not torch.allclose(weigh(ADVANTAGES, FOCUS, MASK, weighting=replace(PAPER, **option)), both)


@pytest.mark.parametrize("weighting", ["paper", "released"])
def test_order_and_padding_change_nothing(weighting):
    chosen = replace(PAPER, weighting=weighting)
    expected = weigh(ADVANTAGES, FOCUS, MASK, weighting=chosen)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(weigh(ADVANTAGES[order], FOCUS[order], MASK[order], weighting=chosen), expected[order], FLOAT64)
    wide = torch.nn.functional.pad(MASK, (0, 4))
    actual = weigh(ADVANTAGES, more_padding(FOCUS, by=4), wide, weighting=chosen)
    assert_close(actual, more_padding(expected, by=4, fill=0.0), FLOAT64)


def test_a_lone_completion_keeps_its_token_weights():
    # nothing to compare it with: phi is 0
    actual = weigh(ADVANTAGES[:1], FOCUS[:1], MASK[:1], weighting=PAPER)
    assert torch.equal(
        actual, weigh(ADVANTAGES, FOCUS, MASK, weighting=replace(PAPER, trajectory_reweighting=False))[:1]
    )


def test_the_dtype_is_kept():
    for dtype in (torch.float32, torch.float64):
        for focus in (FOCUS.to(dtype), None):
            assert weigh(ADVANTAGES.to(dtype), focus, MASK, weighting=PAPER).dtype == dtype


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"advantage": "ppo"}, "advantage is 'ppo'; expected one of vgpo, grpo"),
        ({"schedule": "cosine"}, "schedule is 'cosine'; expected one of linear, exponential, step"),
        ({"weighting": "mine"}, "weighting is 'mine'; expected one of paper, released"),
        ({"accumulation": "max"}, "accumulation is 'max'; expected one of sum, mean"),
        ({"sign": "negative"}, "sign is 'negative'; expected one of both, positive"),
        ({"beta": -0.1}, "beta is -0.1; expected a number >= 0"),
        ({"beta": float("nan")}, "beta is nan; expected a number >= 0"),
        ({"gamma": 1.5}, r"gamma is 1.5; expected a share in \[0, 1\]"),
        ({"kappa": float("nan")}, r"kappa is nan; expected a share in \[0, 1\]"),
    ],
)
def test_options_that_mean_nothing_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        Weighting(**option)
