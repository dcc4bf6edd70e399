"""A run in the making: what it works with, where it stands, and how a step comes to count.

State that a checkpoint keeps is only ever changed at the end of a step, so that whatever stops a run in between leaves
the last step's end to save.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vgpo_lite.card import adapter_card, adapter_companions, training_record
from vgpo_lite.checkpoint import Checkpoint, checkpoint_folder, checkpoints, generator_states, save_checkpoint
from vgpo_lite.costs import Costs
from vgpo_lite.errors import DataError, NonFiniteError, NothingLearnedError
from vgpo_lite.evaluation import measured_accuracy
from vgpo_lite.identity import identity
from vgpo_lite.invariants import AdaptersMoved
from vgpo_lite.listening import RunSummary
from vgpo_lite.memory import counts_process
from vgpo_lite.models.lora import adapter_state, place_adapter
from vgpo_lite.processes import team
from vgpo_lite.progress import Progress
from vgpo_lite.report import refresh_report
from vgpo_lite.storage import replace_file
from vgpo_lite.windows import window_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Accuracy, Prompt, StepReport
    from vgpo_lite.engine import DecodeProgress
    from vgpo_lite.engine.optimizer import LossScale
    from vgpo_lite.journal import Journal
    from vgpo_lite.listening import Listener
    from vgpo_lite.ordering import PromptOrder
    from vgpo_lite.preparation import Workbench
    from vgpo_lite.recording import Recorder
    from vgpo_lite.tracking import Tracker
    from vgpo_lite.windows import Window

_BAD_STEPS_IN_A_ROW = 3  # promise: three steps that are not finite stop a run
_RECENT_STEPS = 20  # of which the time left is told: enough to even out steps, few enough to follow longer completions


@dataclass(kw_only=True)
class Run:
    """A run in the making: what it works with, where it stands and where it writes.

    While an optimizer moves the adapters they belong to no step: `is_settled` is then False, and nothing is saved. The
    process-wide generators, which a reward function may draw from, and sizes that shrank because memory ran out are
    saved as they were at the last step's end.
    """

    bench: Workbench
    output: Path
    recorder: Recorder
    listener: Listener
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale
    order: PromptOrder
    tracker: Tracker
    journal: Journal
    progress: Progress = field(default_factory=Progress)
    pending: Window | None = None
    first_step: int = 1
    adapters_moved: AdaptersMoved = field(init=False)
    costs: Costs = field(init=False)
    step_seconds: list[float] = field(default_factory=list)
    damaged_rows: set[int] = field(default_factory=set)
    is_checked: bool = False
    is_settled: bool = True
    generators: Mapping[str, Tensor] = field(default_factory=generator_states)
    shrunk_sizes: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.adapters_moved = AdaptersMoved(self.bench.policy)
        self.costs = Costs(self.bench.policy.device)

    @property
    def config(self) -> RunConfig:
        """The run's settings."""
        return self.bench.config

    @property
    def unfinished(self) -> bool:
        """Whether there are steps left to do."""
        return self.progress.step < self.config.max_steps

    @property
    def has_fresh_adapter(self) -> bool:
        """Whether the adapter is still the one it was born as, which changes nothing."""
        return self.config.adapter is None and self.progress.updated_steps == 0

    def prompt_at(self, place: int) -> Prompt:
        """The prompt of draw `place`."""
        return self.bench.prompt(self.bench.train, self.order.row(place))

    def next_prompts(self, draws: int, count: int) -> tuple[list[int], list[Prompt], int]:
        """The next prompts after `draws`; a row that turns out damaged behind its headers is told and passed over.

        Returns:
            Their places, the prompts, and how many have been drawn by then.

        Raises:
            DataError: More rows are damaged than `data.max_bad_rows` allows.
        """
        places: list[int] = []
        prompts: list[Prompt] = []
        while len(prompts) < count:
            self.bench.stop.poll()
            try:
                prompts.append(self.prompt_at(draws))
                places.append(draws)
            except DataError as error:
                self._pass_over(draws, error)
            draws += 1
        return places, prompts, draws

    def _pass_over(self, place: int, error: DataError) -> None:
        self.damaged_rows.add(self.order.row(place))
        rows = len(self.bench.train)
        if len(self.damaged_rows) > self.config.data.max_bad_rows * rows or len(self.damaged_rows) == rows:
            raise error
        self.recorder.event("row_passed_over", place=place, reason=str(error))
        self.listener.noted(f"passed over: {error}")

    def decoding(self, progress: DecodeProgress) -> None:
        """Between decoding steps: tell who watches, and stop if a signal came."""
        self.listener.progressed("rollout", progress.done_tokens, progress.limit_tokens)
        self.bench.stop.poll()

    def complete(self, report: StepReport, window: Window, *, applied: bool) -> Window:
        """Make a step count: advance the state, record it, and save when it is time.

        Returns:
            The window as it stands after the step.

        Raises:
            NonFiniteError: It is the third step in a row whose gradient was not finite.
        """
        seconds = report.metrics["time/step_seconds"]
        self.step_seconds.append(seconds)
        useful = window.useful if window.updates == 0 else ()
        over = not window.useful or window.updates + 1 >= self.config.num_iterations
        moved = applied and report.metrics["policy/grad_norm"] > 0 and report.metrics["policy/learning_rate"] > 0
        explained = bool(window.useful) and self.loss_scale.after_step(finite=applied)
        failed = bool(window.useful) and not applied and not explained
        self.progress = Progress(
            step=report.step,
            draws=window.draws,
            updated_steps=self.progress.updated_steps + moved,
            useful_groups=self.progress.useful_groups + len(useful),
            bad_steps=self.progress.bad_steps + 1 if failed else (0 if window.useful else self.progress.bad_steps),
            before=self.progress.before,
        )
        after = replace(window, updates=window.updates + 1)
        self.pending = None if over else after
        self.recorder.step(report)
        self.tracker.log(report.step, report.metrics)
        every, steps = self.config.save_completions_every, range(report.step, report.step + self.config.num_iterations)
        if window.updates == 0 and (report.step == 1 or any(step % every == 0 for step in steps)):
            groups, rewards = zip(*((s.group, s.rewards) for s in window.sampled), strict=True)
            self.recorder.completions(report.step, groups, rewards)
        self._keep_surroundings()
        self.is_settled = True  # only now: a step that is saved has its records
        self.listener.stepped(report, self.seconds_left)
        if failed:
            self.recorder.event("step_skipped", step=report.step, reason="the gradient is not finite")
            self.listener.noted(f"step {report.step} skipped: its gradient is not finite")
        if self.progress.bad_steps >= _BAD_STEPS_IN_A_ROW:
            raise NonFiniteError(
                f"the gradient was not finite in {_BAD_STEPS_IN_A_ROW} steps in a row (up to step {report.step}); the "
                "weights are those of the last finite step. Lower learning_rate, or set dtype=float32."
            )
        if report.step % self.config.checkpoint.every == 0 and self.unfinished:
            self.save()
        return after

    def _keep_surroundings(self) -> None:
        """Keep for a checkpoint what changes within a step and is no part of it."""
        self.generators = generator_states()
        self.shrunk_sizes = self.bench.engine.shrunk_sizes()

    @property
    def seconds_left(self) -> float:
        """Estimate from the mean of the last twenty steps or so; in whole windows, as one step of each samples."""
        length, known = self.config.num_iterations, self.step_seconds
        windows = min(math.ceil(_RECENT_STEPS / length), len(known) // length)
        recent = known[-windows * length :]  # all there are where no window is whole
        return statistics.fmean(recent) * (self.config.max_steps - self.progress.step) if recent else 0.0

    def save(self) -> Path:
        """Write a checkpoint of the last step's end, unless it is there already, or another process does."""
        folder = checkpoint_folder(self.output / "checkpoints", self.progress.step)
        if not team().is_first or folder in checkpoints(folder.parent):
            return folder
        save_checkpoint(
            folder.parent,
            Checkpoint(
                step=self.progress.step,
                progress={
                    **self.progress.state(),
                    "loss_scale": self.loss_scale.state(),
                    "max_steps": self.config.max_steps,
                    "shrunk_sizes": dict(self.shrunk_sizes),
                    "identity": identity(self.bench),
                },
                adapter=adapter_state(self.bench.policy),
                optimizer=self.optimizer.state_dict(),
                generators=self.generators,
                pending={} if self.pending is None else window_tensors(self.pending),
            ),
            keep=self.config.checkpoint.keep,
        )
        self.recorder.event("checkpoint", step=self.progress.step, folder=folder.name)
        refresh_report(self.output, is_over=False, on_failure=self.listener.noted)
        return folder

    def measure_before(self) -> None:
        """Measure once before the first step of a run, and keep the result where a resumed run finds it."""
        if self.progress.step == 0 and self.progress.before is None:
            self.progress = replace(self.progress, before=self.measure("before"))
            self._keep_surroundings()
            self.save()

    def measure(self, name: str) -> Accuracy | None:
        """Held-out accuracy as the adapter stands, told to who watches and recorded."""
        accuracy = measured_accuracy(
            self.bench,
            poll=self.bench.stop.poll,
            progress=lambda done, total: self.listener.progressed(f"measuring accuracy {name}", done, total),
        )
        if accuracy is not None:
            self.listener.evaluated(name, accuracy)
            self.recorder.event("evaluated", name=name, **asdict(accuracy))
            self.tracker.log(self.progress.step, {"eval/accuracy": accuracy.share})
        return accuracy

    def finish(self, after: Accuracy | None) -> RunSummary:
        """Save the adapter for use, and say how the run ended.

        Raises:
            NothingLearnedError: No group of the whole run told right from wrong: the adapter is what it was.
        """
        self.save()
        summary = RunSummary(
            output=str(self.output),
            steps=self.progress.step,
            updated_steps=self.progress.updated_steps,
            before=self.progress.before,
            after=after,
            seconds=time.monotonic() - self.started,
            peak_bytes=self.costs.highest_of_run_bytes,
            peak_is_of_process=counts_process(self.bench.policy.device),
            predicted_peak_bytes=self.bench.memory.peak_bytes,
        )
        if self.progress.useful_groups == 0:
            raise NothingLearnedError(
                f"{self.progress.step} steps, and in no group did one completion earn more than another: nothing was "
                "learned and no adapter is written. Check the answers in completions/, ask easier questions, or raise "
                "num_generations or temperature."
            )
        if self.progress.updated_steps == 0:
            raise NothingLearnedError(
                f"{self.progress.step} steps, and none moved the adapter: the learning rate is "
                f"{self.config.learning_rate:g}, the loss scale {self.loss_scale.value:g}. In float16 the first steps "
                "may only find the scale: raise max_steps. No adapter is written."
            )
        if team().is_first:
            record = training_record(self.bench, summary)
            place_adapter(self.bench.policy, self.output / "adapter", adapter_companions(record))
            replace_file(self.output / "README.md", adapter_card(record, source="adapter").encode())
        facts = {key: value for key, value in asdict(summary).items() if key != "output"}
        self.recorder.event("finished", **facts)
        self.recorder.status("finished", exit_code=0, **facts)
        self.listener.finished(summary)
        return summary
