"""Noisy curves made readable: a running median through the points, and fewer points where there are too many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int
    from numpy import ndarray

LARGEST_WINDOW = 25
"""Steps a running median spans at most: beyond that it hides what a user looks for."""

DRAWN_POINTS = 400
"""Points drawn of one curve at most: two thirds of the pixels that a chart is wide."""


def window_of(steps: int) -> int:
    """Steps that the running median of a curve spans: an odd number, about an eighth of the curve.

    >>> [window_of(steps) for steps in (1, 2, 12, 40, 100, 5000)]
    [1, 1, 3, 5, 13, 25]
    """
    return min(LARGEST_WINDOW, max(3, 2 * (steps // 16) + 1)) if steps > 2 else 1


def running_median(values: Sequence[float] | Float[ndarray, " step"]) -> Float[ndarray, " step"]:
    """The median of each value and its neighbours on either side; nan where none of them is a number.

    >>> running_median([1.0, 9.0, 2.0]).tolist()
    [5.0, 2.0, 5.5]

    Args:
        values: One value per step; nan where there is none.
    """
    numbers = np.asarray(values, dtype=np.float64)
    half = window_of(len(numbers)) // 2
    windows = (numbers[max(0, place - half) : place + half + 1] for place in range(len(numbers)))
    return np.array([np.median(known) if len(known := part[~np.isnan(part)]) else np.nan for part in windows])


def over_last(
    values: Float[ndarray, " step"], span: int, over: Callable[[Float[ndarray, " known"]], float]
) -> Float[ndarray, " step"]:
    """What so many steps up to each come to, the first ones those that follow too; nan where none of them has a value.

    >>> over_last(np.array([3.0, 0.0, np.nan, 6.0]), 2, np.mean).tolist()
    [1.5, 1.5, 0.0, 6.0]

    Args:
        values: One value per step; nan where there is none.
        span: How many steps are taken together.
        over: What is told of their values.
    """
    windows = (values[max(0, place - span + 1) : max(span, place + 1)] for place in range(len(values)))
    return np.array([over(known) if len(known := part[~np.isnan(part)]) else np.nan for part in windows])


def drawn_places(count: int) -> Int[ndarray, " point"]:
    """Which of so many points are drawn: all of them, or an even choice that keeps both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, DRAWN_POINTS)).round().astype(np.int64))
