"""Opening, refusing, extending and ending a run, on a policy and rows that take no time to make."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer

from tests.small_models import small_policy
from vgpo_lite import lifecycle, resuming
from vgpo_lite.checkpoint import checkpoints, is_whole, newest_checkpoint
from vgpo_lite.commands.failures import failures_told
from vgpo_lite.config.load import load_config
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.datasets import DataReport
from vgpo_lite.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HardwareError,
    InterruptedRunError,
    InvariantError,
    NonFiniteError,
    StorageError,
)
from vgpo_lite.lifecycle import open_run
from vgpo_lite.listening import RunPlan, SilentListener
from vgpo_lite.models.hub import local_fingerprint
from vgpo_lite.run import Run

Opener = Callable[..., contextlib.AbstractContextManager[Run]]


@dataclass
class Rows:
    """As much of a data set as a run looks at before its first step."""

    fingerprint: str = "data of before"

    def __len__(self) -> int:
        return 7


class Heard(SilentListener):
    notes: tuple[str, ...] = ()
    rows_held_out = -1

    def planned(self, plan: RunPlan) -> None:
        self.notes = plan.notes
        self.rows_held_out = plan.rows_held_out


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What opening a run finds; tests change its policy and rows."""
    parts = SimpleNamespace(
        policy=small_policy("qwen2_vl"),
        engine=SimpleNamespace(restore_sizes=lambda _kept: ()),
        train=Rows(),
        held_out=(),
        report=DataReport(kept=7),
        notes=(),
        memory=None,
    )

    @contextlib.contextmanager
    def opened(config: RunConfig, **_: object) -> Iterator[Any]:
        yield SimpleNamespace(config=config, **vars(parts))

    monkeypatch.setattr(lifecycle, "open_workbench", opened)
    return parts


def config_of(output: Path, **changes: object) -> RunConfig:
    return load_config(output=str(output), **({"max_steps": 4, "learning_rate": 1e-3} | changes))


def train_to(output: Path, step: int, **changes: object) -> None:
    """A run that has come to a step and was stopped there."""
    with pytest.raises(InterruptedRunError), open_run(config_of(output, **changes)) as run:  # noqa: PT012
        for done in range(step + 1):
            run.progress = replace(run.progress, step=done)
            run.save()
        raise InterruptedRunError(signal.SIGTERM)


def status_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "status.json").read_text())


def resumed(output: Path, heard: SilentListener | None = None, *, resume: str = "auto", **changes: object) -> Run:
    with open_run(config_of(output, **changes), listener=heard, resume=resume) as run:
        return run


@pytest.mark.parametrize(("limit", "told"), [(3, 3), (200, 5)])
def test_the_plan_counts_the_rows_that_are_measured(
    bench: SimpleNamespace, tmp_path: Path, limit: int, told: int
) -> None:
    bench.held_out, heard = range(5), Heard()
    with open_run(config_of(tmp_path / "run", eval={"limit": limit}), listener=heard):
        pass
    assert heard.rows_held_out == told


@pytest.mark.parametrize(
    ("iterations", "seconds", "each"),
    [
        (4, [30.0, 5.0, 5.0, 5.0] * 10, 11.25),
        (4, [30.0, 5.0, 5.0, 5.0] * 10 + [30.0], 11.25),
        (4, [30.0, 5.0, 5.0, 5.0, 30.0, 5.0], 11.25),
        (4, [30.0, 5.0], 17.5),  # no window is whole
        (3, [100.0] * 3 + [6.0, 3.0, 3.0] * 7, 4.0),  # the last 21 steps
        (1, [100.0] * 5 + [2.0] * 20, 2.0),
        (1, [], 0.0),
    ],
)
def test_the_time_left_is_that_of_whole_windows(
    bench: SimpleNamespace, tmp_path: Path, iterations: int, seconds: list[float], each: float
) -> None:
    with open_run(config_of(tmp_path / "run", num_iterations=iterations, max_steps=100)) as run:
        run.step_seconds = seconds
        run.progress = replace(run.progress, step=60)
        assert run.seconds_left == pytest.approx(40 * each)


