"""The flight recorder: what the last steps were taken on and what came of them, so that each can be taken anew.

index.jsonl                 one line per kept step: its file with size and sha256, its adapter, its loss
step-000012.safetensors     token ids, rewards, log-probabilities, focus, advantages, prompt ids, generator states
adapters/SHA256.safetensors the adapter before a step, once for all steps that began with it

Step files are small and kept for `journal.steps` steps; adapters for as many recent steps as `journal.max_bytes` has
room for. The file of an adapter equals that of a checkpoint of the same weights, so a checkpoint can stand in for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load as load_tensors

from vgpo_lite.checkpoint import checkpoint_adapter, generator_states, state_bytes
from vgpo_lite.errors import CheckpointError, ConfigError, StorageError
from vgpo_lite.failpoints import failpoint
from vgpo_lite.models.lora import adapter_state
from vgpo_lite.storage import replace_file, storage_errors
from vgpo_lite.windows import window_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from vgpo_lite.config.sections import JournalConfig
    from vgpo_lite.data_types import Prompt, StepReport
    from vgpo_lite.preparation import Workbench
    from vgpo_lite.windows import LearnedGroup, Window

FOLDER = "journal"
"""Where a run directory keeps its journal."""

_INDEX = "index.jsonl"
_ADAPTERS = "adapters"
_GENERATOR = "generator."


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a step began with.

    Attributes:
        adapter: The adapters' weights as a safetensors file.
        generators: States of the process-wide random generators.
    """

    adapter: bytes
    generators: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the index.

    Attributes:
        step: The optimizer step.
        sha256: Of the step's file.
        bytes: Size of the step's file.
        adapter: sha256 of the file of the adapter the step began with.
        adapter_bytes: Size of that file.
        groups: Groups the step trained on; 0: there is nothing to take anew.
        tokens: Completion tokens it trained on.
        loss: `policy/loss`; None where it was not finite, or there was none.
        grad_norm: `policy/grad_norm`; None where it was not finite.
    """

    step: int
    sha256: str
    bytes: int
    adapter: str
    adapter_bytes: int
    groups: int
    tokens: int
    loss: float | None
    grad_norm: float | None

    @property
    def file(self) -> str:
        """Name of the step's file."""
        return f"step-{self.step:06d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Page:
    """One recorded step, as it is read back.

    Attributes:
        entry: Its line in the index.
        about: The model, its commit and the settings of the run when it took the step.
        sample_ids: The row each group's prompt was made from.
        images: sha256 of the images of each of them.
        prompt_ids: Token ids of each prompt.
        window: The rollouts with what was seen of them, as `window_tensors` writes them.
        advantages: Weighted advantage of each token, by group.
        generators: States of the process-wide random generators when the update began.
        loss: The loss; nan where there was none.
        grad_norm: The gradient's norm before clipping.
        denominator: What the step's loss was divided by.
        loss_scale: What the loss was multiplied by for the backward pass.
    """

    entry: Entry
    about: Mapping[str, Any]
    sample_ids: Sequence[str]
    images: Sequence[str]
    prompt_ids: Sequence[Tensor]
    window: Mapping[str, Tensor]
    advantages: Sequence[Tensor]
    generators: Mapping[str, Tensor]
    loss: float
    grad_norm: float
    denominator: float
    loss_scale: float


