"""A run in several processes is the run of one, and what ends one of them ends all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

import vgpo_lite.trainer as trainer
from tests.cheap_runs import lent, small_config
from tests.several import in_processes
from tests.test_trainer import adapter, records
from vgpo_lite.checkpoint import state_bytes
from vgpo_lite.commands import main
from vgpo_lite.commands.app import app
from vgpo_lite.config.writing import write_config
from vgpo_lite.errors import ConfigError
from vgpo_lite.launch import Launch, launched, relaunched
from vgpo_lite.listening import SilentListener
from vgpo_lite.processes import joined
from vgpo_lite.sharing import dealt
from vgpo_lite.trainer import train

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import StepReport

SAME_GRADIENT = 1e-6
"""Promised: norm of the difference over the norm, of the whole gradient."""
ROUNDING = 1e-5
"""Relative: float32 through a step more, from weights that differ by the rounding of the step before."""


@pytest.fixture(scope="module", autouse=True)
def _cheap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with lent(tmp_path_factory.mktemp("lent")):
        yield


def config_of(output: Path, **changes: object) -> RunConfig:
    return small_config(output, **({"max_steps": 1, "prompts_per_step": 3, "learning_rate": 1e-4} | changes))


def taken(config: RunConfig, *, listener: SilentListener | None = None, resume: str = "never") -> dict[str, Any]:
    """A run, and the gradients that its steps were taken with."""
    gradients: list[torch.Tensor] = []
    apply = trainer.apply_gradients

    def kept(optimizer: torch.optim.Optimizer, **options: Any) -> Any:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        done = apply(optimizer, **options)
        moved.append(hashlib.sha256(state_bytes({str(i): p for i, p in enumerate(parameters)})).hexdigest())
        return done

    moved: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "apply_gradients", kept)
        summary = train(config, listener=listener, resume=resume)
    return {"gradients": [g.numpy() for g in gradients], "moved": moved, "accuracy": (summary.before, summary.after)}


def off(found: Any, expected: Any) -> float:
    found, expected = torch.from_numpy(found).double(), torch.from_numpy(expected).double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "changes",
    [
        {"eval": {"limit": 3, "batch_size": 2}},
        {
            "loss": "grpo",
            "max_steps": 2,
            "num_iterations": 2,
            "kl_coefficient": 0.1,
            "memory": {"rows_per_micro_batch": 1},
        },
        {"loss": "dr_grpo", "engine": "batched", "focus": {"signal": "similarity"}},
    ],
    ids=["tokens of the step", "completions, two updates, reference", "greatest lengths, batched"],
)
def test_two_processes_take_the_steps_of_one(tmp_path: Path, changes: dict[str, object]) -> None:
    one = taken(config_of(tmp_path / "one", **changes))
    two = in_processes(tmp_path, lambda _rank: taken(config_of(tmp_path / "two", **changes)))
    assert two[0]["moved"] == two[1]["moved"]
    assert all((left == right).all() for left, right in zip(two[0]["gradients"], two[1]["gradients"], strict=True))
    assert off(two[0]["gradients"][0], one["gradients"][0]) <= SAME_GRADIENT
    assert off(two[0]["gradients"][-1], one["gradients"][-1]) <= ROUNDING
    assert two[0]["accuracy"] == two[1]["accuracy"] == one["accuracy"]
    for step, (ours, theirs) in enumerate(zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True)):
        assert ours == pytest.approx(theirs, rel=ROUNDING if step else SAME_GRADIENT, abs=1e-6)
    for file in (tmp_path / "one" / "completions").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "completions" / file.name).read_bytes()
    assert (tmp_path / "two" / "journal" / "index.jsonl").exists()


class StopItself(SilentListener):
    """Sends this process alone a signal in its second step."""

    def __init__(self) -> None:
        self.is_second = False

    def stepped(self, report: StepReport, seconds_left: float) -> None:
        self.is_second = True

    def progressed(self, phase: str, done: int, total: int) -> None:
        if self.is_second and phase == "update":
            os.kill(os.getpid(), signal.SIGTERM)


def status_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "status.json").read_text())


def test_a_signal_to_one_process_stops_all_and_any_number_of_them_goes_on(tmp_path: Path) -> None:
    one = taken(config_of(tmp_path / "one", max_steps=2))
    config = config_of(tmp_path / "run", max_steps=2)
    stopped = in_processes(tmp_path / "stopped", lambda _rank: train(config, listener=StopItself()))
    assert [(end.kind, end.exit_code) for end in stopped] == [("InterruptedRunError", 143)] * 2
    status = status_of(tmp_path / "run")
    assert (status["state"], status["exit_code"], status["checkpoint"]) == (
        "interrupted",
        143,
        "checkpoints/step-000001",
    )
    assert status["continue_with"] == (
        f"accelerate launch --multi_gpu --num_processes 2 -m vgpo_lite train --recipe {tmp_path}/run/config.yaml "
        f"--output {tmp_path}/run --resume auto"
    )
    again = in_processes(tmp_path / "again", lambda _rank: taken(config, resume="auto"), count=3)
    assert again[0]["moved"] == again[1]["moved"] == again[2]["moved"]
    assert len(again[0]["moved"]) == 1
    assert off(again[0]["gradients"][0], one["gradients"][1]) <= ROUNDING
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 2]
    for name, values in adapter(tmp_path / "one").items():
        torch.testing.assert_close(adapter(tmp_path / "run")[name], values, rtol=0, atol=1e-4)


def test_memory_that_runs_out_in_one_process_costs_it_time_and_the_run_ends_where_nothing_fits(tmp_path: Path) -> None:
    one = taken(config_of(tmp_path / "one", max_steps=1))
    once = "decode.step=raise:oom@2,update.micro_batch=raise:oom@1"
    two = in_processes(tmp_path / "a", lambda _rank: taken(config_of(tmp_path / "run", max_steps=1)), faults={1: once})
    assert off(two[0]["gradients"][0], one["gradients"][0]) <= SAME_GRADIENT
    always = "update.micro_batch=raise:oom"
    config = config_of(tmp_path / "full")
    failed = in_processes(tmp_path / "b", lambda _rank: train(config), faults={1: always})
    assert [(end.kind, end.exit_code) for end in failed] == [("PeerError", 4), ("HardwareError", 4)]
    assert failed[0].message == f"process 1 of 2: {failed[1].message}"
    status = status_of(tmp_path / "full")
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 4, failed[0].message)


@pytest.mark.parametrize(
    ("fault", "first", "second"),
    [
        ({0: "record.step=raise:OSError:28"}, ("StorageError", 6), ("PeerError", 6)),
        ({1: "grade.before=kill@1"}, ("HardwareError", 4), None),
    ],
    ids=["the first cannot write", "another is killed"],
)
def test_what_befalls_one_process_outside_of_its_work_ends_the_others(
    tmp_path: Path, fault: dict[int, str], first: tuple[str, int], second: tuple[str, int] | None
) -> None:
    config = config_of(tmp_path / "run")
    ended = in_processes(tmp_path, lambda _rank: train(config), faults=fault)
    assert [None if end is None else (end.kind, end.exit_code) for end in ended] == [first, second]
    assert status_of(tmp_path / "run")["exit_code"] == first[1]


def test_more_processes_than_prompts_and_other_data_are_refused_in_all(tmp_path: Path) -> None:
    idle = in_processes(tmp_path / "a", lambda _rank: train(config_of(tmp_path / "idle", prompts_per_step=1)))
    assert [end.exit_code for end in idle] == [2, 2]
    assert "2 processes share the groups of a step, but prompts_per_step is 1" in idle[1].message
    other = in_processes(tmp_path / "b", lambda rank: train(config_of(tmp_path / "other", seed=rank)))
    assert [end.exit_code for end in other] == [3, 3]
    assert "settings.seed is 0 there and 1 here" in other[0].message


def test_the_command_speaks_once_however_many_processes_there_are(tmp_path: Path) -> None:
    write_config(config_of(tmp_path / "unused"), tmp_path / "recipe.yaml")

    def work(rank: int) -> None:
        said = os.open(tmp_path / f"said-{rank}", os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        sys.argv = ["vgpo-lite", "train", "--recipe", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]
        main(sys.argv[1:])

    ended = in_processes(tmp_path, work, faults={1: "look.micro_batch=term@1"})
    assert [(end.kind, end.exit_code) for end in ended] == [("SystemExit", 143)] * 2
    first, second = ((tmp_path / f"said-{rank}").read_text() for rank in range(2))
    assert "Plan of the run" in first
    assert "error: stopped by SIGTERM. Continue with:\n  accelerate launch --multi_gpu --num_processes 2 -m" in first
    assert second == ""


def launch(patch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        patch.setenv(name, value)


def test_the_launcher_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() == Launch(rank=0, count=1, local_rank=0)
    launch(monkeypatch, RANK="3", WORLD_SIZE="8", LOCAL_RANK="1")
    assert launched() == Launch(rank=3, count=8, local_rank=1)
    launch(monkeypatch, RANK="8")
    with pytest.raises(ConfigError, match="the launcher says RANK='8', WORLD_SIZE='8', LOCAL_RANK='1'"):
        launched()


def test_what_gives_a_process_part_of_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", ACCELERATE_USE_FSDP="true")
    with pytest.raises(ConfigError, match=r"accelerate is configured for FSDP.*VGPOTrainer"), joined(on_cards=False):
        pass


def test_other_commands_than_train_refuse_to_run_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")
    result = CliRunner().invoke(app, ["eval"])
    assert result.exit_code == 2
    assert "launched as 2 processes, but `vgpo-lite train` alone runs in several" in result.output


def test_the_dearest_groups_are_dealt_first_and_every_group_once() -> None:
    assert dealt([10, 90, 40, 40, 20], 2) == [[0, 1], [2, 3, 4]]
    assert dealt([7, 7], 3) == [[0], [1], []]
    shares = dealt([float(cost % 13) for cost in range(50)], 4)
    assert sorted(place for share in shares for place in share) == list(range(50))
    loads = [sum(place % 13 for place in share) for share in shares]
    assert max(loads) - min(loads) <= 13


@pytest.mark.parametrize(
    ("world", "local", "expected"),
    [
        ("1", "1", "vgpo-lite"),
        ("4", "4", "accelerate launch --multi_gpu --num_processes 4 -m vgpo_lite"),
        ("4", "", "accelerate launch --multi_gpu --num_processes 4 -m vgpo_lite"),
        (
            "8",
            "4",
            "accelerate launch --multi_gpu --num_processes 8 --num_machines 2 --machine_rank RANK --main_process_ip IP "
            "-m vgpo_lite",
        ),
    ],
)
def test_a_run_is_started_again_on_as_many_machines_and_cards(monkeypatch, world, local, expected):
    for name, value in {"RANK": "0", "WORLD_SIZE": world, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": local}.items():
        monkeypatch.setenv(name, value)
    assert relaunched("vgpo-lite") == expected
