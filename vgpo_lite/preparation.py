"""Everything a run works with, opened and checked, what fails cheapest first: rows, golds, model, prompts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from vgpo_lite.datasets import open_rows, refuse_if_too_bad
from vgpo_lite.engine import make_engine
from vgpo_lite.interruption import StopFlag
from vgpo_lite.listening import SilentListener
from vgpo_lite.memory import cpu_threads, enforce_limit, memory_limit
from vgpo_lite.models import chosen_device, load_policy, model_files, processor_alone
from vgpo_lite.planning import CONTEXT_BYTES, Job, architecture_of, fitted, wanted_limit
from vgpo_lite.processes import Told, team
from vgpo_lite.prompts import encode_prompt, largest_prompt, prompt_lengths, prompts_fit, prompts_in_order
from vgpo_lite.rewards import Grader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Outline, Prompt
    from vgpo_lite.datasets import DataReport, Rows
    from vgpo_lite.engine import Backoff, PatientEngine
    from vgpo_lite.listening import Listener, MemoryPlan
    from vgpo_lite.models import Policy
    from vgpo_lite.planning import Architecture
    from vgpo_lite.prompts import Processor

UNGRADABLE = "gold does not grade itself"
IMAGES_MOVED = "text between images, which the model's chat template moves"
TOO_LONG = "prompt longer than data.max_prompt_length"


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """The opened parts of a run.

    Attributes:
        config: The settings they were opened with.
        policy: The model with its adapters.
        engine: The policy at work: samples, looks, updates.
        grader: Rewards.
        stop: Whether a signal asked to stop.
        train: Rows that train, unusable ones left out; empty when only measuring.
        held_out: Rows that measure.
        data_commit: Commit of the data set on the hub; None for rows that come from no hub.
        report: Rows left out, with reasons.
        memory: What the run is going to hold.
        notes: What the user should read before the run starts.
    """

    config: RunConfig
    policy: Policy
    engine: PatientEngine
    grader: Grader
    stop: StopFlag
    train: Rows
    held_out: Rows
    data_commit: str | None
    report: DataReport
    memory: MemoryPlan
    notes: tuple[str, ...]

    def prompt(self, rows: Rows, index: int) -> Prompt:
        """Encode one row for the policy."""
        return encode_prompt(rows[index], self.policy.processor, self.config.data)


@contextlib.contextmanager
def open_workbench(
    config: RunConfig,
    *,
    purpose: Literal["train", "measure"] = "train",
    listener: Listener | None = None,
    on_backoff: Callable[[Backoff], None] | None = None,
) -> Iterator[Workbench]:
    """Open data, graders and model, and leave out every row that cannot be used; all is closed at the end.

    Args:
        config: The resolved settings.
        purpose: Whether rows shall train and be measured, or be measured alone.
        listener: Told what is being opened, and of sizes that shrink because memory ran out; None: nobody.
        on_backoff: Told of such sizes too.

    Raises:
        InterruptedRunError: A signal came.
        VgpoLiteError: The data, the model or the machine cannot be used; the class tells which.
    """
    listener = SilentListener() if listener is None else listener
    with StopFlag() as stop, Grader(config.reward, poll=stop.poll) as grader:

        def checking(done: int, total: int) -> None:
            stop.poll()
            listener.progressed("checking rows", done, total)

        def shrunk(backoff: Backoff) -> None:
            listener.noted(backoff.in_words())
            if on_backoff is not None:
                on_backoff(backoff)

        grader.warm_up()
        split = open_rows(config, purpose=purpose, progress=checking)
        report, gradable = split.report, {}
        for name, rows in (("train", split.train), ("held out", split.held_out)):
            gradable[name], report = gradable_rows(rows, grader, report, config)
        refuse_what_does_not_fit(config, gradable, trains=purpose == "train")
        listener.noted(f"loading {config.model}")
        policy = loaded_policy(config)
        stop.poll()
        fitting = {}
        for name, rows in gradable.items():
            ordered, report = ordered_rows(rows, policy.processor, config, report)
            fitting[name], report = fitting_rows(ordered, policy.processor, config, report)
        refuse_if_too_bad(report, max_bad_rows=config.data.max_bad_rows, apart=(UNGRADABLE,))
        model = architecture_of(policy.family.bare(policy.model).config.to_dict(), policy.model_id)
        job = _job(model, policy.processor, config, fitting, device=policy.device, trains=purpose == "train")
        config, memory = fitted(job, limit_bytes=memory_limit(policy.device, wanted_limit(config)))
        yield Workbench(
            config=config,
            policy=policy,
            engine=make_engine(policy, config, job=job.with_config(config), on_backoff=shrunk),
            grader=grader,
            stop=stop,
            train=fitting["train"],
            held_out=fitting["held out"],
            data_commit=split.commit,
            report=report,
            memory=memory,
            notes=split.notes,
        )


def loaded_policy(config: RunConfig) -> Policy:
    """Load the policy, on a GPU under the run's limit; on a CPU torch gets as many threads as suit its size."""
    enforce_limit(chosen_device(config.device), wanted_limit(config), context_bytes=CONTEXT_BYTES)
    policy = load_policy(config)
    if policy.device.type == "cpu":
        torch.set_num_threads(cpu_threads(config.memory.cpu_threads, parameters=policy.parameter_count()))
    return policy


