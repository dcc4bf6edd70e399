"""Group-relative advantages: how much better a completion is than the others sampled from the same prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RewardScale = Literal["std", "none"]

STD_FLOOR = 1e-4  # what TRL 1.15 adds to the standard deviation


def group_advantages(rewards: Float[Tensor, " group"], *, scale: RewardScale = "std") -> Float[Tensor, " group"]:
    """Center the rewards of one group, and divide by their spread where asked.

    ::

        A[i] = (r[i] - mean r) / (std r + 1e-4)

    Args:
        rewards: What each completion earned, finite; one whole group.
        scale: `std` divides by the unbiased standard deviation, as TRL does; `none` does not (Dr. GRPO).

    Returns:
        A, zero mean over the group; exactly zero where all rewards are equal.

    Raises:
        ValueError: The group holds fewer than two completions, or the scale is unknown.

    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), scale="none")
    tensor([ 0.5000, -0.5000, -0.5000,  0.5000])
    """
    if rewards.shape[0] < 2:
        raise ValueError(f"a group needs at least 2 completions, got {rewards.shape[0]}")
    if scale not in ("std", "none"):
        raise ValueError(f"scale is {scale!r}; expected std or none")
    centered = rewards - rewards.mean()
    advantages = centered / (rewards.std() + STD_FLOOR) if scale == "std" else centered
    differs = (rewards != rewards[0]).any()  # the mean of equal numbers can be off by a rounding
    return torch.where(differs, advantages, 0)
