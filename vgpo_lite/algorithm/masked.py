"""Sums, means and scales along the last axis that never read what lies under the padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

SCALE_FLOOR = 1e-8  # Eq. 7 and 10: keeps the scale of a constant row finite


def zero_padding(values: Float[Tensor, "*row token"], mask: Bool[Tensor, "*row token"]) -> Float[Tensor, "*row token"]:
    """The values with zeros under the padding, whatever lay there; no gradient reaches the padding.

    >>> zero_padding(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
    tensor([1., 0.])
    """
    return torch.where(mask, values, 0)


def masked_sum(values: Float[Tensor, "*row token"], mask: Bool[Tensor, "*row token"]) -> Float[Tensor, "*row"]:
    """Sum over the tokens of each row; 0 for a row without tokens."""
    return zero_padding(values, mask).sum(dim=-1)


def masked_mean(values: Float[Tensor, "*row token"], mask: Bool[Tensor, "*row token"]) -> Float[Tensor, "*row"]:
    """Mean over the tokens of each row; 0 for a row without tokens.

    >>> masked_mean(torch.tensor([[2.0, 4.0, float("nan")]]), torch.tensor([[True, True, False]]))
    tensor([3.])
    """
    return masked_sum(values, mask) / mask.sum(dim=-1).clamp(min=1)


def min_max_scale(
    values: Float[Tensor, "*row token"], mask: Bool[Tensor, "*row token"] | None = None
) -> Float[Tensor, "*row token"]:
    """Scale each row so that its smallest value becomes 0 and its largest (almost) 1.

    ::

        z = (v - min v) / (max v - min v + 1e-8)

    Args:
        values: Anything finite where the mask is True.
        mask: True where a value counts; None: everywhere.

    Returns:
        z in [0, 1); a constant row is exactly 0, and so is the padding.

    >>> min_max_scale(torch.tensor([[3.0, 5.0, 4.0]]))
    tensor([[0.0000, 1.0000, 0.5000]])
    """
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    low = torch.where(mask, values, torch.inf).amin(dim=-1, keepdim=True)
    high = torch.where(mask, values, -torch.inf).amax(dim=-1, keepdim=True)
    return zero_padding((values - low) / (high - low + SCALE_FLOOR), mask)
