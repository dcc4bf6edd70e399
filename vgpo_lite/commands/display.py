"""Who watches a run from a terminal, from a log file, or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from vgpo_lite.commands.words import (
    ACCURACY_TITLES,
    accuracy_rows,
    columns,
    interval,
    next_commands,
    plan_lines,
    step_parts,
)
from vgpo_lite.listening import SilentListener
from vgpo_lite.units import duration, memory, percent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from vgpo_lite.data_types import Accuracy, StepReport
    from vgpo_lite.listening import Listener, RunPlan, RunSummary

_NOTEBOOK = "JPY_PARENT_PID"
"""Set for what a notebook's cells start: a terminal by name, but one that keeps every line a bar rewrites."""

LINES_PER_RUN = 20
"""Lines of steps that stay on a terminal, above the bar that moves."""


@contextlib.contextmanager
def watching(*, quiet: bool = False) -> Iterator[Listener]:
    """Who should watch a run, by where stdout leads; what moves is taken away at the end."""
    stream = sys.stdout
    if quiet or not stream.isatty() or _NOTEBOOK in os.environ:
        yield QuietListener(stream) if quiet else PlainListener(stream)
        return
    from rich.console import Console

    listener = TerminalListener(Console(file=stream, highlight=False))
    try:
        yield listener
    finally:
        listener.close()


class QuietListener(SilentListener):
    """Says nothing until the run is over, and then one line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def finished(self, summary: RunSummary) -> None:
        """The one line."""
        self._stream.write(f"{summary_line(summary)}\n")


class PlainListener:
    """Plain lines for logs, notebooks' files and pipes: one per step, no colour, nothing overwritten."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._max_steps = 0
        self._phase = ""

    def planned(self, plan: RunPlan) -> None:
        """The plan, a line for each value."""
        self._max_steps = plan.max_steps
        self._say("Plan of the run")
        for title, value in plan_lines(plan):
            self._say(f"  {title}: {value}")

    def progressed(self, phase: str, done: int, total: int) -> None:
        """Nothing inside a step; a line when a long phase outside of steps begins."""
        if phase not in ("rollout", "update", self._phase):
            self._say(f"{phase} ({total} in all)")
            self._phase = phase

    def stepped(self, report: StepReport, seconds_left: float) -> None:
        """One line for one step."""
        parts = [*step_parts(report.metrics), f"left {duration(seconds_left)}"]
        self._say(f"step {report.step}/{self._max_steps}  {', '.join(parts)}")

    def evaluated(self, name: str, accuracy: Accuracy) -> None:
        """One line for one measurement."""
        self._phase = ""
        self._say(accuracy_line(name, accuracy))

    def noted(self, message: str) -> None:
        """The message, on a line of its own."""
        self._say(f"note: {message}")

    def finished(self, summary: RunSummary) -> None:
        """The table of accuracy, the costs, and what to do next."""
        rows = accuracy_rows(summary.before, summary.after)
        for line in columns([ACCURACY_TITLES, *rows]) if rows else []:
            self._say(line)
        self._say(summary_line(summary))
        self._say("Next:")
        for purpose, command in next_commands(summary):
            self._say(f"  {command}   # {purpose}")

    def _say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class TerminalListener:
    """A plan, a bar that moves, a few lines that stay, and a table at the end."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._console = console
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
        )
        self._steps: TaskID | None = None
        self._phase: TaskID | None = None
        self._phase_name = ""
        self._lines_every = 1

    def planned(self, plan: RunPlan) -> None:
        """The plan as a table; the bar begins."""
        from rich.table import Table

        table = Table(title="Plan of the run", title_justify="left", show_header=False, box=None, padding=(0, 2))
        for title, value in plan_lines(plan):
            table.add_row(f"[dim]{title}", _escaped(value))
        self._console.print(table)
        self._lines_every = max(1, plan.max_steps // LINES_PER_RUN)
        self._steps = self._progress.add_task("steps", total=plan.max_steps, completed=plan.first_step - 1, text="")

    def progressed(self, phase: str, done: int, total: int) -> None:
        """The second bar: what the step is at."""
        self._progress.start()
        if self._phase is None or phase != self._phase_name:
            self._end_phase()
            self._phase_name = phase
            self._phase = self._progress.add_task(phase, total=total, text="")
        self._progress.update(self._phase, completed=done, total=total)

    def stepped(self, report: StepReport, seconds_left: float) -> None:
        """The first bar moves; now and then a line stays."""
        self._progress.start()
        self._end_phase()
        parts = step_parts(report.metrics)
        if self._steps is not None:
            text = "  ".join([f"left {duration(seconds_left)}", *parts])
            self._progress.update(self._steps, completed=report.step, text=text)
        if report.step == 1 or report.step % self._lines_every == 0:
            self._console.print(f"[bold]step {report.step:>4}[/bold]  [dim]·[/dim]  {_escaped('  '.join(parts))}")

    def evaluated(self, name: str, accuracy: Accuracy) -> None:
        """The measurement, on a line that stays."""
        self._end_phase()
        self._console.print(f"[bold]{_escaped(accuracy_line(name, accuracy))}")

    def noted(self, message: str) -> None:
        """The message, on a line that stays."""
        self._console.print(f"[yellow]note:[/yellow] {_escaped(message)}")

    def finished(self, summary: RunSummary) -> None:
        """The bar leaves; the table of accuracy, the costs and what to do next stay."""
        from rich.table import Table

        self.close()
        rows = accuracy_rows(summary.before, summary.after)
        if rows:
            table = Table(*ACCURACY_TITLES)
            for row in rows:
                table.add_row(*row, style="bold" if row[0] == "change" else "")
            self._console.print(table)
        self._console.print(_escaped(summary_line(summary)))
        self._console.print("[bold]Next")
        for purpose, command in next_commands(summary):
            self._console.print(f"  {_escaped(command)}   [dim]# {purpose}", soft_wrap=True)

    def close(self) -> None:
        """Take the bars away, also where a run ends early."""
        self._progress.stop()

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._progress.remove_task(self._phase)
            self._phase = None


def accuracy_line(name: str, accuracy: Accuracy) -> str:
    """One measurement in a line."""
    title = {"before": "accuracy before", "after": "accuracy after"}.get(name, name)
    count = f"{accuracy.right} of {accuracy.total}"
    return f"{title}: {percent(accuracy.share)} ({count}; 95 % interval {interval(accuracy)})"


def summary_line(summary: RunSummary) -> str:
    """What a run came to and cost, in a line."""
    steps = f"{summary.steps} steps, {summary.updated_steps} of them updates"
    accuracies = " to ".join(percent(a.share) for a in (summary.before, summary.after) if a is not None)
    measured = f", accuracy {accuracies}" if accuracies else ""
    whose = "of the whole process" if summary.peak_is_of_process else "of tensors"
    peak = f"{memory(summary.peak_bytes)} {whose} (predicted: {memory(summary.predicted_peak_bytes)} of tensors)"
    cost = f"{duration(summary.seconds)}, peak memory {peak}"
    return f"{summary.output}: {steps}{measured}, {cost}"


def _escaped(text: str) -> str:
    """Text that rich prints as it is."""
    from rich.markup import escape

    return escape(text)
