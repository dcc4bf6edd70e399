"""A run from its first file to its last: opening or resuming it, and saying why it ended.

The trainer decides what a step does; this module decides in what directory, from which checkpoint, and what is written
down when something ends it early.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vgpo_lite.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    restore_generators,
    sweep,
)
from vgpo_lite.config.writing import flat_values, write_config
from vgpo_lite.data_types import Accuracy, RunPlan, SilentListener
from vgpo_lite.engine.optimizer import LossScale, make_optimizer
from vgpo_lite.errors import (
    CheckpointError,
    InterruptedRunError,
    InvariantError,
    RewardError,
    StorageError,
    VgpoLiteError,
)
from vgpo_lite.failpoints import check_failpoints
from vgpo_lite.journal import FOLDER, Journal
from vgpo_lite.memory import device_in_words
from vgpo_lite.models.lora import load_adapter_state
from vgpo_lite.ordering import PromptOrder
from vgpo_lite.preparation import open_workbench
from vgpo_lite.recording import RunLock, RunRecorder, forget_after, recorded_values, refuse_existing_run
from vgpo_lite.run import Progress, Run, identity
from vgpo_lite.storage import discard_folder, json_bytes, replace_file
from vgpo_lite.tracking import Tracker, check_tracker
from vgpo_lite.windows import restored_window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Listener
    from vgpo_lite.preparation import Workbench

# After these the last step's end is not to be had: the disk refuses, or the adapter moved within a step that failed.
_NOT_SAVED = (StorageError, InvariantError)


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
        CheckpointError: There are checkpoints but none is whole, or they belong to other settings.
        InterruptedRunError: A signal came; the state is saved.
        VgpoLiteError: Whatever else stops a run deliberately; status.json says what.
    """
    output = Path(config.output_folder)
    listener = SilentListener() if listener is None else listener
    if resume == "never":
        refuse_existing_run(output)
    check_tracker(config.report_to)
    check_failpoints()
    with RunLock(output):
        checkpoint, notes = _found_checkpoint(output, resume)
        forget_after(output, 0 if checkpoint is None else checkpoint.step)
        recorder = RunRecorder(output)
        run: Run | None = None
        try:
            recorder.status("starting")
            write_config(config, output / "config.yaml")
            with open_workbench(config, purpose="train", listener=listener) as bench:
                run = _begun(bench, output=output, recorder=recorder, listener=listener, checkpoint=checkpoint)
                listener.planned(_plan(run, notes))
                recorder.status("running", pid=os.getpid(), first_step=run.first_step)
                yield run
        except VgpoLiteError as error:
            _end_early(recorder, run, error, output)
            raise
        except BaseException as error:
            recorder.status("crashed", exit_code=1, reason=f"{type(error).__name__}: {error}", **_continuation(output))
            raise
        finally:
            if run is not None:
                run.tracker.close()
            recorder.close()


def _found_checkpoint(output: Path, resume: str) -> tuple[Checkpoint | None, tuple[str, ...]]:
    root = output / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    if resume == "never":
        return None, ()
    if resume != "auto":
        checkpoint = load_checkpoint(Path(resume))
        if Path(resume).resolve().parent == root.resolve():
            _leave_behind(root, checkpoint.step)
        return checkpoint, (f"resumed from {resume}, step {checkpoint.step}",)
    if not any(root.iterdir()):
        return None, ("nothing to resume yet: the run starts at step 1",)
    checkpoint, notes = newest_checkpoint(root)
    return checkpoint, (*notes, f"resumed after step {checkpoint.step}")


def _leave_behind(root: Path, step: int) -> None:
    """Discard checkpoints later than the one a run goes back to: they belong to steps that will be taken anew."""
    for folder in checkpoints(root):
        if folder.name > checkpoint_folder(root, step).name:
            discard_folder(folder)


def _begun(
    bench: Workbench, *, output: Path, recorder: RunRecorder, listener: Listener, checkpoint: Checkpoint | None
) -> Run:
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
            bench.config.report_to,
            folder=output,
            settings=flat_values(bench.config),
            on_failure=listener.noted,
        ),
        journal=Journal(output / FOLDER, bench),
    )
    if checkpoint is not None:
        _restore(run, checkpoint)
    run.journal.forget_after(run.progress.step)
    if run.unfinished and (output / "adapter").exists():
        discard_folder(output / "adapter")  # that of an earlier end of this run, which is not the end any more
    return run


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    kept = dict(checkpoint.progress)
    _refuse_other_run(kept["identity"], identity(run.bench))
    load_adapter_state(run.bench.policy, checkpoint.adapter)
    run.optimizer.load_state_dict(dict(checkpoint.optimizer))
    run.loss_scale.restore(kept["loss_scale"])
    restore_generators(checkpoint.generators)
    before = kept["before"]
    run.progress = Progress(
        step=checkpoint.step,
        draws=kept["draws"],
        updated_steps=kept["updated_steps"],
        useful_groups=kept["useful_groups"],
        bad_steps=kept["bad_steps"],
        before=None if before is None else Accuracy(**before),
    )
    run.first_step = checkpoint.step + 1
    run.step_seconds = recorded_values(run.output, "time/step_seconds")
    if checkpoint.pending:
        run.pending = restored_window(checkpoint.pending, prompt_at=run.prompt_at, text_of=run.bench.policy.text_of)
    run.recorder.event("resumed", step=checkpoint.step)


def _refuse_other_run(kept: dict[str, object], now: dict[str, object]) -> None:
    """Raise a CheckpointError that names what changed since the checkpoint was written."""
    flat_kept, flat_now = _flat(kept), _flat(now)
    changed = [
        f"{name.removeprefix('settings.')} was {flat_kept.get(name)!r} and is now {flat_now.get(name)!r}"
        for name in sorted(flat_kept.keys() | flat_now.keys())
        if flat_kept.get(name) != flat_now.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"this run cannot continue with other settings: {'; '.join(changed)}. Restore them, or start afresh with "
            "another --output."
        )


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    leaves: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


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


def _end_early(recorder: RunRecorder, run: Run | None, error: VgpoLiteError, output: Path) -> None:
    """Save what the last step left, if the run got that far, and write down why it ended."""
    interrupted = isinstance(error, InterruptedRunError)
    reason = str(error)
    if run is not None and not isinstance(error, _NOT_SAVED):
        try:
            run.save()
        except VgpoLiteError as second:
            reason += f" (and the last step could not be saved: {second})"
    state = "interrupted" if interrupted else "failed"
    with contextlib.suppress(StorageError):  # the disk may be what failed; what can still be written, is
        recorder.status(state, exit_code=error.exit_code, reason=reason, **_continuation(output))
    with contextlib.suppress(StorageError):
        recorder.event(state, exit_code=error.exit_code, reason=reason)
    if isinstance(error, RewardError) and error.evidence is not None:
        with contextlib.suppress(StorageError):
            replace_file(output / "reward_error.json", json_bytes(error.evidence))


def _continuation(output: Path) -> dict[str, object]:
    whole = checkpoints(output / "checkpoints")
    if not whole:
        return {"checkpoint": None, "continue_with": None}
    return {
        "checkpoint": str(whole[-1].relative_to(output)),
        "continue_with": shlex.join(
            ["vgpo-lite", "train", "--recipe", str(output / "config.yaml"), "--output", str(output), "--resume", "auto"]
        ),
    }
