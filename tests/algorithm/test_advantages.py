from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.algorithm.groups import assert_close
from tests.tolerances import FLOAT32, FLOAT64
from vgpo_lite.algorithm.advantages import group_advantages


@settings(deadline=None)
@given(rewards=st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_advantages_equal_the_equation(rewards):
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    expected = [(reward - mean) / (std + 1e-4) for reward in rewards]
    actual = group_advantages(torch.tensor(rewards, dtype=torch.float64))
    assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), FLOAT32
    )  # 1e-4 magnifies what cancels in the mean


def test_advantages_of_four_completions():
    # mean 0.25; squares 0.5625 + 3 * 0.0625 = 0.75, over 3: std 0.5; 0.75 / 0.5001 and -0.25 / 0.5001
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64)
    assert_close(group_advantages(rewards), expected / 0.5001, FLOAT64)
    assert_close(group_advantages(rewards, scale="none"), expected, FLOAT64)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_equal_rewards_give_exactly_zero_even_where_their_mean_rounds(scale):
    rewards = torch.full((7,), 0.1)
    assert (rewards - rewards.mean()).ne(0).any()
    assert group_advantages(rewards, scale=scale).eq(0).all()


def test_advantages_follow_the_order_of_rows_and_keep_the_dtype():
    rewards = torch.tensor([0.3, 1.0, 0.0, 0.7], dtype=torch.float64)
    order = torch.tensor([3, 1, 0, 2])
    assert_close(group_advantages(rewards[order]), group_advantages(rewards)[order], FLOAT64)
    assert group_advantages(rewards.float()).dtype == torch.float32
    assert group_advantages(rewards).dtype == torch.float64


def test_a_group_of_one_and_an_unknown_scale_are_refused():
    with pytest.raises(ValueError, match="at least 2 completions, got 1"):
        group_advantages(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="scale is 'batch'; expected std or none"):
        group_advantages(torch.tensor([1.0, 0.0]), scale="batch")