def gradable_rows(rows: Rows, grader: Grader, report: DataReport, config: RunConfig) -> tuple[Rows, DataReport]:
    """The rows whose own answer would be graded right; nothing else could teach.

    A row without an answer passes where no reward of the run is about answers.
    """
    outlines = list(rows.outlines())
    verdicts = _self_checked([outline.answer for outline in outlines], grader)
    if "accuracy" not in config.reward.functions:
        verdicts = [good or outline.answer is None for good, outline in zip(verdicts, outlines, strict=True)]
    return _keep(rows, outlines, verdicts, report, UNGRADABLE, lambda outline: f"answer {outline.answer!r}")


def _self_checked(answers: Sequence[object], grader: Grader) -> list[bool]:
    """Each answer's verdict, shared out to the processes of a run: all of them then keep the same rows."""
    told = team().gathered(lambda: Told(facts={"verdicts": grader.self_check(team().own(answers))}))
    verdicts = [False] * len(answers)
    for rank, part in enumerate(told):
        verdicts[rank :: len(told)] = part.facts["verdicts"]
    return verdicts


def ordered_rows(rows: Rows, processor: Processor, config: RunConfig, report: DataReport) -> tuple[Rows, DataReport]:
    """The rows whose images stay where their text speaks of them, by the model's chat template."""
    outlines = list(rows.outlines())
    ordered = prompts_in_order(outlines, processor, config.data)
    return _keep(rows, outlines, ordered, report, IMAGES_MOVED, lambda outline: repr(outline.question))


def fitting_rows(rows: Rows, processor: Processor, config: RunConfig, report: DataReport) -> tuple[Rows, DataReport]:
    """The rows whose prompt is no longer than the budget; nothing is ever cut."""
    outlines = list(rows.outlines())
    fitting = prompts_fit(outlines, processor, config.data)

    def found(outline: Outline) -> str:
        [length] = prompt_lengths([outline], processor, config.data)
        return f"{length:,} tokens, at most {config.data.max_prompt_length:,}"

    return _keep(rows, outlines, fitting, report, TOO_LONG, found)


def refuse_what_does_not_fit(config: RunConfig, rows: Mapping[str, Rows], *, trains: bool) -> None:
    """Stop before weights are fetched and loaded where the run would not fit; nothing is known without a limit.

    Args:
        config: The settings.
        rows: Rows that train and that measure, by `train` and `held out`.
        trains: Whether the run trains.

    Raises:
        HardwareError: It would not; the message names settings that would.
    """
    device = chosen_device(config.device)
    limit = memory_limit(device, wanted_limit(config))
    if limit is not None:
        files = model_files(config.model_id or config.model, revision=config.revision, weights=False)
        model = architecture_of(files.config, files.model_id)
        fitted(_job(model, processor_alone(config), config, rows, device=device, trains=trains), limit_bytes=limit)


def _job(
    model: Architecture,
    processor: Processor,
    config: RunConfig,
    rows: Mapping[str, Rows],
    *,
    device: torch.device,
    trains: bool,
) -> Job:
    """The run as the plan of memory sees it, with the largest prompt of the rows."""
    outlines = (outline for part in rows.values() for outline in part.outlines())
    return Job(
        model=model,
        config=config,
        largest=largest_prompt(outlines, processor, config.data),
        device=device.type,
        eval_rows=len(rows["held out"]),
        trains=trains,
    )


def _keep(
    rows: Rows,
    outlines: Sequence[Outline],
    wanted: Sequence[bool],
    report: DataReport,
    reason: str,
    found: Callable[[Outline], str],
) -> tuple[Rows, DataReport]:
    """The wanted rows, and the report with the others; `found` says what the first of these holds."""
    names = [outline.sample_id for outline, keep in zip(outlines, wanted, strict=True) if not keep]
    if not names:
        return rows, report
    first = next(outline for outline, keep in zip(outlines, wanted, strict=True) if not keep)
    return rows.keep(np.flatnonzero(wanted)), report.dropping(reason, names, found(first))
