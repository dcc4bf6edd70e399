"""What a run leaves in its directory while it goes, and the lock that keeps the directory to one process.

metrics.jsonl   one line per optimizer step, `section/name: value`
events.jsonl    what happened besides: resumed, checkpoint, skipped step, ...
status.json     where the run stands, replaced as a whole
completions/    one parquet file per recorded step
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from typing import TYPE_CHECKING

from vgpo_lite.errors import CheckpointError, ConfigError
from vgpo_lite.failpoints import failpoint
from vgpo_lite.storage import json_bytes, replace_file, storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from io import FileIO
    from pathlib import Path
    from typing import TextIO

    from vgpo_lite.data_types import GroupRewards, RolloutGroup, StepReport


def refuse_existing_run(folder: Path) -> None:
    """See that a new run does not write over an old one; one that failed before its first checkpoint left nothing.

    Raises:
        ConfigError: The folder holds a run.
    """
    if (folder / "adapter").exists() or any((folder / "checkpoints").glob("step-*")):
        raise ConfigError(f"{folder} already holds a run. Continue it with --resume auto, or choose another --output.")


class RunLock:
    """Keeps a run directory to one process; the system lets go of it when the process dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._file: TextIO | None = None

    def __enter__(self) -> RunLock:
        with storage_errors(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise ConfigError(
                f"{self._path.parent} is in use by process {owner}. Wait for it, stop it, or choose another --output."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


class RunRecorder:
    """Writes a run's records; every write is on the disk, or the run stops with a storage error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with storage_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "events.jsonl"):
                _drop_cut_line(folder / name)
            self._open()

    def _open(self) -> None:
        # without buffers: what the disk refused once is not tried again when the file is closed
        self._metrics = (self._folder / "metrics.jsonl").open("ab", buffering=0)
        self._events = (self._folder / "events.jsonl").open("ab", buffering=0)

    def forget_after(self, step: int) -> None:
        """Drop records of steps later than `step`, which a resumed run will make again.

        Raises:
            CheckpointError: metrics.jsonl holds a line that is no step's.
            StorageError: The disk refuses.
        """
        self.close()
        try:
            forget_after(self._folder, step)
        finally:
            with storage_errors(str(self._folder)):
                self._open()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._events.close()

    def step(self, report: StepReport) -> None:
        """Append a step's metrics; a value that is not finite is written as null."""
        values = {name: value if math.isfinite(value) else None for name, value in report.metrics.items()}
        self._append(self._metrics, "record.step", {"step": report.step, **values})

    def event(self, kind: str, **facts: object) -> None:
        """Append something that happened, with the time in seconds since 1970."""
        self._append(self._events, "record.event", {"time": round(time.time(), 3), "kind": kind, **facts})

    def status(self, state: str, **facts: object) -> None:
        """Replace status.json."""
        replace_file(self._folder / "status.json", json_bytes({"state": state, "time": round(time.time(), 3), **facts}))

    def completions(self, step: int, groups: Sequence[RolloutGroup], rewards: Sequence[GroupRewards]) -> None:
        """Write the completions of a step as `completions/step-000010.parquet`."""
        import pyarrow
        import pyarrow.parquet

        rows = [
            row for group, reward in zip(groups, rewards, strict=True) for row in _completion_rows(step, group, reward)
        ]
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        replace_file(self._folder / "completions" / f"step-{step:06d}.parquet", sink.getvalue().to_pybytes())

    def _append(self, file: FileIO, site: str, entry: Mapping[str, object]) -> None:
        """Add a line and wait until it is on the disk; a line that does not fit leaves nothing behind."""
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        end = os.fstat(file.fileno()).st_size
        with storage_errors(str(file.name)):
            try:
                failpoint(site)
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise


class SilentRecorder:
    """Writes nothing: another process of the run does."""

    def forget_after(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def step(self, report: StepReport) -> None:
        """Nothing."""

    def event(self, kind: str, **facts: object) -> None:
        """Nothing."""

    def status(self, state: str, **facts: object) -> None:
        """Nothing."""

    def completions(self, step: int, groups: Sequence[RolloutGroup], rewards: Sequence[GroupRewards]) -> None:
        """Nothing."""


Recorder = RunRecorder | SilentRecorder


def _completion_rows(step: int, group: RolloutGroup, rewards: GroupRewards) -> list[dict[str, object]]:
    lengths = group.completion_mask.sum(-1).tolist()
    return [
        {
            "step": step,
            "sample_id": group.prompt.sample.sample_id,
            "question": group.prompt.sample.question,
            "answer": group.prompt.sample.answer,
            "completion": text,
            "tokens": int(lengths[row]),
            "finished": bool(group.finished[row]),
            "reward": float(rewards.rewards[row]),
            **{f"reward_{name}": float(values[row]) for name, values in rewards.components.items()},
        }
        for row, text in enumerate(group.texts)
    ]


def forget_after(folder: Path, step: int) -> None:
    """Drop records of steps later than `step`, which a resumed run will make again.

    Raises:
        CheckpointError: metrics.jsonl holds a line that is no step's.
        StorageError: The disk refuses.
    """
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        lines = _whole_lines(metrics)
        kept = [line for number, line in enumerate(lines, start=1) if _step_of(line, f"{metrics}:{number}") <= step]
        replace_file(metrics, b"".join(kept))
    with storage_errors(str(folder / "completions")):
        for file in (folder / "completions").glob("step-*.parquet"):
            number = file.stem.removeprefix("step-")
            if number.isdecimal() and int(number) > step:
                file.unlink(missing_ok=True)


def recorded_values(folder: Path, name: str) -> list[float]:
    """What metrics.jsonl says of one metric, step by step; steps without it are left out."""
    metrics = folder / "metrics.jsonl"
    lines = _whole_lines(metrics) if metrics.exists() else []
    values = (json.loads(line).get(name) for line in lines)
    return [value for value in values if value is not None]


def _step_of(line: bytes, place: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{place} is no step's record: {line[:80]!r}. Remove the line, or start afresh with another --output."
        ) from error


def _drop_cut_line(path: Path) -> None:
    """Leave out a last line that a kill cut short, so that the next one stands on its own."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        replace_file(path, b"".join(_whole_lines(path)))


def _whole_lines(path: Path) -> list[bytes]:
    """The complete JSON lines of a file: a line that a kill cut short is left out."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
