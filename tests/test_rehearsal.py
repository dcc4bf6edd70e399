"""The largest group goes first, leaves nothing behind, and shrinks sizes before time is spent."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch

from tests.test_out_of_memory import Heard, events
from tests.test_trainer import assert_same_run, config_of
from vgpo_lite.data_types import Outline
from vgpo_lite.errors import HardwareError
from vgpo_lite.failpoints import armed
from vgpo_lite.lifecycle import open_run
from vgpo_lite.prompts import longest_prompts, prompt_lengths
from vgpo_lite.rehearsal import rehearse
from vgpo_lite.trainer import train

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 24
WORST_FIRST = {"memory": {"worst_first": True}, "max_completion_length": LIMIT, "max_steps": 1}


def test_the_largest_group_is_decoded_to_the_limit_and_leaves_nothing_but_a_record(tmp_path: Path) -> None:
    heard, passed = Heard(), Counter()
    with open_run(config_of(tmp_path / "run", **WORST_FIRST), listener=heard) as run:
        adapters = run.bench.policy.adapters()
        before = {name: parameter.detach().clone() for name, parameter in adapters.items()}
        generator = torch.get_rng_state()
        with armed(passed=lambda site: passed.update([site])):
            rehearse(run)
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(torch.equal(adapters[name], values) for name, values in before.items())
        assert all(parameter.grad is None for parameter in adapters.values())
        assert not run.optimizer.state
        assert (run.progress.step, run.progress.draws, run.pending) == (0, 0, None)
        outlines = list(run.bench.train.outlines())
        lengths = prompt_lengths(outlines, run.bench.policy.processor, run.config.data)
        rows = longest_prompts(outlines, run.bench.policy.processor, run.config.data, count=3)
        assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)[:3]
    assert (passed["decode.step"], passed["look.micro_batch"], passed["update.micro_batch"]) == (LIMIT, 1, 1)
    (event,) = [event for event in events(tmp_path / "run") if event["kind"] == "rehearsed"]
    assert (event["prompt_tokens"], event["completion_tokens"]) == (max(lengths), LIMIT)
    assert any("the largest group fits" in note for note in heard.notes)


def test_a_run_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    train(config_of(tmp_path / "with", **WORST_FIRST))
    train(config_of(tmp_path / "without", **WORST_FIRST | {"memory": {}}))
    assert_same_run(tmp_path / "with", tmp_path / "without")
    # auto: only on a GPU
    assert [any(e["kind"] == "rehearsed" for e in events(tmp_path / name)) for name in ("with", "without")] == [1, 0]


def test_what_does_not_fit_shrinks_before_the_first_step_and_stays_small(tmp_path: Path) -> None:
    with (
        armed("decode.step=raise:oom@2,update.micro_batch=raise:oom@1"),
        open_run(config_of(tmp_path / "run", **WORST_FIRST)) as run,
    ):
        rehearse(run)
        assert run.bench.engine.settings.rows_per_micro_batch == 2
    kinds = [(event["kind"], event.get("phase")) for event in events(tmp_path / "run")]
    assert kinds[-3:] == [("out_of_memory", "decoding"), ("out_of_memory", "updating"), ("rehearsed", None)]


def test_a_run_whose_largest_group_fits_at_no_size_ends_before_the_first_step(tmp_path: Path) -> None:
    with armed("decode.step=raise:oom"), pytest.raises(HardwareError, match="out of memory while decoding"):
        train(config_of(tmp_path / "run", **WORST_FIRST))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["checkpoint"]) == ("failed", 4, "checkpoints/step-000000")
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_only_prompts_that_may_be_among_the_longest_are_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    import vgpo_lite.prompts.lengths as lengths

    tokenized = []

    class ByWords:
        def __init__(self, *_: object) -> None:
            pass

        def most(self, outline: Outline) -> int:
            return len(outline.question)

        def exact(self, outline: Outline) -> int:
            tokenized.append(outline.question)
            return len(outline.question.split())

    monkeypatch.setattr(lengths, "_Lengths", ByWords)
    rows = [
        Outline(sample_id="", question=text, image_sizes=(), answer=None)
        for text in ("a b", "abcdefghij", "a b c d", "a", "")
    ]
    assert longest_prompts(rows, None, None, count=2) == [2, 0]
    assert tokenized == ["abcdefghij", "a b c d", "a b"]
