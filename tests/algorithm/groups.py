"""Random groups of completions: lengths, masks, and values with nan under the padding."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

lengths_of_a_group = st.lists(st.integers(1, 23), min_size=2, max_size=6)
seeds = st.integers(0, 2**31 - 1)
shares = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.9, 1.0])


def mask_of(lengths: list[int], *, width: int | None = None) -> Tensor:
    """True on the first tokens of each row."""
    return torch.arange(width or max(lengths)) < torch.tensor(lengths).unsqueeze(-1)


def with_nan_padding(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.nan)


def random_focus(seed: int, mask: Tensor, *, levels: int = 0) -> Tensor:
    """Focus in [0, 1], float64, nan under the padding; with `levels` > 0 rounded to so many steps, so ties occur."""
    values = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if levels:
        values = (values * levels).round() / levels
    return with_nan_padding(values, mask)


def more_padding(values: Tensor, *, by: int, fill: float = torch.nan) -> Tensor:
    """The same rows, padded further."""
    return torch.nn.functional.pad(values, (0, by), value=fill)


def rows_of(values: Tensor, mask: Tensor) -> list[list[float]]:
    """Each row's values without its padding, as Python floats."""
    return [row[kept].tolist() for row, kept in zip(values, mask, strict=True)]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal within an absolute tolerance, dtypes and devices apart; nan equals nothing."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, check_dtype=False)
