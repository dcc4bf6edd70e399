"""From which checkpoint a run goes on."""

from __future__ import annotations

from pathlib import Path

from vgpo_lite.checkpoint import Checkpoint, checkpoint_folder, checkpoints, load_checkpoint, newest_checkpoint
from vgpo_lite.errors import CheckpointError
from vgpo_lite.processes import Told, team
from vgpo_lite.progress import Progress
from vgpo_lite.storage import discard_folder, sweep

_KEPT = Progress().state().keys() | {"identity", "max_steps", "loss_scale", "shrunk_sizes"}


def _found_checkpoint(output: Path, resume: str) -> tuple[Checkpoint | None, tuple[str, ...]]:
    root = output / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    for folder in (output, root, output / "completions"):
        sweep(folder)
    if resume == "never":
        return None, ()
    if resume != "auto":
        checkpoint = load_checkpoint(Path(resume))
        return checkpoint, (f"resumed from {resume}, step {checkpoint.step}",)
    if not any(root.iterdir()):
        return None, ("nothing to resume yet: the run starts at step 1",)
    checkpoint, notes = newest_checkpoint(root)
    return checkpoint, (*notes, f"resumed after step {checkpoint.step}")


def shared_checkpoint(output: Path, resume: str) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The first process looks for a checkpoint and sweeps; the others read the one that it found."""
    found: tuple[Checkpoint | None, tuple[str, ...]] = (None, ())

    def looked_for() -> Told:
        nonlocal found
        if team().is_first:
            found = _found_checkpoint(output, resume)
        return Told(facts={"step": None if found[0] is None else found[0].step})

    step = team().gathered(looked_for)[0].facts["step"]

    def read() -> Told:
        nonlocal found
        if not team().is_first and step is not None:
            folder = checkpoint_folder(output / "checkpoints", step) if resume == "auto" else Path(resume)
            found = (load_checkpoint(folder), ())
        return Told()

    team().gathered(read)
    return found


def leave_behind(root: Path, step: int) -> None:
    """Discard checkpoints later than where a run goes on: they are damaged, or of steps that will be taken anew."""
    for folder in checkpoints(root):
        if folder.name > checkpoint_folder(root, step).name:
            discard_folder(folder)


def refuse_other_version(checkpoint: Checkpoint) -> None:
    """Raise a CheckpointError where a checkpoint lacks what this version keeps in one."""
    missing = sorted(_KEPT - checkpoint.progress.keys())
    if missing:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} lacks {', '.join(missing)}: another version of vgpo-lite wrote "
            "it. Go on with that version, or start afresh with another --output."
        )
