"""A run from its first file to its last: opening or resuming it, and saying why it ended.

The trainer decides what a step does; this module decides in what directory, from which checkpoint, and what is written
down when something ends it early.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vgpo_lite.checkpoint import (
    Checkpoint,
    checkpoints,
    is_whole,
    restore_generators,
)
from vgpo_lite.config.writing import flat_values, write_config
from vgpo_lite.engine.optimizer import LossScale, learning_rate, make_optimizer
from vgpo_lite.errors import ConfigError, RewardError, StorageError, ending
from vgpo_lite.failpoints import check_failpoints
from vgpo_lite.identity import deciding_settings, identity, refuse_changes, refuse_other_views
from vgpo_lite.journal import FOLDER, Journal
from vgpo_lite.launch import launched, relaunched
from vgpo_lite.listening import RunPlan, SilentListener
from vgpo_lite.memory import device_in_words
from vgpo_lite.models import chosen_device
from vgpo_lite.models.lora import load_adapter_state
from vgpo_lite.ordering import PromptOrder
from vgpo_lite.preparation import open_workbench
from vgpo_lite.processes import joined, team
from vgpo_lite.progress import Progress
from vgpo_lite.recording import RunLock, RunRecorder, SilentRecorder, recorded_values, refuse_existing_run
from vgpo_lite.report import refresh_report
from vgpo_lite.resuming import leave_behind, refuse_other_version, shared_checkpoint
from vgpo_lite.run import Run
from vgpo_lite.storage import discard_folder, json_bytes, replace_file
from vgpo_lite.tracking import Tracker, check_tracker
from vgpo_lite.windows import restored_window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.engine import Backoff
    from vgpo_lite.listening import Listener
    from vgpo_lite.preparation import Workbench
    from vgpo_lite.recording import Recorder


@contextlib.contextmanager
def open_run(config: RunConfig, *, listener: Listener | None = None, resume: str = "never") -> Iterator[Run]:
    """Open the run directory and everything the run works with; save and say why when something ends it early.

    Args:
        config: The resolved settings.
        listener: Who watches; None: nobody.
        resume: `never` (the directory must be new), `auto` (the newest whole checkpoint, if there is one), or a
            checkpoint folder.

    Raises:
        ConfigError: The directory already holds a run and `resume` is `never`, or another process uses it.
        CheckpointError: There are checkpoints but none is whole, or they belong to another model, other data or other
            settings; the directory is then as it was, but for its status.json.
        InterruptedRunError: A signal came; the state is saved.
        VgpoLiteError: Whatever else stops a run deliberately.
        BaseException: Anything else. However a run ends early, status.json says why, with the exit code, the last
            checkpoint and the command that continues it.
    """
    output = Path(config.output_folder)
    listener = SilentListener() if listener is None else listener
    if resume == "never":
        refuse_existing_run(output)
    check_tracker(config.report_to)
    check_failpoints()
    several_cards = launched().count > 1 and chosen_device(config.device).type == "cuda"
    with joined(on_cards=several_cards), RunLock(output) if team().is_first else contextlib.nullcontext():
        recorder = RunRecorder(output) if team().is_first else SilentRecorder()
        listener = listener if team().is_first else SilentListener()
        run: Run | None = None
        try:
            recorder.status("starting")
            _refuse_idle_processes(config)
            checkpoint, notes = shared_checkpoint(output, resume)
            if checkpoint is not None:
                refuse_other_version(checkpoint)
                refuse_changes(checkpoint.progress["identity"]["settings"], deciding_settings(config), "settings")
            told = partial(_write_backoff, recorder)
            with open_workbench(config, purpose="train", listener=listener, on_backoff=told) as bench:
                run = _begun(bench, output=output, recorder=recorder, listener=listener, checkpoint=checkpoint)
                listener.planned(_plan(run, (*notes, *_extension(run, checkpoint))))
                recorder.status("running", pid=os.getpid(), first_step=run.first_step)
                recorder.event("started", device=device_in_words(bench.policy.device), first_step=run.first_step)
                yield run
        except BaseException as error:
            if team().is_first:
                _end_early(recorder, run, error, config)
            _write_evidence(error, output)
            raise
        finally:
            if run is not None:
                run.tracker.close()
                if team().is_first:
                    refresh_report(output, is_over=True, on_failure=listener.noted)
            recorder.close()


def _refuse_idle_processes(config: RunConfig) -> None:
    """Raise a ConfigError where some process would never have a group."""
    count = team().count
    if config.prompts_per_step < count:
        raise ConfigError(
            f"{count} processes share the groups of a step, but prompts_per_step is {config.prompts_per_step}: some "
            f"would have nothing to do. Set prompts_per_step={count} or more, or launch fewer processes."
        )


def _write_backoff(recorder: Recorder, backoff: Backoff) -> None:
    recorder.event(backoff.event, **asdict(backoff))


def _begun(
    bench: Workbench,
    *,
    output: Path,
    recorder: Recorder,
    listener: Listener,
    checkpoint: Checkpoint | None,
) -> Run:
    if checkpoint is not None:
        refuse_changes(checkpoint.progress["identity"], identity(bench), "model or data")
    refuse_other_views(bench)
    writes = team().is_first

    def journal_failed(reason: str) -> None:
        recorder.event("journal_off", reason=reason)
        listener.noted(reason)

    optimizer = make_optimizer(list(bench.policy.adapters().values()), bench.config)
    run = Run(
        bench=bench,
        output=output,
        recorder=recorder,
        listener=listener,
        optimizer=optimizer,
        loss_scale=LossScale(enabled=bench.policy.dtype == torch.float16),
        order=PromptOrder(seed=bench.config.seed, rows=len(bench.train)),
        tracker=Tracker(
            bench.config.report_to if writes else "none",
            folder=output,
            settings=flat_values(bench.config),
            on_failure=listener.noted,
        ),
        journal=Journal(output / FOLDER, bench, on_failure=journal_failed, is_kept=writes),
    )
    if checkpoint is not None:
        _restore(run, checkpoint)
    if writes:
        _prepare_folder(run, checkpoint)
    return run


def _prepare_folder(run: Run, checkpoint: Checkpoint | None) -> None:
    """Make the run directory that of a run which goes on from here."""
    output, done = run.output, run.progress.step
    if checkpoint is not None:
        leave_behind(output / "checkpoints", checkpoint.step)
    run.journal.forget_after(done)
    run.recorder.forget_after(done)
    run.step_seconds = recorded_values(output, "time/step_seconds")
    run.costs.earlier_bytes = int(max(recorded_values(output, "memory/peak_bytes"), default=0))
    write_config(run.config, output / "config.yaml")
    if checkpoint is not None:
        run.recorder.event("resumed", step=checkpoint.step, shrunk_sizes=run.shrunk_sizes)
    if run.unfinished and (output / "adapter").exists():
        discard_folder(output / "adapter")  # that of an earlier end of this run, which is not the end any more
        (output / "README.md").unlink(missing_ok=True)


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    kept = dict(checkpoint.progress)
    load_adapter_state(run.bench.policy, checkpoint.adapter)
    run.optimizer.load_state_dict(dict(checkpoint.optimizer))
    run.loss_scale.restore(kept["loss_scale"])
    restore_generators(checkpoint.generators)
    run.generators = checkpoint.generators
    run.shrunk_sizes = kept["shrunk_sizes"]
    if stay := run.bench.engine.restore_sizes(kept["shrunk_sizes"]):
        run.listener.noted(f"memory ran out before, so sizes stay small: {'; '.join(stay)}")
    run.progress = Progress.restored(checkpoint.step, kept)
    run.first_step = checkpoint.step + 1
    if checkpoint.pending:
        run.pending = restored_window(checkpoint.pending, prompt_at=run.prompt_at, text_of=run.bench.policy.text_of)


def _extension(run: Run, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    """What another `max_steps` means for a run that goes on: the learning rate follows the new schedule from here."""
    config, done = run.config, run.progress.step
    before = config.max_steps if checkpoint is None else checkpoint.progress["max_steps"]
    if before == config.max_steps:
        return ()
    run.recorder.event("extended", max_steps_before=before, max_steps=config.max_steps)
    told = f"max_steps was {before} and is now {config.max_steps}"
    if not run.unfinished:
        return (f"{told}: no step is left after step {done}",)
    last = learning_rate(done, config.model_copy(update={"max_steps": before})) if done else 0.0
    return (
        f"{told}: the learning rate follows the {config.lr_scheduler_type} schedule over {config.max_steps} steps from "
        f"here on; it was {last:.3g} in step {done} and is {learning_rate(done + 1, config):.3g} in step {done + 1}",
    )


def _plan(run: Run, notes: tuple[str, ...]) -> RunPlan:
    bench = run.bench
    adapters = sum(parameter.numel() for parameter in bench.policy.adapters().values())
    return RunPlan(
        rows_kept=len(bench.train),
        rows_dropped=bench.report.counts,
        rows_held_out=min(len(bench.held_out), run.config.eval.limit),
        trainable_parameters=adapters,
        total_parameters=bench.policy.parameter_count(),
        model_bytes=bench.policy.weight_bytes(),
        max_steps=run.config.max_steps,
        first_step=run.first_step,
        device=device_in_words(bench.policy.device),
        memory=bench.memory,
        seconds_left=run.seconds_left if run.step_seconds else None,
        notes=(*bench.notes, *notes),
    )


def _end_early(recorder: Recorder, run: Run | None, error: BaseException, config: RunConfig) -> None:
    """Save what the last step left, if the run got that far, and write down why it ended."""
    end, output = ending(error), Path(config.output_folder)
    reason = end.reason
    if run is not None and run.is_settled and end.exit_code != StorageError.exit_code:
        try:
            run.save()
        except Exception as second:  # noqa: BLE001  whatever goes wrong now, the first error is the one to tell
            reason += f" (and the last step could not be saved: {second})"
    with contextlib.suppress(StorageError):  # the disk may be what failed; what can still be written, is
        recorder.status(end.state, exit_code=end.exit_code, reason=reason, **_continuation(output, config))
    with contextlib.suppress(StorageError):
        recorder.event(end.state, exit_code=end.exit_code, reason=reason)


def _write_evidence(error: BaseException, output: Path) -> None:
    """Keep what a reward function failed on, in whichever process it did."""
    if isinstance(error, RewardError) and error.evidence:
        with contextlib.suppress(StorageError):
            replace_file(output / "reward_error.json", json_bytes(error.evidence))


def _continuation(output: Path, config: RunConfig) -> dict[str, object]:
    """The last good checkpoint and the command that goes on from it; neither where there is none."""
    whole = [folder for folder in checkpoints(output / "checkpoints") if is_whole(folder)]
    if not whole:
        return {"checkpoint": None, "continue_with": None}
    words = ["train", "--recipe", str(output / "config.yaml"), "--output", str(output), "--resume", "auto"]
    words += ["--set", "trust_remote_code=true"] if config.trust_remote_code else []  # no recipe may say it
    command = f"{relaunched('vgpo-lite')} {shlex.join(words)}"
    return {"checkpoint": str(whole[-1].relative_to(output)), "continue_with": command}