ENDINGS = {
    "config": (ConfigError("reward file a.py is gone"), 2, "failed", "a.py"),
    "data": (DataError("row 3 is no image"), 3, "failed", "row 3"),
    "hardware": (HardwareError("8 GB are needed"), 4, "failed", "8 GB"),
    "memory": (MemoryError(), 4, "failed", "the machine is out of memory"),
    "device memory": (torch.OutOfMemoryError("tried 2 GiB"), 4, "failed", "memory.rows_per_micro_batch=1"),
    "host allocator": (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9 bytes"), 4, "failed", "4"),
    "not finite": (NonFiniteError("three steps in a row"), 5, "failed", "three"),
    "storage": (StorageError("the disk is full"), 6, "failed", "full"),
    "no space": (OSError(errno.ENOSPC, "No space left on device", "/x"), 6, "failed", "No space left on device (/x)"),
    "read only": (OSError(errno.EROFS, "Read-only file system"), 6, "failed", "Read-only"),
    "not writable": (PermissionError(errno.EACCES, "Permission denied", "/z"), 6, "failed", "Permission denied (/z)"),
    "null byte": (ValueError("embedded null byte"), 2, "failed", "a path holds a null byte"),
    "ctrl-c": (KeyboardInterrupt(), 130, "interrupted", "stopped"),
    "sigint": (InterruptedRunError(signal.SIGINT), 130, "interrupted", "SIGINT"),
    "sigterm": (InterruptedRunError(signal.SIGTERM), 143, "interrupted", "SIGTERM"),
    "reader left": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, "failed", "whoever read the output"),
    "bug": (ZeroDivisionError("division by zero"), 1, "crashed", "ZeroDivisionError: division by zero"),
    "other file": (FileNotFoundError(errno.ENOENT, "No such file", "/y"), 1, "crashed", "/y"),
    "long bug": (KeyError("x" * 10**6), 1, "crashed", "KeyError: 'xxx"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_run_says_how_it_ended_with_the_exit_code_that_the_command_leaves_with(
    bench: SimpleNamespace, tmp_path: Path, name: str
) -> None:
    error, code, state, told = ENDINGS[name]
    output = tmp_path / "run"
    with pytest.raises(type(error)) as caught, open_run(config_of(output)) as run:  # noqa: PT012
        run.progress = replace(run.progress, step=3)
        run.save()
        raise error
    status = status_of(output)
    assert (status["state"], status["exit_code"]) == (state, code)
    assert told in status["reason"]
    assert len(status["reason"]) < 2100
    assert status["checkpoint"] == "checkpoints/step-000003"
    assert status["continue_with"] == (f"vgpo-lite train --recipe {output}/config.yaml --output {output} --resume auto")
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    assert (events[-1]["kind"], events[-1]["exit_code"]) == (state, code)
    with pytest.raises(type(error) if state == "crashed" else typer.Exit) as left, failures_told():
        raise caught.value
    assert getattr(left.value, "exit_code", 1) == code


def test_whatever_ends_a_run_its_last_step_is_saved_unless_the_disk_or_a_step_in_the_making_forbids(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    cases: list[tuple[BaseException, bool, int]] = [
        (ZeroDivisionError(), True, 2),
        (MemoryError(), True, 2),
        (MemoryError(), False, 0),
        (InvariantError("an adapter did not move"), False, 0),
        (StorageError("the disk is full"), True, 0),
        (OSError(errno.ENOSPC, "No space left on device"), True, 0),
    ]
    for number, (error, settled, expected) in enumerate(cases):
        output = tmp_path / str(number)
        with pytest.raises(type(error)), open_run(config_of(output)) as run:  # noqa: PT012
            run.save()
            run.progress = replace(run.progress, step=2)
            run.is_settled = settled
            raise error
        assert status_of(output)["checkpoint"] == f"checkpoints/step-{expected:06d}", error


def test_a_save_that_fails_at_the_end_does_not_hide_why_the_run_ended(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: Run) -> Path:
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(Run, "save", no_memory)
    with pytest.raises(ZeroDivisionError), open_run(config_of(tmp_path)):
        raise ZeroDivisionError("division by zero")
    status = status_of(tmp_path)
    assert (status["exit_code"], status["checkpoint"], status["continue_with"]) == (1, None, None)
    assert "division by zero (and the last step could not be saved: no room for a copy)" in status["reason"]


def test_what_fails_before_the_first_step_is_in_the_status_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: RunConfig, **_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(lifecycle, "open_workbench", broken)
    with pytest.raises(MemoryError), open_run(config_of(tmp_path)):
        pass
    assert (status_of(tmp_path)["state"], status_of(tmp_path)["exit_code"]) == ("failed", 4)


def test_a_run_that_another_process_works_on_keeps_its_status(bench: SimpleNamespace, tmp_path: Path) -> None:
    with open_run(config_of(tmp_path)):
        before = status_of(tmp_path)
        with pytest.raises(ConfigError, match="in use by process"), open_run(config_of(tmp_path), resume="auto"):
            pass
        assert status_of(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "qwen2-vl-2b"}, "model was 'tiny' and is now 'qwen2-vl-2b'"),
        ({"dataset": "geo3k"}, "dataset was 'shapes' and is now 'geo3k'"),
        ({"data": {"subset": "harder"}}, "data.subset was None and is now 'harder'"),
        ({"num_generations": 4}, "num_generations was 8 and is now 4"),
        ({"lora": {"r": 8}}, "lora.r was 16 and is now 8"),
    ],
)
def test_other_settings_are_refused_before_anything_is_loaded_and_the_run_stays_as_it_was(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    train_to(tmp_path, 2)
    (tmp_path / "adapter").mkdir()
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "events.jsonl"}
    monkeypatch.setattr(lifecycle, "open_workbench", None)
    for resume in ("auto", str(tmp_path / "checkpoints" / "step-000001")):
        with pytest.raises(CheckpointError, match="cannot continue with other settings") as caught:
            resumed(tmp_path, resume=resume, max_steps=9, **changes)
        assert told in str(caught.value)
        assert caught.value.exit_code == 3
    status = status_of(tmp_path)
    assert (status["state"], status["exit_code"], status["checkpoint"]) == ("failed", 3, "checkpoints/step-000002")
    assert told in status["reason"]
    assert (tmp_path / "adapter").exists()
    assert {path: path.read_bytes() for path in kept if path.name != "status.json"} == {
        path: content for path, content in kept.items() if path.name != "status.json"
    }


