"""Numbers and paths as a person reads them; shared by every command that prints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vgpo_lite.data_types import Accuracy
from vgpo_lite.listening import MemoryPlan, RunPlan, RunSummary
from vgpo_lite.units import amount, duration, memory, percent

SHOWN_PARTS = 4
"""Largest parts of a phase that its line names."""


def interval(accuracy: Accuracy) -> str:
    """The 95 % interval of an accuracy.

    >>> interval(Accuracy(right=5, total=10, low=0.2366, high=0.7634))
    '23.7 to 76.3 %'
    """
    return f"{100 * accuracy.low:.1f} to {percent(accuracy.high)}"


def points(before: Accuracy, after: Accuracy) -> str:
    """How many percentage points an accuracy changed by, with its sign."""
    return f"{100 * (after.share - before.share):+.1f} points"


def plan_lines(plan: RunPlan) -> list[tuple[str, str]]:
    """A run's plan as titles and values."""
    dropped = sum(plan.rows_dropped.values())
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in plan.rows_dropped.items())
    lines = [
        ("rows that train", f"{plan.rows_kept:,}"),
        ("rows left out", f"{dropped:,}" + (f": {reasons}" if dropped else "")),
        ("rows that measure", f"{plan.rows_held_out:,}"),
        ("trainable parameters", f"{amount(plan.trainable_parameters)} of {amount(plan.total_parameters)}"),
        ("model in memory", memory(plan.model_bytes)),
        ("device", plan.device),
        ("steps", f"{plan.first_step:,} to {plan.max_steps:,}"),
        ("time", _time(plan)),
        *memory_lines(plan.memory),
    ]
    return lines + [("note", note) for note in plan.notes]


def _time(plan: RunPlan) -> str:
    if plan.seconds_left is not None:
        return f"about {duration(plan.seconds_left)} left, from the steps before"
    return "told after the first step, and with every step from then on"


def memory_lines(plan: MemoryPlan) -> list[tuple[str, str]]:
    """Predicted memory: the whole, then each phase with its largest parts, then what was chosen."""
    group = f"prompt of {plan.prompt_tokens:,} tokens, {plan.image_tokens:,} of them of images"
    lines = [("predicted memory", f"{memory(plan.peak_bytes)} at most, in {plan.worst.name} (largest {group})")]
    for phase in plan.phases:
        parts = sorted(phase.parts.items(), key=lambda part: -part[1])[:SHOWN_PARTS]
        shown = ", ".join(f"{name} {memory(size)}" for name, size in parts)
        lines.append((f"  {phase.name}", f"{memory(phase.total_bytes)}: {shown}"))
    if plan.reserve_bytes:
        lines.append(("  reserve", f"{memory(plan.reserve_bytes)} for the card's context and gaps between tensors"))
    if plan.limit_bytes is not None:
        verdict = "fits into" if plan.fits else "does not fit into"
        lines.append(("fits", f"{memory(plan.needed_bytes)} {verdict} {memory(plan.limit_bytes)}"))
    return lines + [("chosen", choice) for choice in plan.choices]


def step_parts(metrics: Mapping[str, float]) -> list[str]:
    """What a step's line says of its metrics; a metric the step did not have is left out."""
    shown = (
        ("reward/mean", "reward", lambda value: f"{value:.3f}"),
        ("groups/useful_share", "useful groups", lambda value: f"{100 * value:.0f} %"),
        ("completions/mean_length", "length", lambda value: f"{value:.0f}"),
        ("focus/early", "focus early", lambda value: f"{value:.3f}"),
        ("focus/late", "late", lambda value: f"{value:.3f}"),
        ("policy/grad_norm", "grad norm", lambda value: f"{value:.3g}"),
        ("time/step_seconds", "took", duration),
    )
    return [f"{title} {words(metrics[key])}" for key, title, words in shown if key in metrics]


def accuracy_rows(before: Accuracy | None, after: Accuracy | None) -> list[tuple[str, str, str, str]]:
    """The table of accuracy before and after: title, right answers, accuracy, interval."""
    named = [("before", before), ("after", after)]
    rows = [
        (name, f"{accuracy.right} of {accuracy.total}", percent(accuracy.share), interval(accuracy))
        for name, accuracy in named
        if accuracy is not None
    ]
    if before is not None and after is not None:
        rows.append(("change", "", points(before, after), ""))
    return rows


ACCURACY_TITLES = ("accuracy", "right", "share", "95 % interval")


def program() -> str:
    """How the user starts this program, for commands to copy: by name where it is on the path."""
    started = Path(sys.argv[0])
    if started.name == "cli.py":
        return "python cli.py"
    if started.parts[-2:] == ("vgpo_lite", "__main__.py"):
        return "python -m vgpo_lite"
    if shutil.which("vgpo-lite") or not started.exists():
        return "vgpo-lite"
    return shlex.quote(os.path.relpath(started))


def next_commands(summary: RunSummary) -> list[tuple[str, str]]:
    """What to do with a finished run: the purpose and the command of each.

    Measuring and looking are offered only where the run measured, too: otherwise nothing is held out for them.
    """
    run = shlex.quote(summary.output)
    merged = shlex.quote(str(Path(summary.output) / "merged"))
    page = shlex.quote(str(Path(summary.output) / "inspection.html"))
    measure = ("accuracy with and without the adapter", f"{program()} eval --adapter {run}")
    look = ("what it looks at, token by token", f"{program()} inspect {run} --output {page}")
    return [
        ("one folder that any program loads", f"{program()} merge {run} --output {merged} --verify"),
        *([] if summary.after is None else [measure, look]),
        ("ask it something", f"{program()} chat {run} --image PICTURE --question 'How many ...?'"),
    ]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with their cells under each other.

    >>> columns([("a", "b"), ("long", "c")])
    ['a     b', 'long  c']
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
