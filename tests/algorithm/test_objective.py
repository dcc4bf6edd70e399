from __future__ import annotations

import math

import pytest
import torch

from tests.algorithm.batches import LOSSES, Step, gradient, objective_of
from tests.algorithm.groups import assert_close, more_padding
from tests.tolerances import FLOAT32, FLOAT64
from vgpo_lite.algorithm.objective import Objective, policy_loss, step_denominator
from vgpo_lite.algorithm.surrogate import importance_weight

NAN = float("nan")
LENGTHS = [7, 2, 11, 5, 1]


def values_by_hand(step: Step, objective: Objective) -> list[list[tuple[float, float]]]:
    """Loss and its derivative by the log-probability of each token, one after the other; GSPO in its token form."""
    rows = []
    for row in range(len(step.mask)):
        kept = step.mask[row]
        policy, others = step.logprobs.detach(), (step.ref_logprobs, step.advantages, step.sampling_logprobs)
        lists = [tensor[row][kept].tolist() for tensor in (policy, step.old_logprobs, *others)]
        tokens = list(zip(*lists, strict=True))
        log_ratios = [new - old for new, old, _, _, _ in tokens]
        mean_log_ratio = math.fsum(log_ratios) / len(log_ratios)
        values = []
        for (new, old, ref, advantage, drawn), log_ratio in zip(tokens, log_ratios, strict=True):
            ratio = math.exp(mean_log_ratio if objective.loss == "gspo" else log_ratio)
            if objective.loss == "cispo":
                value = -min(ratio, objective.clip_high) * advantage * new
                slope = -min(ratio, objective.clip_high) * advantage
            else:
                low, high = 1 - objective.clip_low, 1 + objective.clip_high
                value = -min(ratio * advantage, min(max(ratio, low), high) * advantage)
                is_cut = (ratio < low and advantage < 0) or (ratio > high and advantage > 0)
                slope = 0.0 if is_cut else -ratio * advantage
            if objective.importance_cap is not None:
                weight = min(math.exp(old - drawn), objective.importance_cap)  # constant: nothing flows through it
                value, slope = weight * value, weight * slope
            gap = ref - new
            k3 = math.exp(gap) - gap - 1
            # d/dnew of ratio * k3: the ratio's derivative is the ratio, k3's is 1 - exp(gap)
            value += objective.kl_coefficient * ratio * k3
            slope += objective.kl_coefficient * (ratio * k3 + ratio * (1 - math.exp(gap)))
            values.append((value, slope))
        rows.append(values)
    return rows


def step_by_hand(step: Step, objective: Objective) -> tuple[float, torch.Tensor]:
    """The step's loss and the gradient of each log-probability."""
    rows = values_by_hand(step, objective)
    token_count = sum(len(row) for row in rows)
    weights = {
        "dapo": [1 / token_count] * len(rows),
        "cispo": [1 / token_count] * len(rows),
        "dr_grpo": [1 / (len(rows) * objective.max_completion_length)] * len(rows),
        "grpo": [1 / (len(rows) * len(row)) for row in rows],
        "gspo": [1 / (len(rows) * len(row)) for row in rows],
    }[objective.loss]
    loss = math.fsum(value * weight for row, weight in zip(rows, weights, strict=True) for value, _ in row)
    slopes = torch.zeros(step.mask.shape, dtype=torch.float64)
    for index, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        slopes[index, : len(row)] = torch.tensor([slope * weight for _, slope in row])
    return loss, slopes


@pytest.mark.parametrize("importance_cap", [None, 2.0, 1e6])
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_its_gradient_equal_a_loop_over_tokens(loss, seed, kl_coefficient, importance_cap):
    step = Step.random(LENGTHS, seed=seed)
    objective = objective_of(loss, kl_coefficient=kl_coefficient, importance_cap=importance_cap)
    expected, slopes = step_by_hand(step, objective)
    actual = step.loss(objective).loss
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), FLOAT64)
    assert_close(gradient(actual, step), slopes, FLOAT32)


