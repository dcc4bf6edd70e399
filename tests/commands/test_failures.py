"""How commands fail: one message, the right exit code, no traceback unless asked for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vgpo_lite
from vgpo_lite import errors
from vgpo_lite.errors import ConfigError, InterruptedRunError, VgpoLiteError

ROOT = Path(vgpo_lite.__file__).parents[1]
DELIBERATE = {
    "ConfigError": 2,
    "DataError": 3,
    "PromptTooLongError": 3,
    "ImageOrderError": 3,
    "RewardError": 3,
    "CheckpointError": 3,
    "NothingLearnedError": 3,
    "MergeError": 3,
    "ModelError": 3,
    "PushError": 3,
    "HardwareError": 4,
    "NonFiniteError": 5,
    "InvariantError": 5,
    "StorageError": 6,
}


def train_that_raises(error: BaseException):
    def train(config, *, listener, resume):
        raise error

    return train


@pytest.mark.parametrize(("name", "code"), DELIBERATE.items())
def test_every_deliberate_error_ends_with_its_code_and_its_message_alone(cli, stand_in, name, code):
    stand_in("vgpo_lite.trainer", train=train_that_raises(vars(errors)[name]("the thing is so; do this.")))
    shown = cli("train", "--quiet")
    assert (shown.code, shown.err, shown.out) == (code, "error: the thing is so; do this.\n", "")


def test_no_deliberate_error_is_forgotten_here():
    defined = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, VgpoLiteError)
    }
    assert defined - {"VgpoLiteError", "InterruptedRunError", "PeerError"} == set(DELIBERATE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_names_the_command_that_continues_it(cli, stand_in, number):
    stand_in("vgpo_lite.trainer", train=train_that_raises(InterruptedRunError(number)))
    shown = cli("train", "--resume", "never", "--set", "data.prompt_style=direct", "-o", "a run")
    assert shown.code == 128 + number
    assert shown.err == (
        f"error: stopped by {number.name}. Continue with:\n"
        "  vgpo-lite train --set data.prompt_style=direct -o 'a run' --resume auto\n"
    )


def test_ctrl_c_outside_of_a_run_ends_with_130(cli, stand_in):
    stand_in("vgpo_lite.trainer", train=train_that_raises(KeyboardInterrupt()))
    shown = cli("train", "--quiet")
    assert (shown.code, shown.err) == (130, "error: stopped\n")


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/model"), 6, "No space left on device (/x/model)"),
        (OSError(errno.EROFS, "Read-only file system"), 6, "Read-only file system"),
        (MemoryError(), 4, "the machine is out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 4, "--set num_generations=4"),
    ],
)
def test_what_the_system_refuses_is_told_with_what_to_do(cli, stand_in, error, code, expected):
    stand_in("vgpo_lite.trainer", train=train_that_raises(error))
    shown = cli("train", "--quiet")
    assert shown.code == code
    assert expected in shown.err
    assert "Traceback" not in shown.err


def test_the_traceback_is_shown_when_asked_for(cli, stand_in, monkeypatch):
    stand_in("vgpo_lite.trainer", train=train_that_raises(ConfigError("so it is.")))
    monkeypatch.setattr("vgpo_lite.commands.failures._debugging", lambda: True)
    shown = cli("train", "--quiet")
    assert shown.code == 2
    assert "Traceback" in shown.err
    assert shown.err.endswith("error: so it is.\n")


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=variables)


UNEXPECTED = """
import sys, types
sys.modules["vgpo_lite.trainer"] = types.SimpleNamespace(train=lambda config, **rest: {}["missing"])
from vgpo_lite.commands import main
main(["train", "--quiet"])
"""


def test_an_unforeseen_error_is_short_and_leaves_its_traceback_in_a_file(tmp_path):
    done = run_python(UNEXPECTED, tmp_path, VGPO_LITE_DEBUG="0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: KeyError: 'missing'\nThis is a fault in vgpo-lite")
    assert "Traceback" not in done.stderr
    [report] = Path(tmp_path).glob("vgpo-lite-*.txt")
    assert str(report) in done.stderr
    assert "KeyError: 'missing'" in report.read_text()


def test_an_unforeseen_error_shows_its_traceback_when_asked_for(tmp_path):
    done = run_python(UNEXPECTED, tmp_path, VGPO_LITE_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m vgpo_lite recipe show defaults"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 where the pipe took everything before its reader left
    closed = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert (closed.returncode, closed.stderr) == (141, "")


def test_configuration_errors_name_flags_as_they_were_typed(cli):
    shown = cli("train", "--max-steps", "0", "--report-to", "wandbb", "--model", "qwen2-vl-2")
    assert shown.code == 2
    assert "max_steps is 0 (--max-steps)" in shown.err
    assert "report_to is 'wandbb' (--report-to)" in shown.err
    assert "did you mean wandb?" in shown.err
    assert "there is no model qwen2-vl-2 (--model)" in shown.err
