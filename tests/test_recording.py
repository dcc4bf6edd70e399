from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_windows import scored_of
from vgpo_lite.data_types import StepReport
from vgpo_lite.errors import ConfigError, InterruptedRunError, StorageError
from vgpo_lite.interruption import StopFlag
from vgpo_lite.recording import RunLock, RunRecorder, forget_after, recorded_values
from vgpo_lite.storage import discard_folder, replace_file, storage_errors


def test_a_run_directory_belongs_to_one_process_and_a_dead_owner_is_no_owner(tmp_path: Path) -> None:
    hold = "import sys; from pathlib import Path; from vgpo_lite.recording import RunLock\n"
    hold += "lock = RunLock(Path(sys.argv[1])); lock.__enter__(); print('held', flush=True); sys.stdin.read()"
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"in use by process {owner.pid}"), RunLock(tmp_path):
        pass
    owner.kill()
    owner.wait()
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_metrics_are_lines_of_json_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.step(StepReport(step=1, metrics={"policy/loss": 0.5, "policy/grad_norm": math.nan}))
    recorder.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "policy/loss": 0.5,
        "policy/grad_norm": None,
    }


def test_records_of_later_steps_are_forgotten_and_a_line_cut_by_a_kill_too(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    for step in (1, 2, 3):
        recorder.step(StepReport(step=step, metrics={"reward/mean": step / 4}))
        scored = scored_of([1, 2], [True, True], [0.0, 1.0])
        recorder.completions(step, [scored.group], [scored.rewards])
    recorder.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    forget_after(tmp_path, 2)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert sorted(p.name for p in (tmp_path / "completions").iterdir()) == [
        "step-000001.parquet",
        "step-000002.parquet",
    ]


def test_completions_are_written_one_row_each(tmp_path: Path) -> None:
    import pyarrow.parquet

    scored = scored_of([1, 2], [True, False], [0.0, 1.0])
    recorder = RunRecorder(tmp_path)
    recorder.completions(10, [scored.group], [scored.rewards])
    recorder.close()
    rows = pyarrow.parquet.read_table(tmp_path / "completions" / "step-000010.parquet").to_pylist()
    assert [(row["tokens"], row["finished"], row["reward"]) for row in rows] == [(1, True, 0.0), (2, False, 1.0)]
    assert rows[1]["completion"] == scored.group.texts[1]


def test_a_file_is_replaced_whole_with_the_mode_other_files_get(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "status.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    (tmp_path / "plain").write_bytes(b"")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert [p.name for p in path.parent.iterdir()] == ["status.json"]


def test_a_full_disk_is_a_storage_error_that_names_what_was_written() -> None:
    with pytest.raises(StorageError, match="The checkpoint could not be written: No space left on device") as caught:  # noqa: SIM117
        with storage_errors("The checkpoint"):
            raise OSError(28, "No space left on device")
    assert caught.value.exit_code == 6


def test_a_discarded_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "step-000001" / "sub").mkdir(parents=True)
    discard_folder(tmp_path / "step-000001")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_at_the_next_poll_with_its_exit_code(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopFlag() as stop:
        stop.poll()
        os.kill(os.getpid(), number)
        with pytest.raises(InterruptedRunError) as caught:
            stop.poll("any", "progress")
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_the_second_signal_leaves_at_once() -> None:
    program = "import os, signal\nfrom vgpo_lite.interruption import StopFlag\nwith StopFlag():\n"
    program += "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM); print('still here')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")


def test_a_metric_is_read_back_step_by_step(tmp_path: Path) -> None:
    assert recorded_values(tmp_path, "time/step_seconds") == []
    recorder = RunRecorder(tmp_path)
    for step, seconds in ((1, 2.5), (2, math.nan), (3, 3.5)):
        recorder.step(StepReport(step=step, metrics={"time/step_seconds": seconds}))
    recorder.close()
    assert recorded_values(tmp_path, "time/step_seconds") == [2.5, 3.5]
