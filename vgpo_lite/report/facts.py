"""The tables of a report: what a run was, what it came to, and its metrics in numbers."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from vgpo_lite.units import duration, memory, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vgpo_lite.data_types import Accuracy
    from vgpo_lite.report.records import RunRecord

METRIC_TITLES = ("metric", "first", "last", "median", "smallest", "largest", "steps")


def outcome_rows(run: RunRecord) -> list[tuple[str, str]]:
    """What a run came to: accuracy, steps, time, memory, and why it ended; what is not known is left out."""
    before, after = run.accuracies.get("before"), run.accuracies.get("after")
    rows = [("state", _state(run))]
    if before is not None:
        rows.append(("held-out accuracy before", accuracy_in_words(before)))
    if after is not None:
        rows.append(("held-out accuracy after", accuracy_in_words(after)))
    if before is not None and after is not None:
        rows.append(("change", f"{100 * (after.share - before.share):+.1f} points"))
    if before is None and after is None:
        rows.append(("held-out accuracy", "not measured"))
    rows.append(("steps", _steps(run)))
    seconds = _known(run.metrics.get("time/step_seconds", ()))
    if seconds:
        rows.append(
            ("time in steps", f"{duration(sum(seconds))}, {duration(statistics.fmean(seconds))} each on average")
        )
    peaks = _known(run.metrics.get("memory/peak_bytes", ()))
    if peaks:
        rows.append(("peak memory", memory(max(peaks))))
    sizes = _sizes(run)
    if sizes:
        rows.append(("worked on together", sizes))
    if "device" in run.facts:
        rows.append(("hardware", str(run.facts["device"])))
    if run.unread:
        rows.append(("records", f"{run.unread} lines of metrics.jsonl cannot be read and are left out"))
    return rows


def _state(run: RunRecord) -> str:
    reason = run.status.get("reason")
    return run.state if reason is None else f"{run.state}: {reason}"


def _steps(run: RunRecord) -> str:
    done = run.steps[-1] if run.steps else 0
    planned = run.settings.get("max_steps")
    updated = run.status.get("updated_steps")
    words = f"{done:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")
    return words + (f", {updated:,} of them updates" if isinstance(updated, int) else "")


_SIZES = (
    ("memory/prompts_per_decode", "prompts while decoding"),
    ("memory/rows_per_decode", "completions of each"),
    ("memory/rows_per_micro_batch", "completions per micro-batch"),
    ("memory/logprob_chunk", "tokens per chunk"),
)


def _sizes(run: RunRecord) -> str:
    """The sizes of the last step, each with that of the first where memory ran out in between."""
    told = []
    for name, words in _SIZES:
        known = _known(run.metrics.get(name, ()))
        if known:
            shrank = f" ({shown(known[0])} at first)" if known[0] != known[-1] else ""
            told.append(f"{shown(known[-1])} {words}{shrank}")
    return ", ".join(told)


def accuracy_in_words(accuracy: Accuracy) -> str:
    """A measured share with its count and interval."""
    interval = f"{100 * accuracy.low:.1f} to {percent(accuracy.high)}"
    return f"{percent(accuracy.share)} ({accuracy.right} of {accuracy.total}; 95 % interval {interval})"


_SETTINGS = (
    ("model", ("model", "quantization", "revision")),
    ("data set", ("dataset", "data.split", "data.limit")),
    ("method", ("advantage", "loss", "scale_rewards", "kl_coefficient")),
    ("focus", ("focus.signal", "focus.weighting", "focus.beta", "focus.gamma", "focus.kappa")),
    ("sampling", ("num_generations", "prompts_per_step", "num_iterations", "max_completion_length", "temperature")),
    ("learning", ("learning_rate", "lr_scheduler_type", "max_grad_norm", "lora.r", "lora.alpha")),
    ("seed", ("seed",)),
)


def setting_rows(run: RunRecord) -> list[tuple[str, str]]:
    """The settings that a reader asks for first; all of them are in config.yaml."""
    rows = []
    for title, keys in _SETTINGS:
        named = [(key, run.settings[key]) for key in keys if run.settings.get(key) is not None]
        if named:
            first, *others = (f"{key} {shown(value)}" for key, value in named)
            lead = shown(named[0][1]) if title in ("model", "data set", "seed") else first
            rows.append((title, ", ".join([lead, *others])))
    return rows


def metric_rows(run: RunRecord) -> list[tuple[str, ...]]:
    """Every metric in numbers: first and last value, median, extremes, and how many steps have one."""
    rows = []
    for name, values in sorted(run.metrics.items()):
        known = _known(values)
        if known:
            told = (known[0], known[-1], statistics.median(known), min(known), max(known))
            rows.append((name, *map(shown, told), f"{len(known):,}"))
        else:
            rows.append((name, *["-"] * 5, "0"))
    return rows


def shown(value: object) -> str:
    """A value in four digits, an integer in full.

    >>> shown(0.123456), shown(5e-06), shown(1001005056.0), shown("nf4"), shown(False)
    ('0.1235', '5e-06', '1,001,005,056', 'nf4', 'false')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.4g}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
