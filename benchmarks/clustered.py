"""Rank correlations over tokens, and their intervals where whole completions are drawn again.

Tokens of a completion belong together, so a bootstrap draw takes completions with replacement: each draw is a weight
for every completion, and ranks are taken anew among the tokens as often as they were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy import ndarray

DRAWS = 1_000
"""Bootstrap draws."""
TOP_SHARE = 0.2
"""Share of a completion's tokens in `top_share`: what the method's gate opens for (kappa)."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of some completions, one after the other.

    Attributes:
        values: Each measure of every token, by name.
        completion: Which completion each token is of, from 0.
        place: Its place in the completion, from 0.
        quarter: Which quarter of its completion's length it stands in, 0 to 3.
    """

    values: dict[str, ndarray]
    completion: ndarray
    place: ndarray
    quarter: ndarray

    @classmethod
    def of(cls, completions: list[dict[str, list[float]]]) -> Tokens:
        """Completions by name of measure, all measures of one as long as the completion."""
        lengths = [len(next(iter(completion.values()))) for completion in completions]
        place = np.concatenate([np.arange(length) for length in lengths])
        return cls(
            values={name: np.concatenate([each[name] for each in completions]) for name in completions[0]},
            completion=np.repeat(np.arange(len(lengths)), lengths),
            place=place,
            quarter=4 * place // np.repeat(lengths, lengths),
        )

    @property
    def count(self) -> int:
        """Completions."""
        return int(self.completion[-1]) + 1

    def keep(self, wanted: ndarray) -> Tokens:
        """Some of the tokens; completions keep their numbers."""
        values = {name: value[wanted] for name, value in self.values.items()}
        return Tokens(
            values=values, completion=self.completion[wanted], place=self.place[wanted], quarter=self.quarter[wanted]
        )


def correlation(tokens: Tokens, left: str, right: str, stratum: ndarray) -> Callable[[ndarray], ndarray]:
    """Spearman's correlation inside each stratum, as a function of the completions' weights.

    Args:
        tokens: The tokens.
        left: One measure.
        right: The other.
        stratum: A number from 0 for every token: tokens are ranked among those of their number alone.

    Returns:
        From weights [completion], whole numbers, to correlations [stratum]; nan where a stratum is empty or constant.
    """
    order = [_order(tokens.values[name], stratum) for name in (left, right)]
    strata = int(stratum.max()) + 1

    def weighted(weights: ndarray) -> ndarray:
        weight = weights[tokens.completion].astype(float)
        total = np.bincount(stratum, weight, strata)
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = (_centred(places, weight, stratum, total) for places in order)
            spread = np.bincount(stratum, weight * a * a, strata) * np.bincount(stratum, weight * b * b, strata)
            # Ranks are halves, sums of their squares far from rounding: a constant stratum is nothing but zeros.
            return np.bincount(stratum, weight * a * b, strata) / np.sqrt(np.where(spread > 1e-9, spread, np.nan))

    return weighted


def _order(values: ndarray, stratum: ndarray) -> ndarray:
    """The same number for equal values of one stratum, rising with stratum, then value."""
    sequence = np.lexsort((values, stratum))
    new = np.diff(values[sequence], prepend=np.nan) != 0
    new |= np.diff(stratum[sequence], prepend=-1) != 0
    numbers = np.empty(len(values), dtype=int)
    numbers[sequence] = np.cumsum(new) - 1
    return numbers


def _mean_ranks(order: ndarray, weight: ndarray) -> ndarray:
    counts = np.bincount(order, weight)
    return (np.cumsum(counts) - (counts - 1) / 2)[order]


def _centred(order: ndarray, weight: ndarray, stratum: ndarray, total: ndarray) -> ndarray:
    """Mean ranks of tokens that count `weight` times each, minus their stratum's mean."""
    ranks = _mean_ranks(order, weight)
    return ranks - (np.bincount(stratum, weight * ranks, len(total)) / total)[stratum]


def mean_correlation(tokens: Tokens, left: str, right: str, stratum: ndarray) -> Callable[[ndarray], float]:
    """The mean of `correlation` over strata, each counted by its tokens; strata without one are left out."""
    inside = correlation(tokens, left, right, stratum)

    def weighted(weights: ndarray) -> float:
        found = inside(weights)
        counts = np.bincount(stratum, weights[tokens.completion], len(found)) * ~np.isnan(found)
        return float(np.nansum(counts * np.nan_to_num(found)) / counts.sum()) if counts.sum() else float("nan")

    return weighted


def finds(tokens: Tokens, signal: str, wanted: ndarray) -> Callable[[ndarray], float]:
    """How often the signal is higher at a wanted token than at another, ties counted half: 0.5 by chance."""
    order = _order(tokens.values[signal], np.zeros(len(wanted), dtype=int))

    def weighted(weights: ndarray) -> float:
        weight = weights[tokens.completion].astype(float)
        chosen = weight[wanted].sum()
        others = weight.sum() - chosen
        if not chosen or not others:
            return float("nan")
        mean_rank = (weight * _mean_ranks(order, weight))[wanted].sum() / chosen
        return float((mean_rank - (chosen + 1) / 2) / others)

    return weighted


def top_share(tokens: Tokens, signal: str, loss: str) -> Callable[[ndarray], float]:
    """How much of the loss, sign apart, falls on the fifth of each completion's tokens where the signal is highest.

    The fifth is rounded down, as the gate's is, and at least one token; of equal signals the earlier counts.
    """
    top, whole = np.zeros(tokens.count), np.zeros(tokens.count)
    for number in range(tokens.count):
        own = tokens.completion == number
        sizes, wanted = np.abs(tokens.values[loss][own]), tokens.values[signal][own]
        chosen = np.argsort(-wanted, kind="stable")[: max(1, int(np.floor(TOP_SHARE * own.sum())))]
        top[number], whole[number] = sizes[chosen].sum(), sizes.sum()
    return lambda weights: float((weights * top).sum() / (weights * whole).sum())


def draws(count: int, *, seed: int) -> Iterator[ndarray]:
    """How often each completion is drawn, `DRAWS` times; the same for every measure of the same completions."""
    generator = np.random.default_rng(seed)
    for _ in range(DRAWS):
        yield np.bincount(generator.integers(count, size=count), minlength=count)


def interval(measure: Callable[[ndarray], float], count: int, *, seed: int = 0) -> dict[str, float | None]:
    """A measure with its 95 % percentile interval over draws of completions; None where it is not defined."""
    return intervals(lambda weights: np.array([measure(weights)]), count, seed=seed)[0]


def intervals(measure: Callable[[ndarray], ndarray], count: int, *, seed: int = 0) -> list[dict[str, float | None]]:
    """The same for measures that come together."""
    values = np.array([measure(weights) for weights in draws(count, seed=seed)])
    found = []
    for value, drawn in zip(measure(np.ones(count, dtype=int)), values.T, strict=True):
        low, high = (np.nan, np.nan) if np.isnan(drawn).all() else np.nanquantile(drawn, [0.025, 0.975])
        ends = {"value": value, "low": low, "high": high}
        found.append({name: None if np.isnan(end) else round(float(end), 4) for name, end in ends.items()})
    return found
