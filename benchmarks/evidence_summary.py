"""What the runs of evidence.py say together."""

from __future__ import annotations

from typing import Any


def with_starts(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that trained, each curve begun with the first point of its task, which all of them share."""
    starts = {run["task"]: run["curve"] for run in runs if run["arm"] == "start"}
    return [{**run, "curve": [*starts[run["task"]], *run["curve"]]} for run in runs if run["arm"] != "start"]


def area(run: dict[str, Any]) -> float:
    """Area under a learning curve up to the budget of tokens, over the budget: the mean score on the way, in [0, 1].

    The last step ends a little past the budget; the curve is cut there.

    >>> area({"tokens": 10, "curve": [{"tokens": 0, "score": 0.0}, {"tokens": 20, "score": 1.0}]})
    0.25
    """
    budget, total = run["tokens"], 0.0
    for left, right in zip(run["curve"], run["curve"][1:], strict=False):
        end = min(right["tokens"], budget)
        if end <= left["tokens"]:
            break
        share = (end - left["tokens"]) / (right["tokens"] - left["tokens"])
        score = left["score"] + share * (right["score"] - left["score"])
        total += (end - left["tokens"]) * (left["score"] + score) / 2
    return total / budget


def write(runs: list[dict[str, Any]], *, rate: float, areas: dict[float, float]) -> None:
    raise NotImplementedError