class Journal:
    """Writes a run's journal; every file in it is whole, and together they stay within the limit.

    A disk that refuses is told of once; the journal then lets its adapters go, to make room for checkpoints, and is
    left alone.

    Args:
        folder: The journal's folder.
        bench: The opened parts of the run.
        on_failure: Told why, should it be left alone.
    """

    def __init__(self, folder: Path, bench: Workbench, *, on_failure: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_failure = on_failure
        self._policy = bench.policy
        self._settings = bench.config.journal
        self._is_on = self._settings.steps > 0 and self._settings.max_bytes > 0
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
        facts = {
            **self._about,
            "adapter": adapter,
            "sample_ids": [scored.group.prompt.sample.sample_id for scored in window.useful],
            "images": [image_hash(scored.group.prompt) for scored in window.useful],
        }
        tensors = _page_tensors(before, report, window, learned, loss_scale=loss_scale)
        data = state_bytes(tensors, metadata={"about": json.dumps(facts)})
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
        kept, adapters = _within(self._settings, [*self._entries, entry])
        with storage_errors(str(self._folder)):
            self._remove_adapters(adapters)  # first: it makes room for the new one
            if entry.adapter in adapters and not self._adapter(entry.adapter).exists():
                replace_file(self._adapter(entry.adapter), adapter)
            if entry in kept:
                replace_file(self._folder / entry.file, data)
            failpoint("journal.before_rename")
            self._keep(kept)

    def _keep(self, entries: list[Entry]) -> None:
        """Make the index name these steps, and then remove every file it does not name."""
        lines = _index_bytes(entries)
        index = self._folder / _INDEX
        if not index.exists() or index.read_bytes() != lines:
            replace_file(index, lines)
        self._entries = entries
        named = {_INDEX, _ADAPTERS, *(entry.file for entry in entries)}
        with storage_errors(str(self._folder)):
            for path in self._folder.iterdir():
                if path.name not in named:
                    path.unlink(missing_ok=True)
        self._remove_adapters({entry.adapter for entry in entries if entry.groups})

    def _remove_adapters(self, kept: Iterable[str]) -> None:
        names = {self._adapter(adapter).name for adapter in kept}
        with storage_errors(str(self._folder)):
            for path in (self._folder / _ADAPTERS).glob("*"):
                if path.name not in names:
                    path.unlink(missing_ok=True)

    def _adapter(self, sha256: str) -> Path:
        return self._folder / _ADAPTERS / f"{sha256}.safetensors"


def _within(settings: JournalConfig, entries: list[Entry]) -> tuple[list[Entry], set[str]]:
    """The steps that the limits leave room for, and the adapters of as many of the newest of them as then fit."""
    kept = entries[-settings.steps :]
    while kept and _size(kept) > settings.max_bytes:
        kept = kept[1:]
    room, adapters = settings.max_bytes - _size(kept), set()
    for entry in reversed(kept):
        if entry.adapter in adapters or not entry.groups:
            continue
        if entry.adapter_bytes > room:
            break
        room -= entry.adapter_bytes
        adapters.add(entry.adapter)
    return kept, adapters


def _size(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries) + len(_index_bytes(entries))


def _index_bytes(entries: list[Entry]) -> bytes:
    return "".join(json.dumps(asdict(entry), allow_nan=False) + "\n" for entry in entries).encode()


def _page_tensors(
    before: Before, report: StepReport, window: Window, learned: Sequence[LearnedGroup], *, loss_scale: float
) -> dict[str, Tensor]:
    """A page as tensors: ids in 32 bits, which no vocabulary exceeds."""
    seen = replace(window, signals=[group.signals for group in learned])
    numbers = {
        "loss": report.metrics.get("policy/loss", math.nan),
        "grad_norm": report.metrics["policy/grad_norm"],
        "denominator": learned[0].denominator if learned else 0.0,
        "loss_scale": loss_scale,
    }
    tensors = window_tensors(seen)
    for index, (scored, group) in enumerate(zip(window.useful, learned, strict=True)):
        tensors[f"{index}.prompt_ids"] = scored.group.prompt.input_ids
        tensors[f"{index}.weighted_advantages"] = group.advantages
    tensors = {name: value.to(torch.int32) if name.endswith("_ids") else value for name, value in tensors.items()}
    tensors |= {f"{_GENERATOR}{name}": state for name, state in before.generators.items()}
    tensors |= {f"recorded.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    return tensors


def image_hash(prompt: Prompt) -> str:
    """sha256 of a prompt's images, decoded: their sizes and their pixels."""
    digest = hashlib.sha256()
    for image in prompt.sample.images:
        digest.update(f"{image.width}x{image.height}".encode() + image.tobytes())
    return digest.hexdigest()


def read_index(folder: Path) -> list[Entry]:
    """The steps a journal holds, oldest first; none where there is no journal.

    Raises:
        CheckpointError: The index is damaged.
    """
    path = folder / _INDEX
    if not path.is_file():
        return []
    try:
        return [Entry(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def kept_steps(run: Path) -> list[tuple[Entry, str | None]]:
    """The steps that the journal of a run holds, each with why it cannot be replayed; None: it can.

    Raises:
        CheckpointError: There is no journal, or its index is damaged.
    """
    entries = read_index(run / FOLDER)
    if not entries:
        raise CheckpointError(
            f"{run} holds no journal of its steps: it is no run directory, or ran with journal.steps=0 or "
            "journal.max_bytes=0."
        )
    return [(entry, _hindrance(run, entry)) for entry in entries]


def _hindrance(run: Path, entry: Entry) -> str | None:
    if not entry.groups:
        return "no: it trained on nothing"
    return None if adapter_place(run, entry) else "no: its adapter is not kept any more"


def read_page(run: Path, step: int) -> Page:
    """The recorded step of a run.

    Raises:
        ConfigError: The journal does not hold the step; the message names those it holds.
        CheckpointError: There is no journal, or the step's file is damaged.
    """
    entries = {entry.step: entry for entry, _ in kept_steps(run)}
    if step not in entries:
        raise ConfigError(f"the journal of {run} does not hold step {step}; it holds {ranges(entries)}.")
    entry = entries[step]
    path = run / FOLDER / entry.file
    data = _verified(path, entry.sha256, f"the journal of step {step}")
    tensors = load_tensors(data)
    own = {name: value.long() if name.endswith("_ids") else value for name, value in tensors.items()}
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    numbers = {name: float(own[f"recorded.{name}"]) for name in ("loss", "grad_norm", "denominator", "loss_scale")}
    return Page(
        entry=entry,
        about=about,
        sample_ids=about["sample_ids"],
        images=about["images"],
        prompt_ids=[own[f"{index}.prompt_ids"] for index in range(entry.groups)],
        window=own,
        advantages=[own[f"{index}.weighted_advantages"] for index in range(entry.groups)],
        generators={n.removeprefix(_GENERATOR): value for n, value in own.items() if n.startswith(_GENERATOR)},
        **numbers,
    )


def read_adapter(run: Path, entry: Entry) -> dict[str, Tensor]:
    """The adapter that a step began with: the journal's, or that of a checkpoint with the same weights.

    Raises:
        CheckpointError: It is not kept any more, or its file is not what it was.
    """
    path = adapter_place(run, entry)
    if path is None:
        able = [other.step for other, hindrance in kept_steps(run) if hindrance is None]
        raise CheckpointError(
            f"the adapter that step {entry.step} began with is not kept any more; the steps whose adapter is: "
            f"{ranges(able) or 'none'}. A larger journal.max_bytes keeps more."
        )
    return load_tensors(_verified(path, entry.adapter, f"the adapter of step {entry.step}"))


def adapter_place(run: Path, entry: Entry) -> Path | None:
    """Where the adapter that a step began with is kept; None: nowhere any more."""
    own = run / FOLDER / _ADAPTERS / f"{entry.adapter}.safetensors"
    return own if own.is_file() else checkpoint_adapter(run / "checkpoints", entry.adapter)


def _verified(path: Path, sha256: str, what: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{what} cannot be read: {path}: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{what} is damaged: {path} has sha256 {found[:16]}, recorded was {sha256[:16]}")
    return data


def ranges(steps: Iterable[int]) -> str:
    """Steps in words, consecutive ones together.

    >>> ranges([1, 2, 3, 7, 9, 10])
    '1-3, 7, 9-10'
    """
    runs: list[list[int]] = []
    for step in sorted(steps):
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
