"""The journal of a run that goes on: a page more with every step, and what the limits have no room for let go."""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import TYPE_CHECKING

from vgpo_lite.checkpoint import generator_states, state_bytes
from vgpo_lite.errors import CheckpointError, StorageError
from vgpo_lite.failpoints import failpoint
from vgpo_lite.journal.index import ADAPTERS, INDEX, Entry, adapter_file, index_bytes, read_index, within
from vgpo_lite.journal.pages import Before, page_bytes
from vgpo_lite.models.lora import adapter_state
from vgpo_lite.storage import replace_file, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from vgpo_lite.data_types import StepReport
    from vgpo_lite.preparation import Workbench
    from vgpo_lite.windows import LearnedGroup, Window


class Journal:
    """Writes a run's journal; every file in it is whole, and together they stay within the limit.

    A disk that refuses is told of once; the journal then lets its adapters go, to make room for checkpoints, and is
    left alone.

    Args:
        folder: The journal's folder.
        bench: The opened parts of the run.
        on_failure: Told why, should it be left alone.
        is_kept: Whether it is this process that keeps it.
    """

    def __init__(
        self, folder: Path, bench: Workbench, *, on_failure: Callable[[str], None], is_kept: bool = True
    ) -> None:
        self._folder = folder
        self._on_failure = on_failure
        self._policy = bench.policy
        self._settings = bench.config.journal
        self._is_on = is_kept and self._settings.steps > 0 and self._settings.max_bytes > 0
        self._about = {
            "model": bench.policy.model_id,
            "commit": bench.policy.revision,
            "settings": bench.config.model_dump(mode="json"),
        }
        self._entries: list[Entry] = []

    def forget_after(self, step: int) -> None:
        """Take up the journal of a run that goes on after `step`: later steps go, and whatever a kill left half-done.

        Raises:
            StorageError: The disk refuses.
        """
        if not self._folder.is_dir():
            return
        try:
            found = read_index(self._folder)
        except CheckpointError:  # nothing that a run needs to go on
            found = []
        self._keep([entry for entry in found if entry.step <= step and (self._folder / entry.file).is_file()])

    def before(self) -> Before | None:
        """What a step is about to begin with; None where the journal is off."""
        if not self._is_on:
            return None
        return Before(adapter=state_bytes(adapter_state(self._policy)), generators=generator_states())

    def record(
        self,
        before: Before | None,
        report: StepReport,
        window: Window,
        learned: Sequence[LearnedGroup],
        *,
        loss_scale: float,
    ) -> None:
        """Add a step, and let go of what the limits have no room for.

        Args:
            before: What the step began with; None: nothing is recorded.
            report: The step and its metrics.
            window: The rollouts as the step found them.
            learned: What was seen of each useful group and what was made of it.
            loss_scale: What the loss was multiplied by for the backward pass.
        """
        if before is None:
            return
        adapter = hashlib.sha256(before.adapter).hexdigest()
        data = page_bytes(before, report, window, learned, about={**self._about, "loss_scale": loss_scale})
        loss, grad_norm = report.metrics.get("policy/loss", math.nan), report.metrics["policy/grad_norm"]
        entry = Entry(
            step=report.step,
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            adapter=adapter,
            adapter_bytes=len(before.adapter),
            groups=len(window.useful),
            tokens=window.token_count,
            loss=loss if math.isfinite(loss) else None,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
        )
        try:
            self._write(entry, data, before.adapter)
        except StorageError as error:
            self._is_on = False
            with contextlib.suppress(StorageError):
                self._keep(self._entries)
                self._remove_adapters(())
            self._on_failure(f"the journal is left alone from step {report.step} on: {error}")

    def _write(self, entry: Entry, data: bytes, adapter: bytes) -> None:
        kept, adapters = within(self._settings, [*self._entries, entry])
        with storage_errors(str(self._folder)):
            self._remove_adapters(adapters)  # first: it makes room for the new one
            place = adapter_file(self._folder, entry.adapter)
            if entry.adapter in adapters and not place.exists():
                replace_file(place, adapter)
            if entry in kept:
                replace_file(self._folder / entry.file, data)
            failpoint("journal.before_rename")
            self._keep(kept)

    def _keep(self, entries: list[Entry]) -> None:
        """Make the index name these steps, and then remove every file it does not name."""
        lines = index_bytes(entries)
        index = self._folder / INDEX
        if not index.exists() or index.read_bytes() != lines:
            replace_file(index, lines)
        self._entries = entries
        named = {INDEX, ADAPTERS, *(entry.file for entry in entries)}
        with storage_errors(str(self._folder)):
            for path in self._folder.iterdir():
                if path.name not in named:
                    path.unlink(missing_ok=True)
        self._remove_adapters({entry.adapter for entry in entries if entry.groups})

    def _remove_adapters(self, kept: Iterable[str]) -> None:
        names = {adapter_file(self._folder, adapter).name for adapter in kept}
        with storage_errors(str(self._folder)):
            for path in (self._folder / ADAPTERS).glob("*"):
                if path.name not in names:
                    path.unlink(missing_ok=True)
