from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tests.test_windows import scored_of
from vgpo_lite.data_types import GroupSignals
from vgpo_lite.engine.optimizer import GradientStep
from vgpo_lite.errors import InvariantError
from vgpo_lite.evaluation import wilson_interval
from vgpo_lite.invariants import AdaptersMoved, check_first_group

GROUP = scored_of([2, 3], [True, True], [0.0, 1.0]).group


def engine_that_sees(old: torch.Tensor, reference: torch.Tensor) -> SimpleNamespace:
    signals = GroupSignals(focus=None, old_logprobs=old, ref_logprobs=reference)
    return SimpleNamespace(look=lambda group, *, keep_graph, reference: SimpleNamespace(signals=signals))


def test_log_probabilities_that_agree_pass_and_the_gaps_are_reported() -> None:
    seen = torch.where(GROUP.completion_mask, GROUP.sampling_logprobs + 2e-5, torch.nan)
    policy = SimpleNamespace(dtype=torch.float32)
    gaps = check_first_group(engine_that_sees(seen, seen), policy, GROUP, fresh_adapter=True)
    assert gaps["invariants/sampling_gap"] == (pytest.approx(2e-5, rel=1e-2), 1.0)
    assert gaps["invariants/sampling_gap_max"] == (pytest.approx(2e-5, rel=1e-2), 1.0)
    assert gaps["invariants/reference_gap"] == (0.0, 1.0)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 3e-4), (torch.bfloat16, 0.3)])
def test_an_update_that_sees_other_log_probabilities_than_sampling_stops_the_run(
    dtype: torch.dtype, gap: float
) -> None:
    seen = GROUP.sampling_logprobs - gap
    with pytest.raises(InvariantError, match="would not train on what it samples") as caught:
        check_first_group(engine_that_sees(seen, seen), SimpleNamespace(dtype=dtype), GROUP, fresh_adapter=True)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("samples_itself", [True, False])
def test_a_gap_that_is_not_a_number_stops_the_run(samples_itself: bool) -> None:
    seen = torch.full_like(GROUP.sampling_logprobs, math.nan)
    policy, engine = SimpleNamespace(dtype=torch.float32), engine_that_sees(seen, seen)
    with pytest.raises(InvariantError):
        check_first_group(engine, policy, GROUP, fresh_adapter=False, samples_itself=samples_itself)


def test_the_gap_of_a_copy_that_samples_is_reported_and_stops_nothing() -> None:
    apart = torch.zeros_like(GROUP.sampling_logprobs)
    apart[0, 0] = 3.0
    seen, tokens = GROUP.sampling_logprobs + apart, int(GROUP.completion_mask.sum())
    engine, policy = engine_that_sees(seen, seen), SimpleNamespace(dtype=torch.float32)
    gaps = check_first_group(engine, policy, GROUP, fresh_adapter=True, samples_itself=False)
    assert gaps["invariants/sampling_gap"] == (pytest.approx(3.0 / tokens), 1.0)
    assert gaps["invariants/sampling_gap_max"] == (pytest.approx(3.0), 1.0)


def test_a_fresh_adapter_must_change_nothing_and_a_trained_one_may() -> None:
    seen, policy = GROUP.sampling_logprobs, SimpleNamespace(dtype=torch.float32)
    engine = engine_that_sees(seen, seen - 0.5)
    with pytest.raises(InvariantError, match="fresh adapter"):
        check_first_group(engine, policy, GROUP, fresh_adapter=True)
    gaps = check_first_group(engine, policy, GROUP, fresh_adapter=False)
    assert gaps["invariants/reference_gap"][0] == pytest.approx(0.5)


def policy_with_adapters() -> SimpleNamespace:
    parameters = {
        f"layers.{layer}.lora_{side}.default.weight": torch.nn.Parameter(torch.zeros(2, 2) + (side == "A"))
        for layer in range(2)
        for side in "AB"
    }
    return SimpleNamespace(adapters=lambda: parameters)


def test_an_adapter_that_the_first_update_did_not_move_is_named() -> None:
    policy = policy_with_adapters()
    watch = AdaptersMoved(policy)
    with torch.no_grad():
        policy.adapters()["layers.0.lora_B.default.weight"].add_(1e-6)
    with pytest.raises(InvariantError, match=r"did not move 1 adapters: .*layers\.1"):
        watch.after(GradientStep(norm=0.1, applied=True), learning_rate=1e-6)


def test_adapters_are_judged_once_and_only_by_an_update_that_could_move_them() -> None:
    policy = policy_with_adapters()
    watch = AdaptersMoved(policy)
    for gradient, rate in ((GradientStep(norm=0.0, applied=True), 1.0), (GradientStep(norm=0.1, applied=False), 1.0)):
        watch.after(gradient, learning_rate=rate)
    watch.after(GradientStep(norm=0.1, applied=True), learning_rate=0.0)
    with torch.no_grad():
        for parameter in policy.adapters().values():
            parameter.add_(1.0)
    watch.after(GradientStep(norm=0.1, applied=True), learning_rate=1.0)
    with torch.no_grad():
        for parameter in policy.adapters().values():
            parameter.sub_(1.0)
    watch.after(GradientStep(norm=0.1, applied=True), learning_rate=1.0)  # as before the first: no longer judged


def test_the_wilson_interval_covers_as_often_as_it_says() -> None:
    """Exact coverage over the binomial distribution, averaged over shares: 95 % within half a point."""
    total, covered, shares = 40, 0.0, [0.05 + 0.9 * k / 30 for k in range(31)]
    for share in shares:
        for right in range(total + 1):
            low, high = wilson_interval(right, total)
            if low <= share <= high:
                covered += math.comb(total, right) * share**right * (1 - share) ** (total - right)
    assert covered / len(shares) == pytest.approx(0.95, abs=0.005)


def test_an_interval_stays_within_zero_and_one_and_nothing_counted_is_refused() -> None:
    assert wilson_interval(0, 3)[0] == 0.0
    assert wilson_interval(3, 3)[1] == 1.0
    with pytest.raises(ValueError, match="0 right answers of 0"):
        wilson_interval(0, 0)
