"""The flight recorder alone: what it keeps, what it lets go, and what it says of what is not there."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from tests.test_windows import scored_of
from vgpo_lite.checkpoint import Checkpoint, save_checkpoint
from vgpo_lite.config.load import load_config
from vgpo_lite.data_types import GroupSignals, StepReport
from vgpo_lite.errors import CheckpointError, ConfigError
from vgpo_lite.failpoints import armed
from vgpo_lite.journal import FOLDER, Journal, adapter_place, read_adapter, read_index, read_page
from vgpo_lite.preparation import Workbench
from vgpo_lite.windows import LearnedGroup, Window


class Trained:
    """A policy of one weight, and the journal of its run."""

    def __init__(self, run: Path, *, after: int = 0, trust_remote_code: bool = False, **settings: int) -> None:
        self.weights = torch.zeros(4, 256)
        policy = SimpleNamespace(model_id="tiny", revision=None, adapters=lambda: {"a.lora_B": self.weights})
        bench = SimpleNamespace(
            policy=policy, config=load_config(journal=settings, trust_remote_code=trust_remote_code)
        )
        self.failures: list[str] = []
        self.journal = Journal(run / FOLDER, cast("Workbench", bench), on_failure=self.failures.append)
        self.journal.forget_after(after)

    def step(self, number: int, *, groups: int = 2, loss: float = 0.5, moves: bool = True) -> Window:
        """Record one step; the weights then hold its number, unless it does not move them."""
        before = self.journal.before()
        scored = [scored_of([2, 3], [True, False], [0.0, 1.0], place=place) for place in range(groups)]
        signals = [
            GroupSignals(
                focus=torch.rand(2, 3), old_logprobs=None if place else torch.rand(2, 3), ref_logprobs=torch.rand(2, 3)
            )
            for place in range(groups)
        ]
        window = Window(sampled=scored, useful=scored, signals=(), metrics={"reward/mean": 0.5}, draws=groups)
        learned = [LearnedGroup(signals=each, advantages=torch.rand(2, 3), denominator=10.0) for each in signals]
        metrics = {"policy/grad_norm": loss} | ({"policy/loss": loss} if groups else {})
        self.journal.record(before, StepReport(step=number, metrics=metrics), window, learned, loss_scale=2.0)
        if moves:
            self.weights = torch.full_like(self.weights, number)
        return replace(window, signals=signals)


ADAPTER_BYTES = 4 * 256 * 4  # without the header


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def steps_with_adapter(run: Path) -> list[int]:
    return [entry.step for entry in read_index(run / FOLDER) if adapter_place(run, entry)]


def test_a_page_comes_back_as_it_was_recorded(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    trained = Trained(tmp_path)
    before = torch.get_rng_state()
    window = trained.step(1, loss=0.125)
    page = read_page(tmp_path, 1)
    assert (page.loss, page.grad_norm, page.denominator, page.loss_scale) == (0.125, 0.125, 10.0, 2.0)
    assert page.about["settings"]["num_generations"] == 8
    assert list(page.sample_ids) == ["row/0", "row/1"]
    assert (page.entry.groups, page.entry.tokens) == (2, 10)
    for index, scored in enumerate(window.useful):
        assert torch.equal(page.prompt_ids[index], scored.group.prompt.input_ids)
        assert torch.equal(page.window[f"{index}.completion_ids"], scored.group.completion_ids)
        assert torch.equal(page.window[f"{index}.focus"], cast("torch.Tensor", window.signals[index].focus))
        assert torch.equal(page.window[f"{index}.rewards"], scored.rewards.rewards)
    assert "0.old_logprobs" in page.window
    assert "1.old_logprobs" not in page.window
    assert torch.equal(page.generators["torch"], before)
    assert torch.equal(read_adapter(tmp_path, page.entry)["a.lora_B"], torch.zeros(4, 256))
    torch.set_rng_state(state)


def test_the_newest_steps_are_kept_and_nothing_else_lies_there(tmp_path: Path) -> None:
    trained = Trained(tmp_path, steps=3)
    for number in range(1, 6):
        trained.step(number)
    assert [entry.step for entry in read_index(tmp_path / FOLDER)] == [3, 4, 5]
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == ["adapters", "index.jsonl", *(f"step-{step:06d}.safetensors" for step in (3, 4, 5))]
    assert len(list((tmp_path / FOLDER / "adapters").iterdir())) == 3
    assert read_adapter(tmp_path, read_index(tmp_path / FOLDER)[0])["a.lora_B"].unique().tolist() == [2.0]


def test_adapters_go_before_steps_when_bytes_are_short_and_the_limit_holds_after_every_step(tmp_path: Path) -> None:
    page = _page_bytes(tmp_path / "measured")
    limit = 4 * page + 2 * (ADAPTER_BYTES + 200) + 4 * 400  # four steps and their lines, two adapters
    trained = Trained(tmp_path, max_bytes=limit)
    for number in range(1, 9):
        trained.step(number)
        assert bytes_below(tmp_path / FOLDER) <= limit
    assert [entry.step for entry in read_index(tmp_path / FOLDER)][-4:] == [5, 6, 7, 8]
    assert steps_with_adapter(tmp_path)[-1] == 8
    assert 1 <= len(steps_with_adapter(tmp_path)) <= 2


def _page_bytes(run: Path) -> int:
    Trained(run).step(1)
    return read_index(run / FOLDER)[0].bytes


@pytest.mark.parametrize("settings", [{"steps": 0}, {"max_bytes": 0}], ids=str)
def test_a_journal_that_is_switched_off_writes_nothing(tmp_path: Path, settings: dict[str, int]) -> None:
    Trained(tmp_path, **settings).step(1)
    assert not list(tmp_path.iterdir())


def test_a_limit_below_one_step_keeps_none(tmp_path: Path) -> None:
    Trained(tmp_path, max_bytes=1000).step(1)
    assert bytes_below(tmp_path / FOLDER) == 0


def test_steps_that_began_with_the_same_adapter_share_its_file_and_those_without_groups_need_none(
    tmp_path: Path,
) -> None:
    trained = Trained(tmp_path)
    trained.step(1, moves=False)
    trained.step(2)
    trained.step(3, groups=0, loss=math.nan)
    assert len(list((tmp_path / FOLDER / "adapters").iterdir())) == 1
    last = read_index(tmp_path / FOLDER)[-1]
    assert (last.step, last.groups, last.loss) == (3, 0, None)


def test_a_run_that_goes_on_forgets_later_steps_and_what_a_kill_left(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    for number in (1, 2, 3):
        trained.step(number)
    (tmp_path / FOLDER / ".step-000004.safetensors.77.tmp").write_bytes(b"half")
    (tmp_path / FOLDER / "step-000004.safetensors").write_bytes(b"not in the index yet")
    (tmp_path / FOLDER / "adapters" / ".x.tmp").write_bytes(b"half")
    again = Trained(tmp_path, after=1)
    assert [entry.step for entry in read_index(tmp_path / FOLDER)] == [1]
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        "adapters",
        "index.jsonl",
        "step-000001.safetensors",
    ]
    assert len(list((tmp_path / FOLDER / "adapters").iterdir())) == 1
    again.step(2)
    assert [entry.step for entry in read_index(tmp_path / FOLDER)] == [1, 2]


def test_a_full_disk_ends_the_journal_and_not_the_run_and_its_adapters_make_room(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    for number in (1, 2):
        trained.step(number)
    with armed("file.before_rename=raise:OSError:28"):
        trained.step(3)
    assert len(trained.failures) == 1
    assert "left alone from step 3 on" in trained.failures[0]
    assert "No space left on device" in trained.failures[0]
    trained.step(4)
    assert [entry.step for entry in read_index(tmp_path / FOLDER)] == [1, 2]
    assert steps_with_adapter(tmp_path) == []
    assert sorted(path.name for path in (tmp_path / FOLDER).rglob("*")) == [
        "adapters",
        "index.jsonl",
        "step-000001.safetensors",
        "step-000002.safetensors",
    ]


@pytest.mark.parametrize("site", ["file.before_write", "file.before_rename", "journal.before_rename"])
def test_a_journal_that_a_kill_cut_short_goes_on_where_it_was_whole(tmp_path: Path, site: str) -> None:
    class KilledError(BaseException):
        pass

    def kill(passed: str) -> None:
        if passed == site:
            raise KilledError

    trained = Trained(tmp_path)
    trained.step(1)
    with armed(passed=kill), pytest.raises(KilledError):
        trained.step(2)
    assert [entry.step for entry in read_index(tmp_path / FOLDER)] == [1]
    assert read_page(tmp_path, 1).loss == 0.5
    again = Trained(tmp_path, after=1)
    again.step(2)
    assert [entry.step for entry in read_index(tmp_path / FOLDER)] == [1, 2]
    assert len(list((tmp_path / FOLDER).iterdir())) == 4


def test_a_damaged_index_stops_no_run(tmp_path: Path) -> None:
    Trained(tmp_path).step(1)
    (tmp_path / FOLDER / "index.jsonl").write_text("{half a li")
    with pytest.raises(CheckpointError, match=r"index\.jsonl is damaged"):
        read_index(tmp_path / FOLDER)
    Trained(tmp_path, after=1).step(2)
    assert [entry.step for entry in read_index(tmp_path / FOLDER)] == [2]


def test_a_step_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no journal.*journal\.steps=0"):
        read_page(tmp_path, 1)
    trained = Trained(tmp_path, steps=3)
    for number in range(1, 6):
        trained.step(number)
    with pytest.raises(ConfigError, match="does not hold step 2; it holds 3-5"):
        read_page(tmp_path, 2)


def test_a_changed_page_and_a_changed_adapter_are_refused(tmp_path: Path) -> None:
    Trained(tmp_path).step(1)
    page = read_page(tmp_path, 1)
    for file in (tmp_path / FOLDER / page.entry.file, adapter_place(tmp_path, page.entry)):
        assert file is not None
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"the journal of step 1 is damaged: .*step-000001"):
        read_page(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"the adapter of step 1 is damaged: .* has sha256 \w{16}, recorded was"):
        read_adapter(tmp_path, page.entry)


def test_an_adapter_that_is_gone_names_the_steps_that_have_theirs_and_a_checkpoint_can_stand_in(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    for number in (1, 2, 3):
        trained.step(number)
    entry = read_index(tmp_path / FOLDER)[1]
    place = adapter_place(tmp_path, entry)
    assert place is not None
    place.unlink()
    with pytest.raises(CheckpointError, match=r"step 2 began with is not kept any more; .*: 1, 3\. A larger") as caught:
        read_adapter(tmp_path, entry)
    assert caught.value.exit_code == 3
    saved = Checkpoint(
        step=1,
        progress={},
        adapter={"a.lora_B": torch.ones(4, 256)},
        optimizer={"state": {}, "param_groups": []},
        generators={},
    )
    save_checkpoint(tmp_path / "checkpoints", saved, keep=2)
    assert read_adapter(tmp_path, entry)["a.lora_B"].unique().tolist() == [1.0]
