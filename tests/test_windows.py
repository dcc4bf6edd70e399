from __future__ import annotations

import pytest
import torch

from vgpo_lite.data_types import GroupRewards, GroupSignals, Prompt, RolloutGroup, Sample
from vgpo_lite.metrics import Tally, focus_counts, rollout_metrics
from vgpo_lite.ordering import PromptOrder
from vgpo_lite.windows import ScoredGroup, Window, restored_window, window_tensors


def prompt_of(name: str) -> Prompt:
    sample = Sample(sample_id=name, question="?", images=(), answer="1")
    return Prompt(sample=sample, text="?", input_ids=torch.tensor([1, 2]), image_mask=torch.zeros(2, dtype=torch.bool))


def scored_of(lengths: list[int], finished: list[bool], rewards: list[float], place: int = 0) -> ScoredGroup:
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.arange(len(lengths) * width).reshape(-1, width)
    group = RolloutGroup(
        prompt=prompt_of(f"row/{place}"),
        completion_ids=ids,
        completion_mask=mask,
        sampling_logprobs=torch.where(mask, -0.5, 0.0),
        decode_focus=torch.where(mask, 0.25, 0.0),
        finished=torch.tensor(finished),
        texts=tuple(" ".join(str(int(i)) for i in row[kept]) for row, kept in zip(ids, mask, strict=True)),
    )
    values = torch.tensor(rewards)
    return ScoredGroup(
        group=group,
        rewards=GroupRewards(
            rewards=values, components={"accuracy": values, "format": torch.full_like(values, torch.nan)}
        ),
        advantages=values - values.mean(),
        place=place,
    )


def test_a_window_comes_back_from_its_tensors() -> None:
    scored = [
        scored_of([2, 3], [True, False], [0.0, 1.0], place=7),
        scored_of([1, 1], [True, True], [1.0, 0.0], place=9),
    ]
    signals = [
        GroupSignals(focus=torch.rand(2, 3), old_logprobs=torch.rand(2, 3), ref_logprobs=None),
        GroupSignals(focus=None, old_logprobs=torch.rand(2, 1), ref_logprobs=torch.rand(2, 1)),
    ]
    window = Window(sampled=scored, useful=scored, signals=signals, metrics={"reward/mean": 0.1}, draws=12, updates=1)
    back = restored_window(
        window_tensors(window),
        prompt_at=lambda place: prompt_of(f"row/{place}"),
        text_of=lambda ids: " ".join(str(int(i)) for i in ids),
    )
    assert back.metrics == {"reward/mean": 0.1}
    assert (back.draws, back.updates, back.token_count, back.completion_count) == (12, 1, 7, 4)
    for left, right in zip(scored, back.useful, strict=True):
        assert left.group.texts == right.group.texts
        assert right.group.prompt.sample.sample_id == f"row/{left.place}"
        for name in ("completion_ids", "completion_mask", "sampling_logprobs", "decode_focus", "finished"):
            assert torch.equal(getattr(left.group, name), getattr(right.group, name)), name
        assert torch.equal(left.advantages, right.advantages)
        assert left.rewards.components.keys() == right.rewards.components.keys()
    assert torch.equal(back.signals[0].focus, signals[0].focus)
    assert back.signals[1].focus is None
    assert torch.equal(back.signals[1].ref_logprobs, signals[1].ref_logprobs)


def test_truncated_completions_leave_the_group_but_stay_in_its_advantages() -> None:
    scored = scored_of([2, 3, 1], [True, False, True], [0.0, 1.0, 0.5])
    kept = scored.without_truncated()
    assert kept.group.texts == (scored.group.texts[0], scored.group.texts[2])
    assert kept.advantages.tolist() == [-0.5, 0.0]  # 0 - 0.5 and 0.5 - 0.5: the mean of all three is 0.5
    assert kept.group.completion_mask.shape[0] == kept.rewards.rewards.shape[0] == 2


def test_a_group_of_equal_rewards_is_not_useful() -> None:
    assert not scored_of([1, 1], [True, True], [1.0, 1.0]).is_useful
    assert scored_of([1, 1], [True, True], [1.0, 0.0]).is_useful


def test_a_prompt_order_visits_every_row_once_per_pass_in_another_order_each_time() -> None:
    order = PromptOrder(seed=3, rows=50)
    passes = [[order.row(draw) for draw in range(start, start + 50)] for start in (0, 50, 100)]
    assert all(sorted(rows) == list(range(50)) for rows in passes)
    assert passes[0] != passes[1] != passes[2]
    again = PromptOrder(seed=3, rows=50)
    assert [again.row(draw) for draw in (120, 3, 77)] == [passes[2][20], passes[0][3], passes[1][27]]


def test_an_order_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row, got 0"):
        PromptOrder(seed=0, rows=0)


def test_a_tally_does_not_show_how_its_parts_were_split() -> None:
    whole, parts = Tally(), Tally()
    whole.add({"policy/loss": (6.0, 4.0)})
    for pair in ((1.0, 1.0), (5.0, 3.0)):
        parts.add({"policy/loss": pair})
    assert whole.means() == parts.means() == {"policy/loss": 1.5}


def test_early_and_late_focus_are_the_two_halves_of_each_completion() -> None:
    # Lengths 4 and 3. Late: tokens with 2 t > T, t from 1: {3, 4} of the first, {2, 3} of the second.
    focus = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, torch.nan]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    tally = Tally()
    tally.add(focus_counts(focus, mask))
    means = tally.means()
    assert means["focus/mean"] == pytest.approx(2.8 / 7)
    assert means["focus/early"] == pytest.approx((0.1 + 0.2 + 0.5) / 3)
    assert means["focus/late"] == pytest.approx((0.3 + 0.4 + 0.6 + 0.7) / 4)


def test_rollout_metrics_count_every_sampled_group_and_leave_out_what_no_function_said() -> None:
    sampled = [scored_of([2, 4], [True, False], [0.0, 1.0]), scored_of([1, 1], [True, True], [1.0, 1.0])]
    metrics = rollout_metrics(sampled, trained=1)
    assert metrics["reward/mean"] == 0.75
    assert metrics["reward/std"] == 0.25  # (0.5 + 0) / 2
    assert metrics["groups/useful_share"] == 0.5
    assert metrics["completions/mean_length"] == 2.0
    assert metrics["completions/truncated_share"] == 0.25
    assert metrics["reward/accuracy"] == 0.75
    assert "reward/format" not in metrics
