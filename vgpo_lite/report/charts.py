"""What is drawn of a run: each chart, its curves and how to read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from vgpo_lite.report.smoothing import over_last

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vgpo_lite.report.records import RunRecord

GIGABYTE = 1e9
PHASES = ("sampling", "grading", "looking", "updating")
"""Those of every step; the check of the first group is one of the first step alone."""

_STEP_SECONDS = "time/step_seconds"


def iterations_of(run: RunRecord) -> int:
    """Steps that a run takes on one rollout."""
    iterations = run.settings.get("num_iterations", 1)
    return iterations if isinstance(iterations, int) and iterations > 0 else 1


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of a chart.

    Attributes:
        metric: Its name in metrics.jsonl.
        label: What the legend calls it.
        scale: Recorded values are multiplied by it.
        told: What a point tells: its `step` alone, or the `mean` or the `highest` of `num_iterations` steps up to it.
            Only the first of so many steps on one rollout samples, so a step alone does not tell what steps cost.
    """

    metric: str
    label: str
    scale: float = 1.0
    told: Literal["step", "mean", "highest"] = "step"

    def values(self, run: RunRecord) -> list[float]:
        """What is drawn of a run, one value per step; nan where there is none. A phase that a step had not took 0 s."""
        values = self.scale * np.array(run.metrics.get(self.metric, ()), dtype=np.float64)
        if self.told == "mean" and len(values):
            had_time = ~np.isnan(run.metrics.get(_STEP_SECONDS, values))
            values = np.where(np.isnan(values) & had_time, 0.0, values)
        if self.told != "step":
            values = over_last(values, iterations_of(run), {"mean": np.mean, "highest": np.max}[self.told])
        return values.tolist()