def test_dapo_of_three_tokens():
    # ratios 2, 1, 1/2 with advantages 1, -1, -1: clipped to 1.28, 1, and 0.8: losses -1.28, 1, 0.8; over 3 tokens
    logprobs = torch.tensor([[math.log(0.5), math.log(0.3)], [math.log(0.2), NAN]], dtype=torch.float64)
    old = torch.tensor([[math.log(0.25), math.log(0.3)], [math.log(0.4), NAN]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0], [-1.0, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    objective = Objective(loss="dapo", max_completion_length=4)
    loss = policy_loss(logprobs, old, advantages, mask, objective=objective, denominator=3.0)
    assert_close(loss.loss, torch.tensor((-1.28 + 1 + 0.8) / 3, dtype=torch.float64), FLOAT64)
    means = {name: float(total / count) for name, (total, count) in loss.sums.items()}
    assert means == pytest.approx(
        {
            "policy/loss": 0.52 / 3,
            "policy/ratio": 3.5 / 3,
            "policy/clip_low_share": 1 / 3,
            "policy/clip_high_share": 1 / 3,
            "policy/clip_share": 2 / 3,
        }
    )


def test_a_ratio_is_cut_only_on_the_side_its_advantage_pushes_it_to():
    # ratios 2 2 1/2 1/2 with advantages 1 -1 1 -1: only the first (too likely already) and the last (too unlikely
    # already) are cut. cispo caps the weight at 1.3 whichever the sign, and counts the first
    old = torch.tensor([[0.5, 0.5, 2.0, 2.0]], dtype=torch.float64).log()
    logprobs = torch.zeros(1, 4, dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    for loss, expected in {"dapo": [1, 1, 2], "cispo": [0, 1, 1]}.items():
        sums = policy_loss(logprobs, old, advantages, mask, objective=objective_of(loss), denominator=1.0).sums
        names = ("policy/clip_low_share", "policy/clip_high_share", "policy/clip_share")
        assert [int(sums[name][0]) for name in names] == expected


def test_losses_of_the_same_two_completions_differ_by_what_they_average_over():
    # ratio 1: the loss of a token is -A. A = 1 over 3 tokens and -2 over 1 token: the sum is -3 + 2 = -1
    # dapo -1 / 4; dr_grpo -1 / (2 * 8); grpo and gspo (-1 + 2) / 2 = 1/2; cispo -A log p: log p = -1: (3 - 2) / 4
    logprobs = torch.full((2, 3), -1.0, dtype=torch.float64)
    advantages = torch.tensor([[1.0, 1.0, 1.0], [-2.0, NAN, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    expected = {"dapo": -1 / 4, "dr_grpo": -1 / 16, "grpo": 0.5, "gspo": 0.5, "cispo": 1 / 4}
    for loss, value in expected.items():
        objective = Objective(loss=loss, max_completion_length=8, clip_high=2.0)
        denominator = step_denominator(objective, token_count=4, completion_count=2)
        actual = policy_loss(logprobs, None, advantages, mask, objective=objective, denominator=denominator)
        assert_close(actual.loss, torch.tensor(value, dtype=torch.float64), FLOAT64)


@pytest.mark.parametrize("loss", LOSSES)
def test_any_split_into_micro_batches_gives_the_same_loss_gradient_and_metrics(loss):
    step, objective = Step.random(LENGTHS, seed=1), objective_of(loss, kl_coefficient=0.3, importance_cap=2.0)
    whole = step.loss(objective)
    slopes, denominator = gradient(whole.loss, step), step.denominator(objective)
    for size in (1, 2, 3):
        parts = [
            step.rows(slice(first, first + size)).loss(objective, denominator=denominator)
            for first in range(0, len(LENGTHS), size)
        ]
        total = torch.stack([part.loss for part in parts]).sum()
        assert_close(total, whole.loss, FLOAT64)
        assert_close(gradient(total, step), slopes, FLOAT64)
        for name, (expected, expected_count) in whole.sums.items():
            assert_close(sum(part.sums[name][0] for part in parts), expected, FLOAT32)
            assert sum(part.sums[name][1] for part in parts) == expected_count
    total, count = whole.sums["policy/loss"]
    assert_close(total / count, whole.loss.detach(), FLOAT64)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("loss", LOSSES)
def test_order_and_padding_change_nothing(loss):
    step, objective = Step.random(LENGTHS, seed=2), objective_of(loss, kl_coefficient=0.3, importance_cap=2.0)
    expected = step.loss(objective).loss
    slopes = gradient(expected, step)
    assert not slopes.isnan().any()
    assert slopes[~step.mask].eq(0).all()
    shuffled = step.rows(torch.tensor([3, 0, 4, 2, 1])).loss(objective).loss
    assert_close(shuffled, expected, FLOAT64)
    assert_close(gradient(shuffled, step), slopes, FLOAT64)
    wide = Step(
        logprobs=more_padding(step.logprobs, by=6),
        old_logprobs=more_padding(step.old_logprobs, by=6, fill=torch.inf),
        ref_logprobs=more_padding(step.ref_logprobs, by=6, fill=-torch.inf),
        advantages=more_padding(step.advantages, by=6),
        sampling_logprobs=more_padding(step.sampling_logprobs, by=6, fill=-torch.inf),
        mask=torch.nn.functional.pad(step.mask, (0, 6)),
    )
    with torch.autograd.detect_anomaly():  # no nan on the way either
        padded = wide.loss(objective).loss
        assert_close(padded, expected, FLOAT64)
        assert_close(gradient(padded, step), slopes, FLOAT64)


@pytest.mark.parametrize("loss", LOSSES)
def test_before_the_first_update_the_ratio_is_exactly_one_and_nothing_is_clipped(loss):
    step, objective = Step.random(LENGTHS, seed=3), objective_of(loss)
    first = policy_loss(step.logprobs, None, step.advantages, step.mask, objective=objective, denominator=1.0)
    total, count = first.sums["policy/ratio"]
    assert torch.equal(total, count.double())
    assert first.sums["policy/clip_share"][0] == 0
    # the gradient of every loss is then -A times what it averages by
    weight = 1 / step.mask.sum(dim=-1, keepdim=True).double() if loss in ("grpo", "gspo") else 1.0
    expected = torch.where(step.mask, -step.advantages * weight, 0)
    assert_close(gradient(first.loss, step), expected, FLOAT64)


@pytest.mark.parametrize("has_old", [True, False], ids=["several updates", "one update"])
def test_tokens_that_something_else_drew_weigh_by_how_likely_they_were_for_the_policy_up_to_the_cap(has_old):
    # p = 0.6 drawn with 0.4: w = 1.5; p = 0.9 drawn with 0.3: w = 3, cut to 2; p = 0.2 drawn with 0.8: w = 1/4
    # at ratio 1 the loss is -(1.5 * 1 - 2 * 1 + 0.25 * 2) = 0, and its slopes -w A
    logprobs = torch.tensor([[0.6, 0.9, 0.2]], dtype=torch.float64).log().requires_grad_()
    drawn = torch.tensor([[0.4, 0.3, 0.8]], dtype=torch.float64).log()
    advantages, mask = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    part = policy_loss(
        logprobs,
        logprobs.detach() if has_old else None,
        advantages,
        mask,
        objective=objective_of("dapo", importance_cap=2.0),
        denominator=1.0,
        sampling_logprobs=drawn,
    )
    part.loss.backward()
    assert float(part.loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [pytest.approx([-1.5, 2.0, -0.5])]
    assert not importance_weight(logprobs, drawn, cap=2.0).requires_grad
    means = {name: float(total / count) for name, (total, count) in part.sums.items()}
    assert means["policy/importance_weight"] == pytest.approx((1.5 + 2 + 0.25) / 3)
    assert means["policy/importance_cut_share"] == pytest.approx(1 / 3)
    assert means["policy/sampling_gap"] == pytest.approx((math.log(1.5) + math.log(3) + math.log(4)) / 3)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_cap_what_sampled_is_not_looked_at(loss):
    step, objective = Step.random(LENGTHS, seed=4), objective_of(loss, kl_coefficient=0.3)
    plain = step.loss(objective)
    told = policy_loss(
        step.logprobs,
        step.old_logprobs,
        step.advantages,
        step.mask,
        objective=objective,
        denominator=step.denominator(objective),
        ref_logprobs=step.ref_logprobs,
        sampling_logprobs=step.sampling_logprobs,
    )
    assert torch.equal(told.loss, plain.loss)
    assert told.sums.keys() == plain.sums.keys()
    assert torch.equal(gradient(told.loss, step), gradient(plain.loss, step))


def test_gspo_sends_each_advantage_to_its_own_token():
    # only token 1 has an advantage: with one ratio for the whole completion all four tokens would share its gradient
    step = Step.random([4], seed=4, apart=0.01)
    step.advantages.zero_()[0, 1] = 1.0
    slopes = gradient(step.loss(objective_of("gspo")).loss, step)
    assert slopes[0].ne(0).tolist() == [False, True, False, False]


def test_kl_is_zero_where_policy_and_reference_agree_and_above_zero_elsewhere():
    step, objective = Step.random(LENGTHS, seed=5), objective_of("dapo", kl_coefficient=0.5)
    agreeing = policy_loss(
        step.logprobs,
        None,
        step.advantages,
        step.mask,
        objective=objective,
        denominator=1.0,
        ref_logprobs=step.logprobs.detach(),
    )
    assert agreeing.sums["policy/kl"][0] == 0
    assert step.loss(objective).sums["policy/kl"][0] > 0
    assert "policy/kl" not in step.loss(objective_of("dapo")).sums


def test_the_gradient_of_the_kl_term_is_that_of_the_reverse_divergence():
    # over all tokens of a vocabulary, weighted by p: the expected gradient equals that of sum p log(p / p_ref)
    logits = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    ref = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    objective = Objective(loss="dapo", max_completion_length=1, kl_coefficient=1.0)
    everywhere = torch.ones(1, dtype=torch.bool)
    expected_term = sum(
        p.detach()
        * policy_loss(
            logprobs[i : i + 1, None],
            None,
            torch.zeros(1, 1),
            everywhere[None],
            objective=objective,
            denominator=1.0,
            ref_logprobs=ref[i : i + 1, None],
        ).loss
        for i, p in enumerate(logprobs.exp())
    )
    divergence = (logprobs.exp() * (logprobs - ref)).sum()
    (actual,), (expected,) = (
        torch.autograd.grad(term, logits, retain_graph=True) for term in (expected_term, divergence)
    )
    assert_close(actual, expected, FLOAT64)


def test_step_denominators():
    def denominator(loss: str, tokens: int, completions: int) -> float:
        objective = Objective(loss=loss, max_completion_length=16)
        return step_denominator(objective, token_count=tokens, completion_count=completions)

    assert [denominator(loss, 100, 8) for loss in LOSSES] == [100.0, 8.0, 128.0, 8.0, 100.0]
    assert [denominator(loss, 0, 0) for loss in LOSSES] == [1.0] * 5  # a step without tokens has a loss of 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_completion_without_tokens_adds_nothing(loss):
    objective = objective_of(loss)
    empty = Step.random([3, 3], seed=6)
    empty.mask[1] = False
    first = empty.rows(slice(0, 1)).loss(objective, denominator=1.0).loss
    assert_close(empty.loss(objective, denominator=1.0).loss, first, FLOAT64)
    assert gradient(empty.loss(objective).loss, empty)[1].eq(0).all()


def test_the_dtype_is_kept():
    step, objective = Step.random(LENGTHS, seed=0), objective_of("dapo")
    assert step.loss(objective).loss.dtype == torch.float64
    float32 = [tensor.float() for tensor in (step.logprobs, step.old_logprobs, step.advantages)]
    result = policy_loss(*float32, step.mask, objective=objective, denominator=1.0)
    assert result.loss.dtype == torch.float32
    assert not any(total.requires_grad or count.requires_grad for total, count in result.sums.values())


def test_what_cannot_be_meant_is_refused():
    for option, message in {
        ("loss", "ppo"): "loss is 'ppo'; expected one of dapo",
        ("max_completion_length", 0): "max_completion_length is 0; expected at least 1",
        ("clip_low", 1.0): "clip_low is 1.0; expected a number between 0 and 1",
        ("clip_high", 0.0): "clip_high is 0.0; expected a number above 0",
        ("kl_coefficient", -1.0): "kl_coefficient is -1.0; expected a number >= 0",
        ("importance_cap", 0.0): "importance_cap is 0.0; expected a number above 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            Objective(**{"max_completion_length": 4, option[0]: option[1]})
    step = Step.random([2, 2], seed=0)
    for option, value, needed in (("kl_coefficient", 0.3, "ref"), ("importance_cap", 2.0, "sampling")):
        with pytest.raises(ValueError, match=rf"{option} is {value}, which needs {needed}_logprobs"):
            policy_loss(
                step.logprobs,
                None,
                step.advantages,
                step.mask,
                objective=objective_of("dapo", **{option: value}),
                denominator=1.0,
            )
