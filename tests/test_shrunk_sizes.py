"""Sizes that shrank because memory ran out stay small over a resume, and a run tells which it works with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from tests.cheap_runs import lent, small_config
from tests.test_out_of_memory import Heard, events
from tests.test_trainer import StopAfter, assert_same_run
from vgpo_lite.errors import InterruptedRunError
from vgpo_lite.failpoints import armed
from vgpo_lite.trainer import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def _cheap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with lent(tmp_path_factory.mktemp("lent")):
        yield


def sizes_of(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").open()]
    return [
        {name.removeprefix("memory/"): v for name, v in line.items() if name.startswith("memory/") and "per_" in name}
        for line in lines
    ]


def full_in_the_second_step() -> Callable[[str], None]:
    """Runs out of memory once while decoding and once while updating, both in step 2."""
    seen: set[str] = set()

    def passed(site: str) -> None:
        if "record.step" in seen and site in ("decode.step", "update.micro_batch") and site not in seen:
            seen.add(site)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        seen.update({site} & {"record.step"})

    return passed


def test_sizes_that_have_shrunk_stay_small_where_a_run_is_continued(tmp_path: Path) -> None:
    whole, stopped, heard = tmp_path / "whole", tmp_path / "stopped", Heard()
    changes = {"max_steps": 3, "prompts_per_step": 2, "checkpoint": {"every": 2}}
    with armed(passed=full_in_the_second_step()):
        train(small_config(whole, **changes))
    with armed(passed=full_in_the_second_step()), pytest.raises(InterruptedRunError):
        train(small_config(stopped, **changes), listener=StopAfter(step=2))
    train(small_config(stopped, **changes), listener=heard, resume="auto")
    assert_same_run(stopped, whole)
    large = {"prompts_per_decode": 2.0, "rows_per_decode": 4.0, "rows_per_micro_batch": 4.0}
    small = large | {"prompts_per_decode": 1.0, "rows_per_micro_batch": 2.0}
    assert sizes_of(stopped) == sizes_of(whole) == [large, small, small]
    assert len([event for event in events(stopped) if event["kind"] == "out_of_memory"]) == 2
    told = "memory ran out before, so sizes stay small: memory.rows_per_micro_batch is 2; groups of 4 decode 1 x 4 at"
    assert [note for note in heard.notes if note.startswith(told)]


def test_a_size_that_is_set_anew_counts_where_a_run_is_continued(tmp_path: Path) -> None:
    with armed("update.micro_batch=raise:oom@1"), pytest.raises(InterruptedRunError):
        train(small_config(tmp_path / "run", max_steps=2), listener=StopAfter(step=1))
    train(small_config(tmp_path / "run", max_steps=2, memory={"rows_per_micro_batch": 3}), resume="auto")
    assert [sizes["rows_per_micro_batch"] for sizes in sizes_of(tmp_path / "run")] == [2.0, 3.0]