_PHASE_SECONDS = Curve(metric="time/{}_seconds", label="{}", told="mean")
_PHASE_PEAK = Curve(metric="memory/{}_peak_bytes", label="{}", scale=1 / GIGABYTE, told="highest")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture of a report.

    Attributes:
        name: The file's name, without its ending.
        title: The heading.
        axis: What the vertical axis shows, with its unit.
        reading: What it means and what good looks like, in one or two sentences.
        curves: What is drawn.
        accuracies: Whether held-out accuracy before and after belongs into it, in percent.
        limit: The setting that the curves are compared with, drawn as a line; None: none.
        logarithmic: Whether the vertical axis is logarithmic.
        highest: Largest value that can be, such as 100 for shares, of which 0 is the smallest; None: there is none.
        from_zero: Whether the vertical axis starts at 0 where no value is below it.
    """

    name: str
    title: str
    axis: str
    reading: str
    curves: tuple[Curve, ...]
    accuracies: bool = False
    limit: str | None = None
    logarithmic: bool = False
    highest: float | None = None
    from_zero: bool = True

    def recorded(self, runs: list[RunRecord]) -> tuple[Curve, ...]:
        """The curves of which these runs have a value at all."""
        return tuple(
            curve
            for curve in self.curves
            if any(value == value for run in runs for value in run.metrics.get(curve.metric, ()))
        )


_FOCUS = {
    "attention": "share of attention on the image",
    "similarity": "similarity to the image, 0 to 1",
}


def charts_of(runs: list[RunRecord]) -> tuple[Chart, ...]:
    """Every chart that these runs have values for, in the order of a step."""
    rewards = dict.fromkeys(
        name for run in runs for name in run.metrics if name.startswith("reward/") and name != "reward/std"
    )
    signals = {str(run.settings.get("focus.signal")) for run in runs}
    focus = _FOCUS.get(signals.pop(), "focus, 0 to 1") if len(signals) == 1 else "focus, 0 to 1"
    components = tuple(
        Curve(metric=name, label=name.removeprefix("reward/"))
        for name in rewards
        if name not in ("reward/mean", "reward/accuracy")
    )
    wanted = (
        Chart(
            name="reward",
            title="Reward",
            axis="mean reward per completion",
            reading="What training raises. It should rise and then level off; single steps jump about, because each "
            "has other questions.",
            curves=(Curve(metric="reward/mean", label="all rewards"), *components),
        ),
        Chart(
            name="accuracy",
            title="Accuracy",
            axis="right answers, %",
            reading="Dots and line: sampled answers to training questions. Bars: one greedy answer to each held-out "
            "question before and after, with the 95 % interval; only those compare models.",
            curves=(Curve(metric="reward/accuracy", label="while training", scale=100),),
            accuracies=True,
            highest=100,
        ),
        Chart(
            name="length",
            title="Completion length",
            axis="tokens per completion",
            reading="How long answers are. A steady rise towards the limit without more reward is padding.",
            curves=(Curve(metric="completions/mean_length", label="mean"),),
        ),
        Chart(
            name="truncated",
            title="Cut at the limit",
            axis="completions, %",
            reading="Completions that reached max_completion_length before they ended. Above a few percent, raise it.",
            curves=(Curve(metric="completions/truncated_share", label="cut", scale=100),),
            highest=100,
        ),
        Chart(
            name="useful",
            title="Useful groups",
            axis="groups, %",
            reading="Groups in which some completions earned more than others: only those teach. Near 0 the questions "
            "are too easy or too hard.",
            curves=(Curve(metric="groups/useful_share", label="useful", scale=100),),
            highest=100,
        ),
        Chart(
            name="focus",
            title="Focus",
            axis=focus,
            reading="How much tokens look at the image, in the first and in the second half of a completion. A late "
            "half that falls means that the model stops looking.",
            curves=(Curve(metric="focus/early", label="first half"), Curve(metric="focus/late", label="second half")),
            from_zero=False,
        ),
        Chart(
            name="clip",
            title="Clipped tokens",
            axis="tokens, %",
            reading="Tokens whose probability ratio left the clip range. It is 0 where each rollout trains one update; "
            "with more, a few percent are usual and tens mean too large steps.",
            curves=(
                Curve(metric="policy/clip_low_share", label="below", scale=100),
                Curve(metric="policy/clip_high_share", label="above", scale=100),
            ),
            highest=100,
        ),
        Chart(
            name="gradient",
            title="Gradient norm",
            axis="norm before clipping",
            reading="Steps above the dashed line were scaled down to it (max_grad_norm). Growth by tens is a warning; "
            "gaps are steps whose gradient was not finite.",
            curves=(Curve(metric="policy/grad_norm", label="norm"),),
            limit="max_grad_norm",
            logarithmic=True,
        ),
        Chart(
            name="kl",
            title="Distance from the start",
            axis="KL divergence per token, nats",
            reading="How far the policy has moved from the model without the adapter.",
            curves=(Curve(metric="policy/kl", label="KL"),),
        ),
        *_cost_charts(runs),
    )
    return tuple(
        chart for chart in wanted if chart.recorded(runs) or (chart.accuracies and any(run.accuracies for run in runs))
    )


def _cost_charts(runs: list[RunRecord]) -> tuple[Chart, Chart]:
    """Memory and time of a run by phase; of several runs, or of one that tells no phases, as a whole."""
    alone = runs[0].metrics if len(runs) == 1 else {}
    peaks = _by_phase(_PHASE_PEAK, alone)
    seconds = _by_phase(_PHASE_SECONDS, alone)
    memory = Chart(
        name="memory",
        title="Memory by phase" if peaks else "Memory",
        axis="highest in the phase, GB" if peaks else "highest so far, GB",
        reading=_memory_reading(runs, peaks),
        curves=peaks or (Curve(metric="memory/peak_bytes", label="peak", scale=1 / GIGABYTE),),
        limit="memory.gpu_memory" if _counted(runs) == {"tensors"} else None,
    )
    time = Chart(
        name="time",
        title="Time by phase" if seconds else "Time per step",
        axis="seconds per step",
        reading=_time_reading(runs, seconds),
        curves=seconds or (Curve(metric=_STEP_SECONDS, label="step", told="mean"),),
    )
    return memory, time


def _memory_reading(runs: list[RunRecord], peaks: Sequence[Curve]) -> str:
    counted = _counted(runs)
    sentences = {
        "What tensors held at most.": counted == {"tensors"},
        "The whole process at its highest, libraries and data included.": counted == {"process"},
        "On a GPU what tensors held at most, on a CPU the whole process.": len(counted) > 1,
        "It should be flat after the first steps, but for what the length of completions asks for.": bool(peaks),
        "It never falls, and should be level after the first steps, unless completions get longer.": not peaks,
        "Dashed: what the run may use, the card's context included, where --gpu-memory says it.": counted
        == {"tensors"},
        "Curves of a small model lie on one another.": counted == {"process"} and len(peaks) > 1,
        _windows_told(runs, "highest"): bool(peaks),
    }
    return _those_that_hold(sentences)


def _time_reading(runs: list[RunRecord], seconds: Sequence[Curve]) -> str:
    looks = any(curve.label == "looking" for curve in seconds)
    is_looked_at_before = any(iterations_of(run) > 1 for run in runs)
    sentences = {
        "Sampling grows with the length of completions.": bool(seconds),
        "Looking is the update's own forward pass where a group goes through the model at once; updating is then the "
        "backward pass and the optimizer.": looks and not is_looked_at_before,
        "Looking is one pass before the first of several updates.": looks and is_looked_at_before,
        "Whole steps.": not seconds,
        "A run's own report tells its phases apart.": not seconds
        and all(_by_phase(_PHASE_SECONDS, run.metrics) for run in runs),
        _windows_told(runs, "mean"): True,
    }
    return _those_that_hold(sentences)


def _those_that_hold(sentences: Mapping[str, bool]) -> str:
    return " ".join(sentence for sentence, holds in sentences.items() if holds and sentence)


def _counted(runs: list[RunRecord]) -> set[str]:
    """What these runs count as memory: `tensors` on a GPU, the whole `process` on a CPU."""
    return {"process" if str(run.facts.get("device", "CPU")).startswith("CPU") else "tensors" for run in runs}


def _windows_told(runs: list[RunRecord], what: str) -> str:
    """That a point is one of several steps, where it is."""
    spans = {iterations_of(run) for run in runs}
    span = f"the {max(spans)} steps" if len(spans) == 1 else "num_iterations steps"
    return "" if spans <= {1} else f"Each value is the {what} of {span} up to it: only the first on a rollout samples."


def _by_phase(like: Curve, recorded: Mapping[str, Sequence[float]]) -> tuple[Curve, ...]:
    """A curve for each phase of which there is a value."""
    curves = (replace(like, metric=like.metric.format(phase), label=phase) for phase in PHASES)
    return tuple(curve for curve in curves if any(value == value for value in recorded.get(curve.metric, ())))
