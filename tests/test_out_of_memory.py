"""A whole run that runs out of memory: it goes on where anything smaller fits, and ends in words where nothing does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow.parquet
import pytest
import torch

from tests.test_trainer import adapter, config_of, records
from vgpo_lite.errors import HardwareError
from vgpo_lite.failpoints import armed
from vgpo_lite.listening import SilentListener
from vgpo_lite.trainer import train

if TYPE_CHECKING:
    from pathlib import Path

ROUNDING = 1e-5
"""Relative: float32 through a whole step, cut into other parts."""


class Heard(SilentListener):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, message: str) -> None:
        self.notes.append(message)


def events(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]


def completions(output: Path, step: int) -> list[dict[str, object]]:
    return pyarrow.parquet.read_table(output / "completions" / f"step-{step:06d}.parquet").to_pylist()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(config_of(output, max_steps=2))
    return output


def test_a_run_out_of_memory_in_every_phase_trains_on_the_same_completions_with_the_same_gradient(
    undisturbed: Path, tmp_path: Path
) -> None:
    heard = Heard()
    with armed("decode.step=raise:oom@3,look.micro_batch=raise:oom@2,update.micro_batch=raise:oom@3"):
        train(config_of(tmp_path / "run", max_steps=2), listener=heard)
    for ours, theirs in zip(records(tmp_path / "run"), records(undisturbed), strict=True):
        assert ours == pytest.approx(theirs, rel=10 * ROUNDING, abs=ROUNDING)
        assert ours["policy/grad_norm"] == pytest.approx(theirs["policy/grad_norm"], rel=ROUNDING)
    for name, values in adapter(undisturbed).items():
        torch.testing.assert_close(adapter(tmp_path / "run")[name], values, rtol=0, atol=1e-4)
    for step in (1, 2):
        assert completions(tmp_path / "run", step) == completions(undisturbed, step)
    told = [event for event in events(tmp_path / "run") if event["kind"] == "out_of_memory"]
    assert [event["phase"] for event in told] == ["decoding", "looking", "updating"]
    assert [event["sizes"] for event in told] == [
        {"memory.prompts_per_decode": [2, 1]},
        {"memory.rows_per_micro_batch": [4, 2]},
        {"memory.rows_per_micro_batch": [2, 1]},
    ]
    assert [note for note in heard.notes if note.startswith("out of memory while updating")]
    rows = [json.loads(line)["memory/rows_per_micro_batch"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[-1] == 1.0


def test_a_run_in_which_nothing_fits_ends_with_what_would_need_less_and_can_be_continued(
    undisturbed: Path, tmp_path: Path
) -> None:
    smallest = {"rows_per_micro_batch": 1, "logprob_chunk": 16, "focus_chunk": 16}
    output, whole = tmp_path / "run", {"max_steps": 2, "checkpoint": {"every": 1}, "memory": smallest}
    passed: set[str] = set()

    def full_after_the_first_step(site: str) -> None:
        passed.add(site)
        if site == "update.micro_batch" and "optimizer.after_step" in passed:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with (
        armed(passed=full_after_the_first_step),
        pytest.raises(HardwareError, match=r"out of memory while updating") as caught,
    ):
        train(config_of(output, **whole))
    status = json.loads((output / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 4, str(caught.value))
    assert status["checkpoint"] == "checkpoints/step-000001"
    assert "--resume auto" in status["continue_with"]
    assert status["reason"].count("--set ") >= 3
    train(config_of(output, **whole), resume="auto")
    assert [line["step"] for line in records(output)] == [1, 2]
    assert completions(output, 2) == completions(undisturbed, 2)
