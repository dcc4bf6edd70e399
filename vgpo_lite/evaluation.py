"""Accuracy on held-out rows, with its uncertainty: one greedy completion per row, graded like a training completion."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vgpo_lite.data_types import Accuracy, Sampling
from vgpo_lite.errors import DataError
from vgpo_lite.failpoints import failpoint
from vgpo_lite.preparation import open_workbench
from vgpo_lite.processes import Told, team

if TYPE_CHECKING:
    from collections.abc import Callable

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.listening import Listener
    from vgpo_lite.preparation import Workbench

_Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share, in [0, 1] (Wilson 1927): sound at 0, at 1 and for few answers.

    >>> low, high = wilson_interval(5, 10)
    >>> round(low, 3), round(high, 3)
    (0.237, 0.763)

    Raises:
        ValueError: Nothing was counted, or more were right than counted.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} right answers of {total} are no share")
    share, spread = right / total, _Z_95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = _Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def measured_accuracy(
    bench: Workbench, *, poll: Callable[..., None], progress: Callable[[int, int], None] | None = None
) -> Accuracy | None:
    """Greedy accuracy of the policy on the first `eval.limit` held-out rows; None where none has an answer.

    Several processes share the batches out; all learn the result.

    Args:
        bench: The opened parts of a run.
        poll: Called between decoding steps and while grading; may raise to stop.
        progress: Called with rows done and rows in all.
    """
    total = min(bench.config.eval.limit, len(bench.held_out))
    if total == 0:
        return None
    greedy = Sampling(num_generations=1, max_completion_length=bench.config.max_completion_length, temperature=0.0)

    def answered() -> Told:
        return Told(facts=_counts(bench, greedy, total, poll=poll, progress=progress))

    told = [part.facts for part in team().gathered(answered)]
    right, graded = (sum(counts[name] for counts in told) for name in ("right", "graded"))
    if graded == 0:
        return None
    low, high = wilson_interval(right, graded)
    return Accuracy(right=right, total=graded, low=low, high=high)


def _counts(
    bench: Workbench,
    greedy: Sampling,
    total: int,
    *,
    poll: Callable[..., None],
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Right and graded answers of this process's batches."""
    right = graded = 0
    for start in team().own(range(0, total, bench.config.eval.batch_size)):
        failpoint("evaluate.batch")
        rows = range(start, min(start + bench.config.eval.batch_size, total))
        prompts = [bench.prompt(bench.held_out, row) for row in rows]
        groups = bench.engine.sample(prompts, greedy, places=list(rows), on_step=poll)
        bench.engine.forget()
        texts = [group.texts[0] for group in groups]
        verdicts = bench.grader.correct(texts, [prompt.sample.answer for prompt in prompts])
        right += sum(verdict == 1.0 for verdict in verdicts)
        graded += sum(verdict is not None for verdict in verdicts)
        if progress is not None:
            progress(rows.stop, total)
    return {"right": right, "graded": graded}


def evaluate(config: RunConfig, *, listener: Listener | None = None) -> Accuracy:
    """Measure a model, with its adapter where `config.adapter` names one, on the held-out rows of a data set.

    Raises:
        DataError: There is nothing to measure on.
        VgpoLiteError: The model, the data or the machine cannot be used; the class tells which.
    """
    with open_workbench(config, purpose="measure", listener=listener) as bench:
        accuracy = measured_accuracy(
            bench,
            poll=bench.stop.poll,
            progress=None if listener is None else lambda done, total: listener.progressed("eval", done, total),
        )
        if accuracy is None:
            raise DataError(
                f"nothing to measure on: {len(bench.held_out)} held-out rows and eval.limit {config.eval.limit}; "
                "set eval.limit above 0, or name data.eval_split"
            )
        if listener is not None:
            listener.evaluated("accuracy", accuracy)
        return accuracy
