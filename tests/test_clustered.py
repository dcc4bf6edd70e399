"""Rank correlations with weights, in strata, are those of the tokens written out as often as they count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import clustered
from benchmarks.clustered import Tokens, correlation, draws, finds, interval, mean_correlation, top_share
from vgpo_lite.algorithm.ranks import rank_correlation


def tokens_of(lengths: tuple[int, ...], seed: int = 0) -> Tokens:
    generator = np.random.default_rng(seed)
    return Tokens.of(
        [
            {"a": generator.integers(0, 6, length).tolist(), "b": generator.normal(size=length).tolist()}
            for length in lengths
        ]
    )


def slow(tokens: Tokens, weights: np.ndarray, wanted: np.ndarray) -> float:
    """Every token as often as its completion counts, then the library's correlation."""
    rows = [row for row in np.flatnonzero(wanted) for _ in range(weights[tokens.completion[row]])]
    return float(rank_correlation(*(torch.tensor(tokens.values[name][rows]) for name in ("a", "b"))))


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (0, 3, 1, 2), (2, 0, 0, 2)])
def test_weights_count_tokens_as_often_as_they_say(weights: tuple[int, ...]) -> None:
    tokens, counts = tokens_of((7, 4, 9, 6)), np.array(weights)
    whole = np.zeros(len(tokens.completion), dtype=int)
    assert correlation(tokens, "a", "b", whole)(counts)[0] == pytest.approx(slow(tokens, counts, whole == 0))
    quarters = correlation(tokens, "a", "b", tokens.quarter)(counts)
    for quarter in range(4):
        assert quarters[quarter] == pytest.approx(slow(tokens, counts, tokens.quarter == quarter), nan_ok=True)


def test_places_are_averaged_by_their_tokens_and_constant_ones_left_out() -> None:
    tokens, counts = tokens_of((3, 3, 2)), np.array([1, 1, 2])
    flat = tokens.values["a"].copy()
    flat[tokens.place == 0] = 5  # nothing to rank
    tokens = replace(tokens, values={**tokens.values, "a": flat})
    parts = [(slow(tokens, counts, tokens.place == place), tokens_at) for place, tokens_at in ((1, 4), (2, 2))]
    expected = sum(value * weight for value, weight in parts) / 6
    assert mean_correlation(tokens, "a", "b", tokens.place)(counts) == pytest.approx(expected)
    constant = replace(tokens, values={**tokens.values, "a": np.ones_like(flat)})
    assert np.isnan(mean_correlation(constant, "a", "b", constant.place)(counts))
    assert interval(mean_correlation(constant, "a", "b", constant.place), 3) == dict.fromkeys(("value", "low", "high"))


def test_quarters_are_of_each_answers_own_length() -> None:
    assert tokens_of((8, 5)).quarter.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 2, 3]


def test_the_top_fifth_worked_by_hand() -> None:
    # Ten tokens: the two with the highest signal, 9 and 8, carry 3 and 1 of 3 + 1 + 4; one token of one: all of its 2.
    completions = [
        {"signal": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "loss": [4, 0, 0, 0, 0, 0, 0, 0, -3, 1]},
        {"signal": [1.0], "loss": [2.0]},
    ]
    share = top_share(Tokens.of(completions), "signal", "loss")
    assert share(np.array([1, 0])) == pytest.approx(4 / 8)
    assert share(np.array([1, 3])) == pytest.approx((4 + 6) / (8 + 6))


def test_finding_tokens_worked_by_hand() -> None:
    # 3 and 1 are wanted, 2, 1 and 0 not: 3 beats three, 1 beats one and ties with one, so 4.5 of 6 pairs.
    tokens = Tokens.of([{"signal": [3.0, 1.0, 2.0]}, {"signal": [1.0, 0.0]}])
    wanted = np.array([True, True, False, False, False])
    assert finds(tokens, "signal", wanted)(np.array([1, 1])) == pytest.approx(4.5 / 6)
    # The second completion twice: 3 beats 5, 1 beats 2 and ties with 2, so 8 of 10.
    assert finds(tokens, "signal", wanted)(np.array([1, 2])) == pytest.approx(8 / 10)
    assert np.isnan(finds(tokens, "signal", ~(wanted | True))(np.array([1, 1])))


def test_intervals_draw_whole_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustered, "DRAWS", 400)
    assert {int(weights.sum()) for weights in draws(9, seed=1)} == {9}
    # Thirty copies of one completion are always the same; thirty that differ are not.
    one = {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 3.0, 2.0, 4.0]}
    same = Tokens.of([one] * 30)
    found = interval(mean_correlation(same, "a", "b", same.completion), 30)
    assert found == {"value": 0.8, "low": 0.8, "high": 0.8}
    other = tokens_of((6,) * 30)
    spread = interval(mean_correlation(other, "a", "b", other.completion), 30)
    value, low, high = spread["value"], spread["low"], spread["high"]
    assert value is not None
    assert low is not None
    assert high is not None
    assert low < value < high
    # The mean of 30 correlations of 6 random tokens (standard deviation 1 / sqrt 5): about 4 x 0.45 / sqrt 30 wide.
    assert 0.2 < high - low < 0.5
