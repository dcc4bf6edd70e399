"""`accelerate launch` itself, as it is documented: two processes, a run that stops, and the command that it names."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cheap_runs import small_config
from tests.test_trainer import adapter, records
from vgpo_lite.config.writing import write_config
from vgpo_lite.trainer import train

ROOT = Path(__file__).parents[1]
ROUNDING = 1e-5
"""Relative: float32 through two steps more, on gradients added in another order."""


def run_as_typed(command: str, *, folder: Path, fault: str = "") -> subprocess.CompletedProcess[str]:
    """Run an `accelerate launch ...` or a `torchrun ...`, with this Python's launchers, on a port of its own."""
    program, *words = shlex.split(command)
    if program == "accelerate":
        launch = ["accelerate.commands.accelerate_cli", words.pop(0), "--main_process_port", "0"]
    else:
        assert program == "torchrun"
        launch = ["torch.distributed.run", "--standalone"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "VGPO_LITE_FAILPOINT": fault}
    return subprocess.run(
        [sys.executable, "-m", *launch, *words],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_launched_run_stops_and_goes_on_as_it_says_and_is_that_of_one_process(tmp_path: Path) -> None:
    settings = {"prompts_per_step": 2, "learning_rate": 1e-4}
    train(small_config(tmp_path / "one", **settings))
    write_config(small_config(tmp_path / "two", **settings), tmp_path / "recipe.yaml")
    typed = "accelerate launch --multi_gpu --num_processes 2 -m vgpo_lite train --recipe recipe.yaml --output two"
    stopped = run_as_typed(typed, folder=tmp_path, fault="record.step=term@2")
    assert stopped.returncode != 0
    assert stopped.stdout.count("Plan of the run") == 1, stopped.stdout + stopped.stderr
    status = json.loads((tmp_path / "two" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 143), stopped.stderr
    assert f"Continue with:\n  {typed} --resume auto" in stopped.stderr
    assert "--num_processes 2" in status["continue_with"]
    went_on = run_as_typed(status["continue_with"], folder=tmp_path)
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert json.loads((tmp_path / "two" / "status.json").read_text())["state"] == "finished"
    for ours, theirs in zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=ROUNDING, abs=1e-6)
    for name, values in adapter(tmp_path / "one").items():
        torch.testing.assert_close(adapter(tmp_path / "two")[name], values, rtol=0, atol=1e-4)