def test_another_model_or_other_data_under_the_same_name_is_refused_with_what_changed(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    train_to(tmp_path, 1)
    bench.train = Rows(fingerprint="data of today")
    with pytest.raises(CheckpointError, match=r"data was 'data of before' and is now 'data of today'"):
        resumed(tmp_path)
    bench.train = Rows()
    bench.policy = replace(bench.policy, revision="0" * 40)
    with pytest.raises(
        CheckpointError, match=r"other model or data: model's commit was None and is now '0000"
    ) as caught:
        resumed(tmp_path)
    assert caught.value.exit_code == 3
    bench.policy = replace(bench.policy, revision=None)
    assert resumed(tmp_path).first_step == 2


def test_the_weights_of_a_local_model_are_known_by_samples_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    content = bytearray(300_000)
    (tmp_path / "model.safetensors").write_bytes(content)
    first = local_fingerprint(str(tmp_path))
    assert first == local_fingerprint(str(tmp_path))
    for place in (0, 150_000, 299_999):
        content[place] = 1
        (tmp_path / "model.safetensors").write_bytes(content)
        assert local_fingerprint(str(tmp_path)) != first
        content[place] = 0
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert local_fingerprint(str(tmp_path)) != first
    assert local_fingerprint("tiny") != local_fingerprint(str(tmp_path))
    assert local_fingerprint(str(tmp_path / "nowhere")) is None


def test_a_longer_run_goes_on_and_says_what_its_learning_rate_does(bench: SimpleNamespace, tmp_path: Path) -> None:
    train_to(tmp_path, 4, warmup_ratio=0.0)
    heard = Heard()
    run = resumed(tmp_path, heard, max_steps=8, warmup_ratio=0.0)
    # cosine over 4 steps ends at 1/2 (1 + cos(3/4 pi)) = 0.146 of the highest; over 8 steps the fifth is at 1/2
    assert heard.notes[-1] == (
        "max_steps was 4 and is now 8: the learning rate follows the cosine schedule over 8 steps from here on; it was "
        "0.000146 in step 4 and is 0.0005 in step 5"
    )
    assert (run.first_step, run.unfinished) == (5, True)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    [extended] = [event for event in events if event["kind"] == "extended"]
    assert (extended["max_steps_before"], extended["max_steps"]) == (4, 8)
    assert load_config(str(tmp_path)).max_steps == 8
    assert not resumed(tmp_path, heard, max_steps=2, warmup_ratio=0.0).unfinished
    assert heard.notes[-1] == "max_steps was 4 and is now 2: no step is left after step 4"


def test_a_damaged_checkpoint_is_written_anew_when_its_step_is_done_again(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    train_to(tmp_path, 2)
    damaged = tmp_path / "checkpoints" / "step-000002" / "adapter.safetensors"
    damaged.write_bytes(b"")
    heard = Heard()
    with open_run(config_of(tmp_path), listener=heard, resume="auto") as run:
        assert run.first_step == 2
        run.progress = replace(run.progress, step=2)
        run.save()
    assert "step-000002 is damaged" in heard.notes[0]
    assert "extended" not in (tmp_path / "events.jsonl").read_text()
    assert len(damaged.read_bytes()) > 0
    assert [folder.name for folder in checkpoints(tmp_path / "checkpoints")] == ["step-000001", "step-000002"]


@pytest.mark.parametrize("line", ['{"no": "step"}', "not json", "[1]"])
def test_a_metrics_file_that_was_edited_is_refused_with_its_line(
    bench: SimpleNamespace, tmp_path: Path, line: str
) -> None:
    train_to(tmp_path, 1)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2 is no step's record"):
        resumed(tmp_path)
    assert status_of(tmp_path)["exit_code"] == 3


def test_records_of_a_run_that_was_killed_in_the_middle_of_a_line_stay_readable(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    train_to(tmp_path, 1)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 1, "kind": "cut sho')
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "step-mine.parquet").write_bytes(b"")
    resumed(tmp_path)
    for name in ("metrics.jsonl", "events.jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in (tmp_path / name).read_text().splitlines())


def test_a_status_names_no_damaged_checkpoint(bench: SimpleNamespace, tmp_path: Path) -> None:
    train_to(tmp_path, 2)
    assert is_whole(tmp_path / "checkpoints" / "step-000002")
    for step, expected in ((2, "checkpoints/step-000001"), (1, None)):
        (tmp_path / "checkpoints" / f"step-{step:06d}" / "progress.json").write_text("{}")
        with pytest.raises(CheckpointError):
            resumed(tmp_path, num_generations=4)
        assert status_of(tmp_path)["checkpoint"] == expected
    assert status_of(tmp_path)["continue_with"] is None
    assert "no whole" in status_of(tmp_path)["reason"] or "cannot resume" in status_of(tmp_path)["reason"]


def test_a_checkpoint_of_another_version_is_refused_with_what_it_lacks(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_to(tmp_path, 1)
    found, notes = newest_checkpoint(tmp_path / "checkpoints")
    older = replace(found, progress={"draws": 3, "identity": {}})
    monkeypatch.setattr(resuming, "newest_checkpoint", lambda root: (older, notes))
    with pytest.raises(CheckpointError, match=r"step 1 lacks bad_steps, before, .*another version of vgpo-lite"):
        resumed(tmp_path)


def test_random_numbers_drawn_inside_a_step_that_is_stopped_are_drawn_again(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedRunError), open_run(config_of(tmp_path)) as run:  # noqa: PT012
        before = random.getstate()
        expected = [random.random() for _ in range(3)]  # as a reward function may
        run.progress = replace(run.progress, step=1)
        raise InterruptedRunError(signal.SIGINT)
    resumed(tmp_path)
    assert random.getstate() == before
    assert [random.random() for _ in range(3)] == expected


def test_code_of_a_repository_runs_again_only_where_that_is_typed_again(bench: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError), open_run(config_of(tmp_path, trust_remote_code=True)) as run:
        raise InterruptedRunError(run.save() and signal.SIGINT)
    assert status_of(tmp_path)["continue_with"].endswith("--resume auto --set trust_remote_code=true")
    with pytest.raises(ConfigError, match=r"trust_remote_code is true \(.*config\.yaml, line \d+\); expected it typed"):
        load_config(tmp_path)
    assert load_config(tmp_path, overrides=["trust_remote_code=true"]).trust_remote_code
    assert not load_config(tmp_path, trust_remote_code=False).trust_remote_code
