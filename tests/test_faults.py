"""What a run keeps when something breaks: killed, out of disk, stopped, or with a gradient that is nan."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.torture import differences, faults_in
from tests.cheap_runs import Lent, lent, small_config, small_disk
from vgpo_lite import lifecycle
from vgpo_lite.checkpoint import checkpoints, load_checkpoint
from vgpo_lite.errors import InterruptedRunError, NonFiniteError, StorageError
from vgpo_lite.failpoints import SITES, armed
from vgpo_lite.recording import RunRecorder
from vgpo_lite.trainer import train

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = "raise:OSError:28"
TWICE = {"num_iterations": 2, "max_steps": 4}


class KilledError(BaseException):
    """Stands in for SIGKILL where a process of its own would cost too much: nothing that handles errors catches it."""


class KillAt:
    """Raises at a passing of a site."""

    def __init__(self, site: str, passing: int) -> None:
        self.site, self.left = site, passing

    def __call__(self, site: str) -> None:
        self.left -= site == self.site
        if self.left == 0:
            self.left = -1
            raise KilledError


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lent]:
    with lent(tmp_path_factory.mktemp("runs") / "opened") as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(shared: Lent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs lie: their reward function is one file, which is part of what they are."""
    return Path(shared.bench.config.output_folder).parent


@pytest.fixture(scope="module")
def passed(folder: Path) -> set[str]:
    """Makes the undisturbed run; the sites it passed."""
    sites: set[str] = set()
    with armed(passed=sites.add):
        train(small_config(folder / "undisturbed", **TWICE))
    return sites


@pytest.fixture
def undisturbed(passed: set[str], folder: Path) -> Path:
    return folder / "undisturbed"


@pytest.fixture
def output(folder: Path, request: pytest.FixtureRequest) -> Path:
    return folder / "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


