"""Rank correlation: whether two measures order the tokens alike, whatever their scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def mean_ranks(values: Float[Tensor, " value"]) -> Float[Tensor, " value"]:
    """The place of each value among all, from 1, float64; equal values share the mean of their places.

    >>> mean_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist()
    [3.5, 1.0, 3.5, 2.0]
    """
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[group]


def rank_correlation(left: Float[Tensor, " value"], right: Float[Tensor, " value"]) -> Float[Tensor, ""]:
    """Spearman's rank correlation, in [-1, 1]; nan where one side is constant or there are fewer than two values.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0]))
    tensor(0.5000, dtype=torch.float64)
    """
    a, b = mean_ranks(left), mean_ranks(right)
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.norm() * b.norm())
