from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vgpo_lite
from vgpo_lite.errors import ConfigError
from vgpo_lite.failpoints import SITES, VARIABLE, armed, failpoint, parsed, poisoned
from vgpo_lite.interruption import StopFlag

PACKAGE = Path(vgpo_lite.__file__).parent


def sites_in_the_code() -> set[str]:
    """What the package passes to `failpoint` and `poisoned`, and to who passes it on."""
    place = {"failpoint": 0, "poisoned": 0, "_append": 1}
    calls = [
        (node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", ""), node.args)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]
    arguments = [args[place[name]] for name, args in calls if name in place]
    return {argument.value for argument in arguments if isinstance(argument, ast.Constant)}


def in_a_process(program: str, specification: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, VARIABLE: specification}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def test_the_table_of_sites_is_what_the_code_names() -> None:
    assert sites_in_the_code() == set(SITES)


def test_without_faults_a_site_does_nothing_and_a_value_is_itself() -> None:
    value = torch.ones(2)
    failpoint("decode.step")
    assert poisoned("update.gradient", value) is value


@pytest.mark.parametrize(
    ("action", "error"), [("raise:oom", torch.cuda.OutOfMemoryError), ("raise:OSError:28", OSError)], ids=str
)
def test_a_fault_befalls_its_site_alone_and_only_the_passing_it_was_asked_for(
    action: str, error: type[Exception]
) -> None:
    with armed(f"decode.step={action}@2"):
        failpoint("grade.before")
        failpoint("decode.step")
        with pytest.raises(error, match=r"injected at decode\.step") as caught:
            failpoint("decode.step")
        failpoint("decode.step")
    if isinstance(caught.value, OSError):
        assert caught.value.errno == 28
    failpoint("decode.step")


def test_without_a_number_every_passing_is_met_and_several_faults_stand_side_by_side() -> None:
    passed: list[str] = []
    with armed("decode.step=raise:OSError:5, update.gradient=nan@1", passed=passed.append):
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                failpoint("decode.step")
        assert poisoned("update.gradient", torch.ones(2)).isnan().all()
        assert poisoned("update.gradient", torch.ones(2)).eq(1).all()
    assert passed == ["decode.step", "decode.step", "update.gradient", "update.gradient"]


def test_a_poisoned_loss_gives_gradients_that_are_nan() -> None:
    weight = torch.ones(3, requires_grad=True)
    with armed("update.gradient=nan"):
        poisoned("update.gradient", weight.sum()).backward()
    assert weight.grad is not None
    assert weight.grad.isnan().all()


def test_term_asks_the_run_to_stop_and_sleep_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with StopFlag() as stop, armed("grade.before=term,decode.step=sleep:60"):
        failpoint("decode.step")
        failpoint("grade.before")
        with pytest.raises(Exception, match="SIGTERM"):
            stop.poll()
    assert waits == [60.0]


def test_kill_ends_a_process_at_the_passing_that_the_environment_names() -> None:
    program = "from vgpo_lite.failpoints import failpoint\n"
    program += "for n in (1, 2, 3):\n    print(n, flush=True)\n    failpoint('record.step')"
    done = in_a_process(program, "record.step=kill@2")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1\n2\n")


def test_sites_load_no_torch() -> None:
    program = "import sys; from vgpo_lite.failpoints import failpoint; failpoint('record.step'); print(*sys.modules)"
    loaded = in_a_process(program, "record.event=kill").stdout.split()
    assert loaded
    assert "torch" not in loaded


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ("checkpoint.befor_rename=kill", ("'checkpoint.befor_rename'", "checkpoint.before_rename, ")),
        ("decode.step", ("the action ''", "raise:oom")),
        ("decode.step=explode", ("'explode'", "kill, term, raise:oom")),
        ("decode.step=raise:OSError:full", ("'raise:OSError:full'", "raise:OSError:28")),
        ("decode.step=kill@0", ("passing '0'", "@2")),
        ("decode.step=kill@", ("passing ''", "@2")),
        ("decode.step=nan", ("nan at 'decode.step'", "update.gradient")),
    ],
    ids=str,
)
def test_what_cannot_be_armed_is_a_config_error_that_names_what_can(specification: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(specification)
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in words)


def test_a_command_refuses_an_unknown_site_before_it_begins() -> None:
    root = PACKAGE.parent
    done = subprocess.run(
        [sys.executable, "-m", "vgpo_lite", "train", "--dry-run"],
        cwd=root, env={**os.environ, VARIABLE: "train.everything=kill"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "train.everything" in done.stderr
    assert "checkpoint.before_rename" in done.stderr