def events(run: Path, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def status(run: Path) -> dict[str, object]:
    return json.loads((run / "status.json").read_text())


def leftovers(run: Path) -> list[str]:
    return [path.name for path in run.rglob(".*") if path.name != ".lock"]


KILLS = [
    ("checkpoint.before_files", 3), ("checkpoint.between_files", 13), ("checkpoint.before_manifest", 4),
    ("checkpoint.before_rename", 3), ("checkpoint.after_rename", 3), ("folder.before_delete", 1),
    ("record.step", 2), ("record.event", 3), ("file.before_rename", 5), ("decode.step", 11),
    ("update.micro_batch", 2), ("optimizer.after_step", 3), ("adapter.before_rename", 1),
]  # fmt: skip


@pytest.mark.parametrize(("site", "passing"), KILLS, ids=lambda value: str(value))
def test_a_run_killed_anywhere_and_resumed_equals_one_that_never_stopped(
    undisturbed: Path, output: Path, site: str, passing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_end_early", lambda *_: None)  # a process that is killed says nothing more
    with armed(passed=KillAt(site, passing)), pytest.raises(KilledError):
        train(small_config(output, **TWICE))
    assert faults_in(output, keep=2) == []
    summary = train(small_config(output, **TWICE), resume="auto")
    assert differences(undisturbed, output) == []
    assert (summary.steps, summary.updated_steps) == (4, 4)
    assert faults_in(output, keep=2) == leftovers(output) == []


@pytest.mark.parametrize(
    ("site", "passing"), [("record.step", 2), ("file.before_rename", 11), ("optimizer.after_step", 3)], ids=str
)
def test_a_run_that_an_unforeseen_error_ended_goes_on_as_if_it_had_never_stopped(
    undisturbed: Path, output: Path, site: str, passing: int
) -> None:
    with armed(passed=KillAt(site, passing)), pytest.raises(KilledError):
        train(small_config(output, **TWICE))
    assert (status(output)["state"], status(output)["exit_code"]) == ("crashed", 1)
    train(small_config(output, **TWICE), resume="auto")
    assert differences(undisturbed, output) == []
    assert faults_in(output, keep=2) == leftovers(output) == []


def test_every_site_of_a_training_is_passed_by_a_run(passed: set[str]) -> None:
    elsewhere = {"grade.waiting", "evaluate.batch", "tracker.log", "export.before_files", "export.before_rename"}
    assert passed == set(SITES) - elsewhere


@pytest.mark.parametrize(
    "site",
    [
        "checkpoint.before_files@3", "checkpoint.between_files@15", "checkpoint.before_manifest@3",
        "checkpoint.before_rename@3", "record.step@2", "adapter.before_files@1", "adapter.before_rename@1",
    ],
)  # fmt: skip
def test_a_full_disk_ends_a_run_with_its_older_checkpoints_and_it_goes_on_when_there_is_room(
    undisturbed: Path, output: Path, site: str
) -> None:
    name, number = site.split("@")
    with armed(f"{name}={FULL}@{number}"), pytest.raises(StorageError, match="No space left on device") as caught:
        train(small_config(output, **TWICE))
    assert caught.value.exit_code == 6
    told = status(output)
    assert (told["state"], told["exit_code"]) == ("failed", 6)
    assert "No space left on device" in str(told["reason"])
    assert load_checkpoint(output / str(told["checkpoint"])).step >= 1
    assert "--resume auto" in str(told["continue_with"])
    assert faults_in(output, keep=2) == leftovers(output) == []
    train(small_config(output, **TWICE), resume="auto")
    assert differences(undisturbed, output) == []


def test_a_disk_that_refuses_the_finished_adapter_is_a_storage_error_whoever_writes_it(
    undisturbed: Path, output: Path
) -> None:
    with contextlib.ExitStack() as stack:

        def fill(site: str) -> None:
            if site == "adapter.before_files":
                stack.enter_context(small_disk())

        with armed(passed=fill), pytest.raises(StorageError, match="File too large"):
            train(small_config(output, **TWICE))
    assert (status(output)["state"], status(output)["exit_code"]) == ("failed", 6)
    assert leftovers(output) == []
    assert not (output / "adapter").exists()
    train(small_config(output, **TWICE), resume="auto")
    assert differences(undisturbed, output) == []


def test_a_disk_that_takes_nothing_at_all_is_still_a_storage_error(output: Path, undisturbed: Path) -> None:
    with armed(f"optimizer.after_step={FULL}@2"), pytest.raises(OSError, match="No space"):
        train(small_config(output, **TWICE))
    assert (status(output)["state"], status(output)["exit_code"]) == ("failed", 6)
    whole = sum(1 for _ in checkpoints(output / "checkpoints"))
    everything = ",".join(f"{site}={FULL}" for site in ("file.before_write", "record.event", "checkpoint.before_files"))
    with armed(everything), pytest.raises(StorageError) as caught:
        train(small_config(output, **TWICE), resume="auto")
    assert caught.value.exit_code == 6
    assert len(checkpoints(output / "checkpoints")) == whole
    train(small_config(output, **TWICE), resume="auto")
    assert differences(undisturbed, output) == []


def test_a_line_the_disk_refuses_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.event("first")
    before = (tmp_path / "events.jsonl").read_bytes()
    with armed(f"record.event={FULL}@1"), pytest.raises(StorageError):
        recorder.event("second")
    assert (tmp_path / "events.jsonl").read_bytes() == before
    recorder.event("third")
    recorder.close()
    assert [json.loads(line)["kind"] for line in (tmp_path / "events.jsonl").open()] == ["first", "third"]


def test_one_gradient_that_is_nan_is_skipped_counted_and_forgotten(output: Path) -> None:
    with armed("update.gradient=nan@2"):
        summary = train(small_config(output, checkpoint={"every": 1, "keep": 5}))
    assert (summary.steps, summary.updated_steps) == (3, 2)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").open()]
    assert [line["policy/grad_norm"] is None for line in lines] == [False, True, False]
    assert [event["step"] for event in events(output, "step_skipped")] == [2]
    one, two, three = (load_checkpoint(folder).adapter for folder in checkpoints(output / "checkpoints")[1:])
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(two[name], three[name]) for name in two)
    assert all(torch.isfinite(tensor).all() for tensor in three.values())


def test_gradients_that_are_nan_end_a_run_only_when_three_come_in_a_row(output: Path) -> None:
    poison = ",".join(f"update.gradient=nan@{step}" for step in (1, 2, 4, 5, 6))
    with armed(poison), pytest.raises(NonFiniteError, match="3 steps in a row") as caught:
        train(small_config(output, max_steps=20, learning_rate=1e-5))
    assert caught.value.exit_code == 5
    told = status(output)
    saved = load_checkpoint(output / str(told["checkpoint"]))
    assert (told["state"], told["exit_code"]) == ("failed", 5)
    assert all(torch.isfinite(tensor).all() for tensor in saved.adapter.values())
    assert saved.progress["updated_steps"] == 1
    assert len(events(output, "step_skipped")) == 5


@pytest.mark.parametrize(
    ("site", "saved"),
    [
        ("decode.step@11", 2), ("look.micro_batch@4", 2), ("update.micro_batch@2", 1), ("grade.before@2", 2),
        ("optimizer.before_step@2", 2), ("optimizer.after_step@2", 2),
    ],
)  # fmt: skip
def test_sigterm_at_any_moment_saves_the_last_whole_step_and_ends_with_143(
    undisturbed: Path, output: Path, site: str, saved: int
) -> None:
    name, number = site.split("@")
    changes = TWICE | {"checkpoint": {"every": 50}}
    with armed(f"{name}=term@{number}"), pytest.raises(InterruptedRunError) as caught:
        train(small_config(output, **changes))
    assert caught.value.exit_code == 143
    told = status(output)
    assert (told["state"], told["exit_code"]) == ("interrupted", 143)
    assert told["checkpoint"] == f"checkpoints/step-{saved:06d}"
    train(small_config(output, **changes), resume="auto")
    assert differences(undisturbed, output) == []


def test_sigterm_during_an_evaluation_ends_with_143_and_loses_no_step(output: Path) -> None:
    changes = {"max_steps": 1, "eval": {"limit": 4, "batch_size": 2}, "reward": {"functions": {"accuracy": 1.0}}}
    for passing, newest in ((2, "step-000000"), (3, "step-000001")):
        with armed(f"evaluate.batch=term@{passing}"), pytest.raises(InterruptedRunError) as caught:
            train(small_config(output, **changes), resume="auto")
        assert caught.value.exit_code == 143
        assert status(output)["state"] == "interrupted"
        assert checkpoints(output / "checkpoints")[-1].name == newest


def test_sigterm_while_the_grading_server_is_waited_for_ends_the_wait(shared: Lent) -> None:
    from vgpo_lite.interruption import StopFlag

    with StopFlag() as stop, armed("grade.waiting=term@1"):
        shared.poll.stop = stop
        with pytest.raises(InterruptedRunError) as caught:
            shared.grader.correct([r"\boxed{x^2+1}"], ["1+x^2"])
    assert caught.value.exit_code == 143


def test_a_damaged_newest_checkpoint_is_left_behind_and_its_steps_are_taken_again(
    undisturbed: Path, output: Path
) -> None:
    with armed(passed=KillAt("adapter.before_files", 1)), pytest.raises(KilledError):
        train(small_config(output, **TWICE))
    newest = output / "checkpoints" / "step-000004"
    (newest / "optimizer.safetensors").write_bytes(b"half")
    train(small_config(output, **TWICE), resume="auto")
    assert differences(undisturbed, output) == []
    assert load_checkpoint(newest).step == 4
    assert sorted(path.name for path in newest.parent.iterdir()) == ["step-000003", "step-000004"]


def test_what_killed_processes_left_is_swept_and_nothing_else(undisturbed: Path, output: Path) -> None:
    with armed(passed=KillAt("optimizer.before_step", 3)), pytest.raises(KilledError):
        train(small_config(output, **TWICE))
    for name in (".tmp-adapter", ".trash-adapter-77", "checkpoints/.tmp-step-000003-77"):
        (output / name).mkdir()
        (output / name / "tmpabc.safetensors").write_bytes(b"as large as the real one")
    for name in (".status.json.77.tmp", "completions/.step-000002.parquet.77.tmp", ".note", "mine.tmp"):
        (output / name).write_bytes(b"half")
    train(small_config(output, **TWICE), resume="auto")
    assert leftovers(output) == [".note"]
    assert (output / "mine.tmp").exists()
    assert differences(undisturbed, output) == []


@pytest.mark.parametrize("mask", [0o022, 0o077], ids=oct)
def test_all_that_a_run_leaves_has_the_mode_the_user_asked_for(output: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        train(small_config(output, max_steps=1))
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in output.rglob("*")}
    assert any(path.name == "adapter_model.safetensors" for path in modes)
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_nothing_asks_the_network_after_the_run_has_been_opened(
    output: Path, shared: Lent, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    asked: list[object] = []

    def refused(self: socket.socket, address: object) -> None:
        asked.append(address)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket.socket, "connect_ex", refused)
    train(small_config(output, max_steps=2, eval={"limit": 2}))
    assert asked == []
    assert (output / "adapter" / "adapter_model.safetensors").is_file()


def test_a_tracker_that_fails_at_every_step_stops_nothing(output: Path, undisturbed: Path) -> None:
    pytest.importorskip("tensorboard")
    with armed("tracker.log=raise:OSError:101"):
        summary = train(small_config(output, **TWICE, report_to="tensorboard"))
    assert summary.updated_steps == 4
    assert differences(undisturbed, output) == []


def test_the_run_directory_is_free_again_after_every_kind_of_end(output: Path) -> None:
    with armed("update.gradient=nan"), pytest.raises(NonFiniteError):
        train(small_config(output))
    assert (output / ".lock").read_text() == ""
    with armed("decode.step=term@1"), pytest.raises(InterruptedRunError):
        train(small_config(output, max_steps=9), resume="auto")
    assert (output / ".lock").read_text() == ""
