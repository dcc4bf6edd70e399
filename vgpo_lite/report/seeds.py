"""Runs side by side: which of them differ in the seed alone, and what several seeds say together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vgpo_lite.report.facts import shown
from vgpo_lite.report.smoothing import running_median

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from vgpo_lite.report.charts import Curve
    from vgpo_lite.report.records import RunRecord

_APART = frozenset({"seed", "output", "report_to", "save_completions_every"})
_SECTIONS_APART = ("checkpoint.", "journal.")
"""Settings that decide no step's result; the seed decides it, but by chance alone."""

_NAMED_SETTINGS = 3
"""Settings that a label names at most; beyond that the runs' own names say more."""

_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t distribution for 1 to 30 degrees of freedom (any table of it)."""


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """Runs that differ in the seed alone; often one run.

    Attributes:
        label: What the group is called beside the others.
        runs: Its runs, in the order they were named.
    """

    label: str
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number that several seeds, or one run, give.

    Attributes:
        value: The mean over seeds; of one run its own value.
        low: Lower end of the 95 % interval; nan where there is none.
        high: Upper end of it.
    """

    value: float
    low: float
    high: float


def grouped(runs: Sequence[RunRecord]) -> tuple[SeedGroup, ...]:
    """The runs, those together that differ in the seed alone; labels name what differs between groups.

    A run without a readable config.yaml stands alone.
    """
    parts: dict[str, list[RunRecord]] = {}
    for place, run in enumerate(runs):
        parts.setdefault(repr(sorted(_deciding(run).items())) if run.settings else f"{place}", []).append(run)
    groups = list(parts.values())
    keys = differing([group[0] for group in groups])
    labels = [_label(group, keys) for group in groups]
    if len(set(labels)) < len(labels):
        labels = [_names(group) for group in groups]
    return tuple(SeedGroup(label=label, runs=tuple(group)) for label, group in zip(labels, groups, strict=True))


def differing(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """The deciding settings in which these runs are not all alike, in the order of config.yaml."""
    keys = dict.fromkeys(key for run in runs for key in _deciding(run))
    return tuple(key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1)


def differing_rows(groups: Sequence[SeedGroup]) -> list[tuple[str, ...]]:
    """Each setting in which runs are not all alike, and what each group has of it: last the seed, all of them."""
    firsts = [group.runs[0] for group in groups]
    rows = [(key, *(shown(run.settings.get(key, "-")) for run in firsts)) for key in differing(firsts)]
    seeds = [list(dict.fromkeys(shown(run.settings.get("seed", "-")) for run in group.runs)) for group in groups]
    if len({seed for own in seeds for seed in own}) > 1:
        rows.append(("seed", *(", ".join(own) for own in seeds)))
    return rows


def _deciding(run: RunRecord) -> dict[str, object]:
    return {
        key: value for key, value in run.settings.items() if key not in _APART and not key.startswith(_SECTIONS_APART)
    }


def _label(group: Sequence[RunRecord], keys: Sequence[str]) -> str:
    if not 0 < len(keys) <= _NAMED_SETTINGS or not group[0].settings:
        return _names(group)
    return ", ".join(f"{key} {shown(group[0].settings.get(key))}" for key in keys)


def _names(group: Sequence[RunRecord]) -> str:
    return ", ".join(run.name for run in group)


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """The mean of one value per seed, and its 95 % interval by Student's t; None without a value.

    With few seeds the interval is wide, and honest only where seeds scatter about like a normal distribution. There is
    none for one seed, nor for seeds that are all alike, whose spread says nothing of what another would give.

    >>> over_seeds([1.0, 2.0, 6.0])
    Estimate(value=3.0, low=-3.572..., high=9.572...)
    >>> over_seeds([2.0, 2.0])
    Estimate(value=2.0, low=nan, high=nan)
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    if len(set(known)) == 1:
        return Estimate(value=known[0], low=math.nan, high=math.nan)
    quantile = _T_95[min(len(known) - 1, len(_T_95)) - 1]
    half = quantile * statistics.stdev(known) / math.sqrt(len(known))
    centre = statistics.fmean(known)
    return Estimate(value=centre, low=centre - half, high=centre + half)


def accuracy_of(group: SeedGroup, name: str) -> Estimate | None:
    """Held-out accuracy of a group, in [0, 1]: over seeds, or one run's with the interval of its answers.

    Seeds that all measured the same, as before the first step, where none has changed the model yet, count as one.
    """
    measured = [run.accuracies[name] for run in group.runs if name in run.accuracies]
    if len(set(measured)) == 1:
        return Estimate(value=measured[0].share, low=measured[0].low, high=measured[0].high)
    estimate = over_seeds([accuracy.share for accuracy in measured])
    if estimate is None:
        return None
    return Estimate(value=estimate.value, low=max(0.0, estimate.low), high=min(1.0, estimate.high))


def gain_of(group: SeedGroup) -> Estimate | None:
    """By how much accuracy changed, as a difference of shares: each run against its own beginning, then over seeds."""
    return over_seeds(
        [
            run.accuracies["after"].share - run.accuracies["before"].share
            for run in group.runs
            if {"before", "after"} <= run.accuracies.keys()
        ]
    )


def curves_over_seeds(group: SeedGroup, curve: Curve) -> tuple[tuple[int, ...], Float[ndarray, "run step"]]:
    """A curve of each run of a group, smoothed, on the steps that any of them has; nan where a run has no value."""
    steps = tuple(sorted({step for run in group.runs for step in run.steps}))
    places = {step: place for place, step in enumerate(steps)}
    curves = np.full((len(group.runs), len(steps)), np.nan)
    for row, run in enumerate(group.runs):
        if curve.metric in run.metrics:
            curves[row, [places[step] for step in run.steps]] = running_median(curve.values(run))
    return steps, curves
